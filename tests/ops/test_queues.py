"""Looking at queues of a broker, as commands do in several threads."""

import subprocess
import sys

FIRST = """
from threading import Barrier, Thread
from ops.queues import app_on
begin, failed = Barrier(8), []
def ask(number):
    begin.wait()
    try:
        app_on(f"redis://localhost/{number}")
    except ImportError as error:
        failed.append(error)
threads = [Thread(target=ask, args=[number]) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failed, failed
"""


def test_several_threads_may_be_the_first_to_look_at_a_broker():
    for _ in range(3):  # without the lock about two of three fail
        done = subprocess.run(
            [sys.executable, "-c", FIRST], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
