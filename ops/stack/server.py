"""A database server as a child process: started, waited for, ended step by step."""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from core.errors import StackError
from ops.stack.leash import Account, leashed

POLL_S = 0.05  # how often a condition is looked at
ORPHAN_S = 30  # what a server that an earlier run left gets to end by itself
LAST_STEP_S = 5  # what each signal after the first, polite one gets to take effect


def until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait for the condition; False when it did not come true in that many seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


class Server(ABC):
    """A database server on loopback, with its files in `data` and its log beside them.

    Call it from the main thread (see `leashed`), and keep others off the folder (see `Stack`).
    """

    name: ClassVar[str]
    signals: ClassVar[tuple[signal.Signals, ...]]  # the politest first
    account = Account()

    def __init__(self, data: Path, port: int, password: str) -> None:
        self.data = data.resolve()
        self.port = port
        self.password = password
        self.log = self.data.parent / "log" / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, password included."""

    @property
    @abstractmethod
    def _pid_file(self) -> Path: ...

    @abstractmethod
    def _prepare(self) -> None: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _refusal(self) -> str | None:
        """Say why clients are not served yet, or None when they are."""

    def start(self, timeout: float = 60) -> None:
        """Launch, and return when clients are served.

        Raises StackError that shows the end of the log, and leaves nothing running then.
        """
        try:
            self._await_service(self.launch(), timeout)
        except BaseException:
            self.stop()
            raise

    def _await_service(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while (why := self._refusal()) is not None:
            if process.poll() is not None:
                raise self._failure(f"exited with status {process.returncode} at start")
            if time.monotonic() > deadline:
                raise self._failure(f"did not serve within {timeout:g} s ({why})")
            time.sleep(POLL_S)

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the server without waiting for it; first end the one that an earlier run left."""
        self.log.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        self._end_orphan()
        self._prepare()
        return self._spawn(self._command(), self.data)

    def stop(self, timeout: float = 30, hurry: Callable[[], bool] = lambda: False) -> None:
        """End the server: politely for `timeout` seconds or until `hurry()`, then by force."""
        process, deadline = self.process, time.monotonic() + timeout
        if process is not None and process.poll() is None:
            self._end(
                process.pid,
                lambda: process.poll() is not None,
                lambda: time.monotonic() < deadline and not hurry(),
            )

    def _spawn(self, argv: Sequence[str], cwd: Path) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - a fixed program
                leashed(argv, self.signals[0], self.account),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env={**os.environ, "LC_ALL": "C"},  # messages in one language
                start_new_session=True,  # Ctrl-C is for the parent, which then ends us
            )
        return self.process

    def _end(self, pid: int, gone: Callable[[], bool], patience: Callable[[], bool]) -> None:
        """Send one signal after the other, the second one when `patience()` is lost."""
        polite, *forceful = self.signals
        with suppress(ProcessLookupError):
            os.kill(pid, polite)
        while not gone() and patience():
            time.sleep(POLL_S)
        for number in forceful:
            if gone():
                return
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            until(gone, LAST_STEP_S)
        if not gone():
            raise StackError(f"{self.name}, process {pid}, does not end; end it, then start again")

    def _end_orphan(self) -> None:
        """End the server that an earlier run left on these files; spare the heir of its pid."""
        try:
            pid = int(self._pid_file.read_text().split()[0])
        except (FileNotFoundError, ValueError, IndexError):
            return
        if self._is_ours(pid):
            deadline = time.monotonic() + ORPHAN_S
            gone, patience = lambda: not self._is_ours(pid), lambda: time.monotonic() < deadline
            self._end(pid, gone, patience)
        elif _command_line(pid):  # a stranger's by now, and Postgres would not start beside it
            self._pid_file.unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        program, *arguments = self._command()
        return " ".join([Path(program).name, *arguments[:3]]) in _command_line(pid)

    def _failure(self, what: str) -> StackError:
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        return StackError("\n".join([f"{self.name} {what}; the end of {self.log}:", *lines]))


def _command_line(pid: int) -> str:
    """Read the command line of a process; empty when it is gone, or a zombie."""
    if sys.platform == "linux":
        with suppress(FileNotFoundError, ProcessLookupError):
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "))
        return ""
    ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return os.fsdecode(subprocess.run(ps, capture_output=True, check=False).stdout)  # noqa: S603 - a fixed program
