"""The command line as a person runs it, and one whole running service for those that need it."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.stack.home import running
from ops.stack.leash import leashed
from ops.stack.ports import free_port
from tests.live.conftest import until
from tests.ops import forked
from tests.ops.served import page_of_its_own

ROOT = Path(__file__).parents[2]
# These take a process over: with its signals, and with processes of their own.
LASTING = {"run", "worker", "beat", "ops", "flower", "demo", "bench", "torture"}


def els(*arguments, home=None, stdin="", timeout=120, cwd=ROOT, **environ):
    """Run `els`; the servers of the test run are not given to it unless `environ` names them."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
    if home is not None:
        clean["ELS_HOME"] = str(home)
    given = [str(each) for each in arguments]
    environ = {**clean, "COLUMNS": "120", **environ}
    as_before = environ["COLUMNS"] == "120" and "FORCE_COLOR" not in environ
    if as_before and LASTING.isdisjoint(given[:1]):
        return forked.run(given, environ, cwd, stdin, timeout)
    return subprocess.run(
        [sys.executable, "-m", "ops", *given],
        env=environ,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Service:
    """A running `els run`."""

    def __init__(self, home: Path, **environ: str):
        self.home = home
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
        self.output = home.with_suffix(".out")
        command = [sys.executable, "-m", "ops"]
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                leashed([*command, "run", "--home", str(home)], signal.SIGTERM),
                env={
                    **clean,
                    "ELS_SWEEP_EVERY": "1",
                    "ELS_FLOWER_AUTH": "flower:sesame",
                    **environ,
                },
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self._is_up, 60, "the service is up")
        self.env = json.loads(self.els("env", "--json").stdout)

    def _is_up(self):
        assert self.process.poll() is None, self.output.read_text()
        return running(self.home)

    def els(self, *arguments, **options):
        return els(*arguments, home=self.home, **options)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(40)


@pytest.fixture(scope="package")  # even one without work takes time of the others
def service(memory):
    running = Service(memory / "home of 'the' service")
    yield running
    running.stop()


def without_colour(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture(scope="module")
def served(database_url):
    """The ops page on servers that only this file fills."""
    with page_of_its_own(database_url) as page:
        page.client.flushdb()
        page.lives()
        yield page


def fetch(url, **headers):
    """Return status and body; status 0 where nobody answers."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


@contextmanager
def answering(command, setting, path, **environ):
    """Run `els COMMAND` on a port of its own until it answers there; give the URL and process."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    process = subprocess.Popen(
        leashed([sys.executable, "-m", "ops", command], signal.SIGTERM),
        cwd=ROOT,
        env={**os.environ, setting: str(port), **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: fetch(url + path)[0] == 200, 60, f"els {command} answers")
        yield url, process
    finally:
        process.terminate()
        process.wait(15)
