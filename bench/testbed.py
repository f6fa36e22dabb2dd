"""The testbed: private servers, and real workers on them as the Procfile starts them."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg
import redis
from celery import Celery
from psycopg.sql import SQL, Identifier

from bench import noop
from bench.queues import Message, queues
from core import db
from core.errors import ELSError
from core.lifecycle import Lifecycle
from core.servers.redis_client import connect
from core.servers.urls import is_amqp
from core.settings import Settings
from core.slots import Slots
from migrations import upgrade
from migrations.schema import metadata
from ops.queries.invariants import check_batches
from ops.stack.leash import leashed
from ops.stack.supervisor import Stack, procfile

DRAIN_TIMEOUT_S = 120  # of any drain
START_S = 60
STOP_S = 10
POLL_S = 0.004  # a poll costs Redis 0.05 ms
KEEP = ("ELS_DATABASE_URL", "ELS_REDIS_URL", "ELS_BROKER_URL", "ELS_HOME")
NOOP = "exec celery -q -A bench.noop:{app} worker --loglevel {level} -Q bench.{app}"
VARIANT = "exec env REMAP_SIGTERM=SIGQUIT celery -q -A bench.variant worker"
TRUNCATE = SQL("TRUNCATE {}").format(SQL(", ").join(map(Identifier, metadata.tables)))


class BenchError(ELSError):
    """A case did not do its job, so its time means nothing."""


@dataclass(frozen=True)
class Crew:
    """How many workers run, and the pool of each: its kind, processes or threads, and prefetch."""

    pool: str = "prefork"
    processes: int = 2
    workers: int = 1
    prefetch: int = 1

    @property
    def options(self) -> str:
        """The options of `celery worker`."""
        return f" -P {self.pool} -c {self.processes} --prefetch-multiplier {self.prefetch}"


@dataclass(frozen=True)
class Servers:
    """The URLs of servers to use instead of embedded ones; database and Redis must be empty."""

    database_url: str | None = None
    redis_url: str | None = None
    broker_url: str | None = None


@dataclass(frozen=True)
class Timing:
    """How long a queue took to drain, and the CPU time of each kind of process."""

    contents: int
    seconds: float
    cpu_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Contents a second."""
        return self.contents / self.seconds

    def __add__(self, other: "Timing") -> "Timing":
        cpu_s = {name: used + other.cpu_s[name] for name, used in self.cpu_s.items()}
        return Timing(self.contents + other.contents, self.seconds + other.seconds, cpu_s)


