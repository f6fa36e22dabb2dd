"""The folder of a stack: its lock, passwords, ports and logs, and where the running one listens."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from core.errors import StackError
from ops.stack.accounts import owner_of
from ops.stack.ports import choose_port
from ops.stack.server import until


@dataclass(frozen=True)
class Endpoints:
    """The URLs of a running stack, passwords included; `els env` prints them as JSON."""

    database_url: str
    redis_url: str
    broker_url: str
    ops_url: str
    flower_url: str
    pid: int
    home: str


def running(home: Path) -> Endpoints | None:
    """Find the live stack of this home; None when there is none, or it is still starting.

    Raises StackError when the home belongs to another user.
    """
    home = absolute(home)
    try:
        with (home / "lock").open() as lock:
            if _flock(lock, fcntl.LOCK_SH):
                return None
            pid = lock.read()
        found = Endpoints(**json.loads((home / "stack.json").read_text()))
        return found if str(found.pid) == pid else None  # else left by a killed run
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise StackError(f"{error}: only its owner can see the stack of {home}") from error


class Home:
    """The folder, for the stack that runs on it."""

    def __init__(self, path: Path) -> None:
        self.path = absolute(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold its lock, which the kernel releases if we are killed.

        Raises StackError where the folder cannot be made, or another stack runs on it.
        """
        try:
            make_home(self.path)
            (self.path / "log").mkdir(mode=0o700, exist_ok=True)
            (self.path / "lock").touch(mode=0o600)
            opened = (self.path / "lock").open("r+")
        except OSError as error:
            raise StackError(f"{error}: give a folder of your own as ELS_HOME") from error
        with opened as lock:
            if not until(lambda: _flock(lock, fcntl.LOCK_EX), 1):  # `running` holds it briefly
                raise self._taken(lock.read())
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            self._stack_file.unlink(missing_ok=True)  # left from a run that was killed
            yield

    def _taken(self, pid: str) -> StackError:
        return StackError(
            f"a stack runs on {self.path} already, process {pid}: see it with `els env`, stop "
            f"it with Ctrl-C in its terminal or `kill {pid}`, or give another ELS_HOME"
        )

    @property
    def _stack_file(self) -> Path:
        return self.path / "stack.json"

    @contextmanager
    def published(self, endpoints: Endpoints) -> Iterator[None]:
        """Say where the stack listens, for `running` to find it."""
        write_private(self._stack_file, json.dumps(asdict(endpoints), indent=2))
        try:
            yield
        finally:
            self._stack_file.unlink(missing_ok=True)

    def log(self, name: str) -> Path:
        """Name the log of a process."""
        return self.path / "log" / f"{name}.log"

    def passwords(self, *names: str) -> dict[str, str]:
        """Return the passwords of these servers, which the folder keeps as it keeps their data."""
        path = self.path / "secrets.json"
        if not path.exists():
            write_private(path, json.dumps({name: secrets.token_hex(24) for name in names}))
        return dict(json.loads(path.read_text()))

    def port(self, setting: str, given: int | None, usual: int | None) -> int:
        """Choose a port: the given one, else the one it had before, the usual one, or any.

        Raises StackError that names the setting when the given port is taken.
        """
        path = self.path / "ports.json"
        ports = json.loads(path.read_text()) if path.exists() else {}
        port = choose_port(f"ELS_{setting.upper()}", given, ports.get(setting), usual)
        if given is None and ports.get(setting) != port:
            write_private(path, json.dumps({**ports, setting: port}, indent=2))
        return port


def make_home(home: Path) -> None:
    """Create the folder for ourselves; root's also lets Postgres's user pass, and nobody else."""
    if not home.exists():
        home.mkdir(parents=True, mode=0o700)
        if os.geteuid() == 0:
            os.chown(home, -1, owner_of(home)[1])
            home.chmod(0o710)


def write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def absolute(home: Path) -> Path:
    """Name the folder by its whole path."""
    return home.expanduser().absolute()


def _flock(lock: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
