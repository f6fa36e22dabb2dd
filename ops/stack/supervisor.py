"""Run the whole service from one foreground process: servers, migrations, and the Procfile.

The supervisor ends what it started, in reverse order. If it is killed, the kernel ends its children
(`leashed`), and the reaper ends the processes that these had started.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self, TextIO

from honcho.environ import parse_procfile  # type: ignore[import-untyped] # has no types

from core.settings import Settings
from core.signs import health_file
from ops.login import login_of
from ops.stack.child import Child
from ops.stack.console import Console
from ops.stack.embedded import Postgres, Valkey
from ops.stack.home import Endpoints, Home
from ops.stack.leash import leashed
from ops.stack.ports import LOOPBACK
from ops.stack.reaper import Reaper
from ops.stack.server import Server, until

DRAIN_S = 2  # to read the last lines of a child; after that another process holds the pipe
TERM_S = 15  # for processes to stop after SIGTERM, and for a running task to finish
CHECK_S = 1  # between two checks of a heartbeat
HUNG_TERM_S = 3  # for a hung child to stop after SIGTERM
HAVE_HEARTBEATS = ("worker", "beat")
FILES = {f"ELS_{name}_URL_FILE" for name in ("DATABASE", "REDIS", "BROKER")}  # each set below
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
        self._migrate = migrate
        self._check = check
        self._commands = procfile() if processes is None else processes
        self._env = env
        self._console = Console(echo, output, list(self._commands))
        self._home = Home(settings.home)
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
        login_of(given)  # raises where the page could not start
        undo.enter_context(self._home.locked())
        self._handle_signals(undo)
        settings = self._settings
        database_url = settings.database_url or self._serve(undo, Postgres, settings.postgres_port)
        redis_url = settings.redis_url or self._serve(undo, Valkey, settings.valkey_port)
        started = time.monotonic()
        self._migrate(database_url)
        self._console.say(f"schema: up to date{_since(started)}")
        self.endpoints = self._choose_endpoints(database_url, redis_url)
        self.environ = self._make_environ()
        self._report_findings()
        self._start_processes(undo)
        undo.enter_context(self._home.published(self.endpoints))

    def _report_findings(self) -> None:
        """Report what the service needs and the servers lack."""
        names = ("database_url", "redis_url", "broker_url")
        urls = {name: getattr(self.endpoints, name) for name in names}
        for finding in self._check(self._settings.model_copy(update=urls)):
            self._console.say(str(finding))

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
        passwords = self._home.passwords(Postgres.name, Valkey.name)
        server = kind(self._home.path / kind.name, port, passwords[kind.name])
        undo.callback(server.stop, hurry=self._stop_at_once)
        server.start()
        self._children.append(Child(kind.name, server.launch, server.log, server.process))
        self._console.say(f"{kind.name}: ready on {LOOPBACK}:{port}{_since(started)}")
        return server.url

    def _choose_port(self, name: str, setting: int | None) -> int:
        given = setting if name in self._settings.model_fields_set else None
        return self._home.port(name, given, setting)

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
            home=str(self._home.path),
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
            "ELS_LOG_FORMAT": self._settings.log_format
            or ("console" if self._console.is_terminal else "json"),
        }

    def _start_processes(self, undo: ExitStack) -> None:
        self._reaper = undo.enter_context(Reaper.running(TERM_S))
        undo.callback(self._end_processes)
        for name in self._commands:
            child = Child(name, partial(self._launch, name), self._home.log(name))
            self._children.append(child)
            child.start()
        self._console.say(f"started: {', '.join(self._commands)}")

    def _launch(self, name: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - a line of our Procfile
            leashed(["sh", "-c", self._commands[name]], signal.SIGTERM),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environ,
            start_new_session=True,
        )
        self._reaper.add(process.pid)
        arguments = name, process.stdout, self._home.log(name)
        reader = threading.Thread(target=self._console.copy, args=arguments, daemon=True)
        reader.start()
        self._readers = [*(each for each in self._readers if each.is_alive()), reader]
        return process

    def _supervise(self, child: Child) -> None:
        if child.process is None:
            if time.monotonic() >= child.restart_at:
                child.start()
        elif (status := child.process.poll()) is not None:
            self._kill_group(child.process.pid)
            self._console.say(child.record_exit(status))
        elif child.name in self._commands and time.monotonic() - child.checked_at >= CHECK_S:
            self._end_if_hung(child, child.process)

    def _end_if_hung(self, child: Child, process: subprocess.Popen[bytes]) -> None:
        """End a worker or beat whose heartbeat stopped, or never came, so that it starts again."""
        heartbeats = self._heartbeats().items()
        heartbeat = next((at for pid, at in heartbeats if _group_of(pid) == process.pid), None)
        if heartbeat is None and (child.name not in HAVE_HEARTBEATS or self._is_full()):
            return
        if age_s := child.silent_s(heartbeat, time.monotonic()):
            self._console.say(f"{child.name}: hangs, no heartbeat for {age_s:.0f} s; restarting it")
            process.terminate()
            until(lambda: process.poll() is not None or self._ended.is_set(), HUNG_TERM_S)
            self._kill_group(process.pid)

    def _heartbeats(self) -> dict[int, float]:
        try:
            return health_file.touched_at(self._home.path)
        except OSError:  # a file vanished in between
            return {}

    def _is_full(self) -> bool:
        """Tell whether the disk has no room for a heartbeat."""
        return os.statvfs(self._home.path).f_bavail == 0

    def _kill_group(self, pid: int) -> None:
        """Kill the processes that an exited child left behind."""
        with suppress(ProcessLookupError, PermissionError):  # gone, or all zombies
            os.killpg(pid, signal.SIGKILL)
        self._reaper.remove(pid)

    def _end_processes(self) -> None:
        self._console.say("stopping; press Ctrl-C again to stop at once")
        processes = {
            child.name: child.process
            for child in self._children
            if child.name in self._commands and child.process is not None
        }
        for process in processes.values():
            process.terminate()
        until(lambda: not _still_running(processes) or self._stop_at_once(), TERM_S)
        if late := _still_running(processes):
            self._console.say(f"killed: {', '.join(late)}")
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


def _since(started: float) -> str:
    return f" ({time.monotonic() - started:.1f} s)"


def _reachable(host: str) -> str:
    """Return the address by which a browser on this host reaches a listening address."""
    return LOOPBACK if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - compared, not bound