@dataclass
class Workers:
    """Workers that run the same command."""

    queue: str
    processes: list[subprocess.Popen[bytes]]
    log: Path

    @property
    def names(self) -> list[str]:
        """The names of the workers in Celery."""
        return [f"{self.queue}-{process.pid}@bench" for process in self.processes]

    def pids(self) -> Iterator[psutil.Process]:
        """List the processes, their pools included."""
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                yield from _family(process.pid)

    def cpu_s(self) -> float:
        """Return the CPU time of all processes."""
        return sum(map(_cpu_s, self.pids()))

    def memory_mb(self) -> float:
        """Return the resident memory of the largest process."""
        return max(process.memory_info().rss for process in self.pids()) / 1e6

    def stop(self) -> None:
        """End the workers, by force after a timeout."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its children
            process.wait()


class Testbed:
    """Servers and workers to measure on; every measurement starts with empty tables."""

    keeps = False  # whether `empty` leaves the rows in the tables
    variant: Mapping[str, Any] = MappingProxyType({})  # of our app: JSON, see `bench.variant`

    def __init__(
        self,
        stack: Stack,
        crew: Crew,
        undo: ExitStack,
        broker_url: str,
        database_url: str,
        queue: str,
    ) -> None:
        self.crew = crew
        self.queue, self.events_queue = queue, f"{queue}.events"
        self.database_url, self.redis_url = database_url, stack.endpoints.redis_url
        self.broker_url = broker_url
        self.home = Path(stack.endpoints.home)
        self.app = undo.enter_context(Celery("bench", broker=broker_url, backend=self.redis_url))
        if is_amqp(broker_url):
            self.app.conf.update(noop.ON_RABBITMQ)
        self.queues = undo.enter_context(queues(self.app))
        self._stack = stack
        self._undo = undo
        environ = {k: v for k, v in stack.environ.items() if not k.startswith("ELS_") or k in KEEP}
        self.environ = {
            **environ,
            "ELS_BROKER_URL": broker_url,
            "ELS_DATABASE_URL": database_url,
            "ELS_QUEUE": self.queue,
            "ELS_EVENTS_QUEUE": self.events_queue,
        }
        self.pool = undo.enter_context(db.connect(database_url, size=2))
        self.slots = Slots(undo.enter_context(connect(self.redis_url)))
        self.lifecycle = Lifecycle(self.pool, self.slots)
        self._crews: dict[str, Workers] = {}

    def beside(self, name: str) -> "Testbed":
        """Make another testbed on the same servers: a database, a queue and workers of its own."""
        with self.pool.connection() as conn:
            conn.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        url = urlsplit(self.database_url)._replace(path=f"/{name}").geturl()
        upgrade(url)
        return Testbed(self._stack, self.crew, self._undo, self.broker_url, url, f"els.{name}")

    def on_redis(self) -> "Testbed":
        """Make another testbed with the same tables whose broker is the Redis."""
        url = self.redis_url
        return Testbed(self._stack, self.crew, self._undo, url, self.database_url, self.queue)

    def other(self, queue: str, crew: Crew, variant: Mapping[str, Any]) -> "Testbed":  # Any: JSON
        """Make another testbed with the same tables, whose workers run in another way."""
        url, database_url = self.broker_url, self.database_url
        other = Testbed(self._stack, crew, self._undo, url, database_url, queue)
        other.variant = variant
        return other

    # --- workers -------------------------------------------------------------------------------

    def els(self, *, events: bool = True) -> Workers:
        """Start our workers, the line of the Procfile, with or without Celery's events; once."""
        environ = {
            "ELS_CONCURRENCY": str(self.crew.processes),  # sizes the pool of connections
            "ELS_REMOTE_CONTROL": "1",  # to know when they are ready
        }
        command = procfile()["worker"]
        queue = self.queue if events else f"{self.queue}.quiet"
        variant = self.variant if events else {"conf": {"worker_send_task_events": False}}
        if variant:
            command = VARIANT
            environ |= {"ELS_QUEUE": queue, "BENCH_VARIANT": json.dumps(variant)}
        return self._crew(queue, command + self.crew.options, environ)

    def noop(self, app: str, level: str = "WARNING", *, tuned: bool = True) -> Workers:
        """Start workers of one of the apps of `bench.noop`; once. `tuned`: with our prefetch."""
        options = self.crew.options if tuned else f" -P prefork -c {self.crew.processes}"
        return self._crew(f"bench.{app}", NOOP.format(app=app, level=level) + options, {})

    def run(
        self, name: str, command: str, environ: Mapping[str, str], times: int | None = None
    ) -> Workers:
        """Start a command so many times, else as the crew says; it is ended with the testbed."""
        log = self.home / "log" / f"{name}.log"
        processes = []
        for _ in range(times or self.crew.workers):
            with log.open("ab") as out:
                process = subprocess.Popen(  # noqa: S603 - our own commands
                    leashed(["sh", "-c", command], signal.SIGTERM),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**self.environ, **environ},
                    start_new_session=True,
                )
            processes.append(process)
        started = Workers(name, processes, log)
        self._undo.callback(started.stop)
        return started

    def _crew(self, queue: str, command: str, environ: Mapping[str, str]) -> Workers:
        if queue not in self._crews:
            command += f" -n '{queue}-'$$@bench"  # $$ is the process id, which `exec` keeps
            self._crews[queue] = started = self.run(queue, command, environ)
            self.until(lambda: self._answer(started), START_S, f"the workers of {queue} answer")
        return self._crews[queue]

    def _answer(self, workers: Workers) -> bool:
        """Tell whether all take orders. Raises BenchError with the log of one that ended."""
        for process in workers.processes:
            if process.poll() is not None:
                end = workers.log.read_text(errors="replace")[-2000:]
                raise BenchError(f"a worker of {workers.queue} ended:\n{end}")
        answers = self.app.control.ping(destination=workers.names, timeout=0.3)
        return len(answers or []) == len(workers.processes)

    def until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for a condition. Raises BenchError when the time is over."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise BenchError(f"{timeout_s:g} s passed before {what}; logs: {self.home / 'log'}")
            time.sleep(POLL_S)

    # --- measuring -----------------------------------------------------------------------------

    def empty(self) -> None:
        """Begin again: empty tables, no slots, no events, and no checkpoint due."""
        with self.pool.connection() as conn:
            if not self.keeps:
                conn.execute(TRUNCATE)
        self.calm()
        for key in self.slots.client.scan_iter("batch:*", count=5000):
            self.slots.client.unlink(key)
        self.queues.clear(self.events_queue)

    def calm(self) -> None:
        """Have a checkpoint now, and not in the middle of a measurement."""
        with suppress(psycopg.errors.InsufficientPrivilege), self.pool.connection() as conn:
            conn.execute("CHECKPOINT")

    def drain(
        self,
        workers: Workers,
        messages: Sequence[Message],
        contents: int,
        done: Callable[[], bool] | None = None,
    ) -> Timing:
        """Hand messages over to workers that wait; time them until done: nothing left, if None."""
        queue = workers.queue
        is_done = done or (lambda: self.queues.left(queue) == 0)
        self.queues.stage(queue, messages)
        before = self.cpu_s(workers)
        started = time.perf_counter()
        self.queues.release(queue, await_first=done is None)
        self.until(is_done, DRAIN_TIMEOUT_S, f"{queue} was timing")
        seconds = time.perf_counter() - started
        after = self.cpu_s(workers)
        return Timing(contents, seconds, {name: after[name] - before[name] for name in before})

    def open_slots(self, batch_id: str) -> int:
        """Count the open slots of a batch."""
        with self.pool.connection() as conn:
            tracker = db.batches.tracker(conn, batch_id)
        return tracker.available_slots if tracker else 0

    def taken_in(self, workers: Workers, contents: int) -> bool:
        """Tell whether nothing is left and so many contents have slots: no broker knows both."""
        if self.queues.left(workers.queue):
            return False
        with self.pool.connection() as conn:
            row = conn.execute(
                "SELECT sum(expected_count - available_slots) AS n FROM batch_essay_trackers"
                " WHERE completed_at IS NULL"
            ).fetchone()
        return row is not None and row["n"] is not None and row["n"] >= contents

    def cpu_s(self, workers: Workers) -> dict[str, float]:
        """Read the CPU time of workers and of servers that are ours."""
        used = {"worker": workers.cpu_s()}
        for name in ("postgres", "valkey"):
            if pid := self._stack.pid(name):
                used[name] = sum(map(_cpu_s, _family(pid)))
        return used

    def check(self, batches: Sequence[str], contents: int, *, ready: bool = True) -> None:
        """Make sure that all contents have slots, each batch got ready once, every promise holds.

        Raises BenchError.
        """
        with self.pool.connection() as conn, conn.transaction(force_rollback=True):
            conn.execute("ANALYZE")  # the planner has no statistics of these new rows
            broken = [each.title for each in check_batches(conn, batches) if not each.holds]
            found = conn.execute(
                "SELECT (SELECT count(*) FROM event_outbox"
                " WHERE batch_id = ANY(%(ids)s) AND type = 'BatchEssaysReady') AS ready,"
                " (SELECT count(*) FROM essay_states"
                " WHERE batch_id = ANY(%(ids)s) AND text_storage_id IS NOT NULL) AS assigned",
                {"ids": list(batches)},
            ).fetchone()
        if broken or found != {"ready": len(batches) if ready else 0, "assigned": contents}:
            raise BenchError(f"{len(batches)} batches, {contents} contents: {found}, {broken}")


