"""Where the torture happens: a private stack, its workers behind proxies, and what faults reach."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from urllib.parse import urlsplit
from uuid import uuid4

from core import db
from core.db.connection import Conn
from core.errors import StackError
from ops.stack.leash import leashed
from ops.stack.proxy import Proxy
from ops.stack.server import until
from ops.stack.supervisor import Stack
from ops.torture.brokers import Broker, Redis

WORKERS = [["--pool", "solo"], ["--pool", "solo"], ["--pool", "prefork", "--concurrency", "2"]]
WORKER = [sys.executable, "-m", "celery", "-q", "-A", "tasks.app", "worker"]
DISK_MB = 768  # Postgres with a write-ahead log of `WAL_MB`, and room for the load of an hour
WAL_MB = 128
START_S = 60  # what a server gets to start again


class SmallDisk:
    """A small file system in memory, to be filled; `why_not` says why there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.why_not: str | None = None

    def mount(self) -> None:
        """Mount it, where that is possible."""
        mount = shutil.which("mount")
        if os.geteuid() != 0 or mount is None:
            self.why_not = "needs root and `mount`"
            return
        self.path.mkdir(mode=0o711)
        options = f"size={DISK_MB}m,mode=0711"
        tried = subprocess.run(  # noqa: S603 - a fixed program
            [mount, "-t", "tmpfs", "-o", options, "els-torture", str(self.path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if tried.returncode:
            self.why_not = f"no file system can be mounted here: {tried.stderr.strip()}"

    def unmount(self) -> None:
        """Unmount it, though somebody may still have a file of it open."""
        umount = shutil.which("umount")
        if self.why_not is None and umount is not None:
            subprocess.run([umount, "-l", str(self.path)], check=False)  # noqa: S603 - a fixed program


class Stage:
    """The servers, the workers and the proxies between them, of one session."""

    def __init__(
        self, stack: Stack, broker: Broker, disk: SmallDisk, random: Random, longest_s: float
    ) -> None:
        found = stack.endpoints
        self.stack = stack
        self.disk = disk
        self.random = random
        self.longest_s = longest_s
        self.home = Path(found.home)
        self.database_url = found.database_url
        self.slots_url, self.broker_url = found.redis_url, broker.url
        self.slots, self.broker = Redis(self.slots_url), broker
        self.servers: dict[str, Redis | Broker] = {"slots": self.slots, "broker": broker}
        urls = {"Postgres": self.database_url, "slots": self.slots_url, "broker": self.broker_url}
        self.proxies = {
            name: Proxy(urlsplit(url).port or 0, Random(random.random()))
            for name, url in urls.items()
        }
        self.workers: list[tuple[list[str], subprocess.Popen[bytes]]] = []
        self.ended = threading.Event()
        self.replay: Callable[[], object] = int  # sends old messages again; set by the session

    @contextmanager
    def open(self) -> Iterator[None]:
        """Start the proxies and the workers; end them at the end."""
        for proxy in self.proxies.values():
            proxy.start()
        try:
            self.staff()
            yield
        finally:
            for _, worker in self.workers:
                end(worker)
            for proxy in self.proxies.values():
                proxy.stop()
            self.slots.client.close()

    def staff(self) -> int:
        """Have as many workers as there should be; return how many had ended by themselves."""
        alive = [(kind, worker) for kind, worker in self.workers if worker.poll() is None]
        ended = len(self.workers) - len(alive)
        missing = list(WORKERS)
        for kind, _ in alive:
            missing.remove(kind)
        self.workers = alive + [(kind, self.start_worker(kind)) for kind in missing]
        return ended

    def start_worker(self, kind: list[str], **more: str) -> "subprocess.Popen[bytes]":
        """Start a worker whose connections go through the proxies."""
        environ = {
            **self.stack.environ,
            **more,
            "ELS_DATABASE_URL": self._through("Postgres", self.database_url),
            "ELS_REDIS_URL": self._through("slots", self.slots_url),
            "ELS_BROKER_URL": self._through("broker", self.broker_url),
        }
        name = f"torture-{uuid4().hex[:9]}@els"
        with (self.home / "log" / "workers.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - a fixed program
                leashed([*WORKER, *kind, "-n", name], signal.SIGKILL),
                env=environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_a_worker(self) -> None:
        """Kill one worker, with its processes."""
        _, worker = victim = self.random.choice(self.workers)
        self.workers.remove(victim)
        end(worker)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Signal a process of the stack. Raises StackError when it stays down."""
        os.kill(self.pid(name), number)

    def pid(self, name: str) -> int:
        """Return the process id of a server. Raises StackError when it stays down."""
        self._until(lambda: self.stack.pid(name) is not None)
        pid = self.stack.pid(name)
        if pid is None:
            raise StackError(f"{name} is down")
        return pid

    def kill_broker(self) -> None:
        """Kill the broker, and wait until it serves again: a node takes seconds to start.

        Raises StackError when it stays down.
        """
        killed = self.pid("broker")
        os.kill(killed, signal.SIGKILL)
        self._until(lambda: self.stack.pid("broker") not in {None, killed})
        self._until(self.broker.serves)
        if not self.broker.serves():
            raise StackError("the broker that was killed does not serve again")

    def hold(self, shortest_s: float, longest_s: float) -> float:
        """Let a fault last, within the bounds of this session; return for how long it did."""
        most = min(longest_s, self.longest_s)
        seconds = self.random.uniform(min(shortest_s, most), most)
        self.ended.wait(seconds)
        return seconds

    @contextmanager
    def connection(self) -> Iterator[Conn]:
        """Connect to Postgres, not through the proxy."""
        with db.connect_once(self.database_url) as conn:
            yield conn

    @property
    def clock(self) -> Path:
        """The file that says by how many seconds the clock of beat is off."""
        return self.home / "beat-clock"

    def _until(self, started: Callable[[], bool]) -> None:
        until(lambda: self.ended.is_set() or started(), START_S)

    def _through(self, name: str, url: str) -> str:
        proxy = self.proxies[name]
        return url.replace(f":{proxy.target_port}", f":{proxy.port}")


def end(worker: "subprocess.Popen[bytes]") -> None:
    """Kill a worker and the processes of its pool."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def beat(celery: str, clock: str) -> str:
    """Write the command of a beat whose clock can be set."""
    script = Path(__file__).with_name("clock.py")
    return f'exec "{sys.executable}" -P "{script}" {clock} {celery}'


ENVIRON: Mapping[str, str] = {"ELS_VISIBILITY_TIMEOUT": "5", "ELS_SWEEP_EVERY": "1"}
