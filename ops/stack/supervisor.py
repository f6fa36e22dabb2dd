"""Run the whole service from one foreground process: servers, migrations, and the Procfile.

The supervisor ends what it started, in reverse order. If it is killed, the kernel ends its children
(`embedded.leashed`), and the reaper ends the processes that these had started.
"""

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self, TextIO

from honcho.colour import get_colours  # type: ignore[import-untyped] # has no types
from honcho.environ import parse_procfile  # type: ignore[import-untyped] # has no types
from honcho.printer import Message, Printer  # type: ignore[import-untyped] # has no types

from core.errors import StackError
from core.settings import Settings
from core.signs import health_file
from ops.stack.embedded import (
    LOOPBACK,
    Postgres,
    Server,
    Valkey,
    choose_port,
    leashed,
    make_home,
    until,
    write_private,
)
from ops.stack.worker_health import MAX_AGE_S

DRAIN_S = 2  # to read the last lines of a child; after that another process holds the pipe
TERM_S = 15  # for processes to stop after SIGTERM, and for a running task to finish
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10  # before a restart; doubles with each failure
STEADY_S = 30  # a run this long resets the pause
QUICK_S, QUICK_FAILURES = 5, 3  # this many runs this short: it keeps failing
CHECK_S = 1  # between two checks of a heartbeat
ASLEEP_S = 10  # this long without a check: the machine slept, so heartbeats count from now
HUNG_TERM_S = 3  # for a hung child to stop after SIGTERM
FILES = {f"ELS_{name}_URL_FILE" for name in ("DATABASE", "REDIS", "BROKER")}  # each set below
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Kills the process groups on its list when its input closes, as it does when we are killed.
REAPER = """
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
    home = _absolute(home)
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


@dataclass
class Child:
    """A supervised process: how to launch it, its current run, and when to restart it."""

    name: str
    launch: Callable[[], subprocess.Popen[bytes]]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = field(default_factory=time.monotonic)
    restart_at: float = 0
    pause: float = FIRST_PAUSE_S
    quick_failures: int = 0
    heartbeat: float | None = None  # the last one, by the file system's clock
    heartbeat_seen_at: float = 0  # when we first saw that one, by our clock
    checked_at: float = 0

    def start(self) -> None:
        self.process, self.started_at = self.launch(), time.monotonic()
        self.heartbeat = None

    def heartbeat_age_s(self, heartbeat: float | None, now: float) -> float:
        """Return how long the heartbeat has not changed; 0 before the first one of this run."""
        if heartbeat != self.heartbeat or now - self.checked_at > ASLEEP_S:
            self.heartbeat, self.heartbeat_seen_at = heartbeat, now
        self.checked_at = now
        return now - self.heartbeat_seen_at if self.heartbeat is not None else 0

    def record_exit(self, status: int) -> str:
        """Schedule the restart of an exited process; return a line that says so."""
        self.process, now = None, time.monotonic()
        age = now - self.started_at
        if age > STEADY_S:
            self.pause = FIRST_PAUSE_S
        self.quick_failures = self.quick_failures + 1 if age < QUICK_S else 0
        self.restart_at = now + self.pause
        how = (
            f"exited with status {status}" if status >= 0 else f"killed by {_signal_name(-status)}"
        )
        line = f"{self.name}: {how}; starts again in {self.pause:g} s"
        self.pause = min(2 * self.pause, LONGEST_PAUSE_S)
        if self.quick_failures >= QUICK_FAILURES:
            line += f"; it keeps failing, see {self.log}"
        return line


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


class Stack:
    """The running service, as a context manager.

    Use it in the main thread: it handles signals, which interrupt the body, or end `wait()`.
    """

    endpoints: Endpoints
    environ: dict[str, str]  # of the processes

    def __init__(
        self,
        settings: Settings,
        *,
        echo: Callable[[str], None],
        migrate: Callable[[str], None],
        check: Callable[[Settings], Iterable[object]] = lambda _: (),
        processes: Mapping[str, str] | None = None,
        env: Mapping[str, str] = {},
        output: TextIO | None = None,
    ) -> None:
        self._settings = settings
        self._echo = echo
        self._migrate = migrate
        self._check = check
        self._commands = procfile() if processes is None else processes
        self._env = env
        self._printer = Printer(
            output or sys.stdout, width=max(map(len, self._commands), default=0)
        )
        self._colours = dict(zip(self._commands, get_colours(), strict=False))
        self._on_terminal = (output or sys.stdout).isatty()
        self._output_lock = threading.Lock()
        self._home = _absolute(settings.home)
        self._undo = ExitStack()
        self._children: list[Child] = []
        self._readers: list[threading.Thread] = []
        self._ended = threading.Event()
        self._signals = 0
        self._count_signals_only = False

    def __enter__(self) -> Self:
        """Start everything in order; if a step fails, end what had started."""
        with ExitStack() as undo:
            try:
                self._start(undo)
            finally:
                self._count_signals_only = True
            self._undo = undo.pop_all()
        self._count_signals_only = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything in reverse order; a second signal ends it at once."""
        self._count_signals_only = True
        self._undo.close()

    def wait(self) -> int:
        """Restart children that exit, until a signal or `stop()`; return the exit status, 0."""
        self._count_signals_only = True
        while not self._ended.wait(0.1):
            for child in self._children:
                self._supervise(child)
        return 0

    def watch(self, child: Child) -> None:
        """Restart one more process whenever it exits; the caller ends it."""
        self._children.append(child)

    def pid(self, name: str) -> int | None:
        """Return the process id of a child, or of an embedded server; None while it is down."""
        lives = {child.name: child.process for child in self._children}
        process = lives.get(name)
        return process.pid if process is not None and process.poll() is None else None

    def stop(self) -> None:
        """Make `wait()` return. Safe from any thread."""
        self._ended.set()

    def _start(self, undo: ExitStack) -> None:
        given = Settings.from_env({**os.environ, **self._env})
        given.refuse_eager("a stack with workers")
        given.ops_login()  # raises where the page could not start
        self._lock_home(undo)
        self._handle_signals(undo)
        settings = self._settings
        database_url = settings.database_url or self._serve(undo, Postgres, settings.postgres_port)
        redis_url = settings.redis_url or self._serve(undo, Valkey, settings.valkey_port)
        started = time.monotonic()
        self._migrate(database_url)
        self._say(f"schema: up to date{_since(started)}")
        self.endpoints = self._choose_endpoints(database_url, redis_url)
        self.environ = self._make_environ()
        self._report_findings()
        self._start_processes(undo)
        undo.callback((self._home / "stack.json").unlink, missing_ok=True)
        write_private(self._home / "stack.json", json.dumps(asdict(self.endpoints), indent=2))

    def _report_findings(self) -> None:
        """Report what the service needs and the servers lack."""
        names = ("database_url", "redis_url", "broker_url")
        urls = {name: getattr(self.endpoints, name) for name in names}
        for finding in self._check(self._settings.model_copy(update=urls)):
            self._say(str(finding))

    def _lock_home(self, undo: ExitStack) -> None:
        """Make the home and hold its lock, which the kernel releases if we are killed."""
        try:
            make_home(self._home)
            (self._home / "log").mkdir(mode=0o700, exist_ok=True)
            (self._home / "lock").touch(mode=0o600)
            lock = undo.enter_context((self._home / "lock").open("r+"))
        except OSError as error:
            raise StackError(f"{error}: give a folder of your own as ELS_HOME") from error
        if not until(lambda: _flock(lock, fcntl.LOCK_EX), 1):  # `running` holds it for an instant
            pid = lock.read()
            raise StackError(
                f"a stack runs on {self._home} already, process {pid}: see it with `els env`, stop "
                f"it with Ctrl-C in its terminal or `kill {pid}`, or give another ELS_HOME"
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        (self._home / "stack.json").unlink(missing_ok=True)  # left from a run that was killed

    def _handle_signals(self, undo: ExitStack) -> None:
        for number in STOP_SIGNALS:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:
                continue  # nohup
            signal.signal(number, self._on_signal)
            undo.callback(signal.signal, number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._ended.set()
        if not self._count_signals_only:
            raise KeyboardInterrupt

    def _stop_at_once(self) -> bool:
        return self._signals > 1

    def _serve(self, undo: ExitStack, kind: type[Server], port: int | None) -> str:
        """Start an embedded server, supervise it, and return its URL."""
        started = time.monotonic()
        port = self._choose_port(f"{kind.name}_port", port)
        server = kind(self._home / kind.name, port, self._password(kind.name))
        undo.callback(server.stop, hurry=self._stop_at_once)
        server.start()
        self._children.append(Child(kind.name, server.launch, server.log, server.process))
        self._say(f"{kind.name}: ready on {LOOPBACK}:{port}{_since(started)}")
        return server.url

    def _password(self, name: str) -> str:
        """Return the password of a server; the home keeps it, as the data folder does."""
        path = self._home / "secrets.json"
        if not path.exists():
            passwords = {kind.name: secrets.token_hex(24) for kind in (Postgres, Valkey)}
            write_private(path, json.dumps(passwords))
        return str(json.loads(path.read_text())[name])

    def _choose_port(self, name: str, setting: int | None) -> int:
        """Choose the port that this home had before, where it is free and nobody gave another."""
        path = self._home / "ports.json"
        ports = json.loads(path.read_text()) if path.exists() else {}
        given = setting if name in self._settings.model_fields_set else None
        port = choose_port(f"ELS_{name.upper()}", given, ports.get(name), setting)
        if given is None and ports.get(name) != port:
            write_private(path, json.dumps({**ports, name: port}, indent=2))
        return port

    def _choose_endpoints(self, database_url: str, redis_url: str) -> Endpoints:
        ops = self._choose_port("ops_port", self._settings.ops_port)
        flower = self._choose_port("flower_port", self._settings.flower_port)
        return Endpoints(
            database_url=database_url,
            redis_url=redis_url,
            broker_url=self._settings.broker_url or redis_url,
            ops_url=f"http://{_reachable(self._settings.ops_host)}:{ops}",
            flower_url=f"http://{_reachable(self._settings.flower_host)}:{flower}",
            pid=os.getpid(),
            home=str(self._home),
        )

    def _make_environ(self) -> dict[str, str]:
        path = os.environ.get("PATH", os.defpath)
        return {
            **{name: value for name, value in os.environ.items() if name not in FILES},
            **self._env,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{path}",
            "PYTHONUNBUFFERED": "1",  # so that each line shows at once
            "ELS_DATABASE_URL": self.endpoints.database_url,
            "ELS_REDIS_URL": self.endpoints.redis_url,
            "ELS_BROKER_URL": self.endpoints.broker_url,
            "ELS_HOME": self.endpoints.home,
            "ELS_OPS_PORT": self.endpoints.ops_url.rpartition(":")[2],
            "ELS_FLOWER_PORT": self.endpoints.flower_url.rpartition(":")[2],
            "ELS_LOG_FORMAT": self._settings.log_format or self._log_format(),
        }

    def _log_format(self) -> str:
        """Choose the form of the processes' logs, which go where ours go."""
        return "console" if self._on_terminal else "json"

    def _start_processes(self, undo: ExitStack) -> None:
        self._reaper = subprocess.Popen(  # noqa: S603 - a fixed program
            [sys.executable, "-ISc", REAPER, str(TERM_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            bufsize=1,  # a line at once
        )
        undo.callback(self._reaper.communicate)
        undo.callback(self._end_processes)
        for name in self._commands:
            child = Child(name, partial(self._launch, name), self._log(name))
            self._children.append(child)
            child.start()
        self._say(f"started: {', '.join(self._commands)}")

    def _log(self, name: str) -> Path:
        return self._home / "log" / f"{name}.log"

    def _launch(self, name: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - a line of our Procfile
            leashed(["sh", "-c", self._commands[name]], signal.SIGTERM),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environ,
            start_new_session=True,
        )
        self._notify_reaper(f"+{process.pid}")
        reader = threading.Thread(target=self._copy, args=(name, process.stdout), daemon=True)
        reader.start()
        self._readers = [*(each for each in self._readers if each.is_alive()), reader]
        return process

    def _copy(self, name: str, pipe: IO[bytes]) -> None:
        """Print and log each line of a child.

        Go on after a full disk or a closed terminal: a child with a full pipe would block.
        """
        with pipe, self._log(name).open("ab", buffering=0) as log:
            for line in pipe:
                with suppress(OSError):
                    log.write(line)
                now = datetime.now().astimezone()
                message = Message("line", line, now, name, self._colours[name])
                with self._output_lock, suppress(OSError):
                    self._printer.write(message)

    def _say(self, line: str) -> None:
        with self._output_lock, suppress(BrokenPipeError):
            self._echo(line)

    def _notify_reaper(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it was killed; the service runs without it
            print(line, file=self._reaper.stdin)

    def _supervise(self, child: Child) -> None:
        if child.process is None:
            if time.monotonic() >= child.restart_at:
                child.start()
        elif (status := child.process.poll()) is not None:
            self._kill_group(child.process.pid)
            self._say(child.record_exit(status))
        elif child.name in self._commands and time.monotonic() - child.checked_at >= CHECK_S:
            self._end_if_hung(child, child.process)

    def _end_if_hung(self, child: Child, process: subprocess.Popen[bytes]) -> None:
        """End a worker whose heartbeat stopped, so that it starts again."""
        heartbeats = self._heartbeats().items()
        heartbeat = next((at for pid, at in heartbeats if _group_of(pid) == process.pid), None)
        age_s = child.heartbeat_age_s(heartbeat, time.monotonic())
        if age_s > MAX_AGE_S:
            self._say(f"{child.name}: hangs, no heartbeat for {age_s:.0f} s; restarting it")
            process.terminate()
            until(lambda: process.poll() is not None or self._ended.is_set(), HUNG_TERM_S)
            self._kill_group(process.pid)

    def _heartbeats(self) -> dict[int, float]:
        try:
            return health_file.touched_at(self._home)
        except OSError:  # a file vanished in between
            return {}

    def _kill_group(self, pid: int) -> None:
        """Kill the processes that an exited child left behind."""
        with suppress(ProcessLookupError, PermissionError):  # gone, or all zombies
            os.killpg(pid, signal.SIGKILL)
        self._notify_reaper(f"-{pid}")

    def _end_processes(self) -> None:
        self._say("stopping; press Ctrl-C again to stop at once")
        processes = {
            child.name: child.process
            for child in self._children
            if child.name in self._commands and child.process is not None
        }
        for process in processes.values():
            process.terminate()
        until(lambda: not _still_running(processes) or self._stop_at_once(), TERM_S)
        if late := _still_running(processes):
            self._say(f"killed: {', '.join(late)}")
        for process in processes.values():
            self._kill_group(process.pid)
            process.wait()
        for reader in self._readers:
            reader.join(DRAIN_S)


def procfile() -> dict[str, str]:
    """Read the Procfile: at the top of a checkout, in this folder once installed."""
    here = Path(__file__).parent
    installed = here / "Procfile"
    text = (installed if installed.exists() else here.parent.parent / "Procfile").read_text()
    return dict(parse_procfile(text).processes)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _still_running(processes: Mapping[str, subprocess.Popen[bytes]]) -> list[str]:
    return [name for name, process in processes.items() if process.poll() is None]


def _absolute(home: Path) -> Path:
    return home.expanduser().absolute()


def _since(started: float) -> str:
    return f" ({time.monotonic() - started:.1f} s)"


def _reachable(host: str) -> str:
    """Return the address by which a browser on this host reaches a listening address."""
    return LOOPBACK if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - compared, not bound


def _flock(lock: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