@contextmanager
def open_testbed(crew: Crew, servers: Servers, say: Callable[[str], None]) -> Iterator[Testbed]:
    """Start servers of our own, or take those given, which must be empty."""
    given = {"database_url": servers.database_url, "redis_url": servers.redis_url}
    for url in filter(None, given.values()):
        _refuse_unless_empty(url)
    with ExitStack() as undo:
        folder = Path(tempfile.mkdtemp(prefix="els-bench-"))
        undo.push(partial(_tidy, folder))
        silence = undo.enter_context(open(os.devnull, "w"))
        settings = Settings(home=folder / "home", **given)
        stack = Stack(settings, echo=say, migrate=upgrade, processes={}, output=silence)
        undo.enter_context(stack)
        found = stack.endpoints
        broker_url = servers.broker_url or found.broker_url
        yield Testbed(stack, crew, undo, broker_url, found.database_url, "els")


def _tidy(folder: Path, failed: type[BaseException] | None, *_: object) -> None:
    """Remove everything, but the logs where something went wrong."""
    if failed is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for thing in (folder / "home").glob("*"):  # none where it was not made yet
        if thing.name != "log":
            shutil.rmtree(thing, ignore_errors=True)


def _refuse_unless_empty(url: str) -> None:
    """Raise BenchError where anything is that is not ours to delete."""
    place = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            full = bool(client.dbsize())
    else:
        with db.connect_once(url) as conn:
            query = (
                "SELECT FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            full = bool(conn.execute(query).rowcount)
    if full:
        raise BenchError(
            f"{place} is not empty; the bench deletes what it finds, so give an empty one"
        )


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0
    return float(times.user + times.system)
