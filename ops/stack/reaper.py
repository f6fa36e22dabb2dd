"""A process that outlives us, to end the process groups that we started if we are killed."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

# Ends the process groups on its list when its input closes, as it does when we are killed.
PROGRAM = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
def send(number):
    for group in list(groups):
        try:
            os.killpg(group, number)
        except OSError:
            groups.discard(group)
deadline = time.monotonic() + float(sys.argv[1])
send(signal.SIGTERM)
while groups and time.monotonic() < deadline:
    time.sleep(0.1)
    send(0)
send(signal.SIGKILL)
"""


class Reaper:
    """The list of process groups, which the reaper ends when we are gone."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextmanager
    def running(cls, term_s: float) -> Iterator[Self]:
        """Start it; it gives the groups so many seconds between SIGTERM and SIGKILL."""
        process = subprocess.Popen(  # noqa: S603 - a fixed program
            [sys.executable, "-ISc", PROGRAM, str(term_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            bufsize=1,  # a line at once
        )
        try:
            yield cls(process)
        finally:
            process.communicate()

    def add(self, group: int) -> None:
        """Put a process group on the list."""
        self._write(f"+{group}")

    def remove(self, group: int) -> None:
        """Take a process group from the list."""
        self._write(f"-{group}")

    def _write(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it was killed; the service runs without it
            print(line, file=self._process.stdin)
