"""Torture: random faults against a private stack under load; then every promise is checked.

Batches are sent the hard way: early and excess contents, repeats, rejected files, any order.
Meanwhile processes are killed, servers restarted, connections cut and Redis flushed. The choices
follow from the seed; their timing is the machine's.
"""

import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis
from rich.console import Console

from core import ledger
from core.crash import POINTS
from core.errors import StackError
from core.explain import Explanation, explain
from core.invariants import Invariant, check_ledger, check_slots
from core.ledger import Conn
from core.settings import Settings
from core.slots import CLAIM_LEASE, Slots, connect
from migrations import upgrade
from ops import client
from ops.client import Event, Sender, common
from ops.demo import CONSUMER, show_invariants
from ops.oncall import show_explanation
from ops.proxy import Proxy
from ops.signs import read_signs
from ops.stack import Stack

WORKERS = 3
VISIBILITY_S = 5.0
# How long the service may take to mend everything after the last fault: a claim may run out first.
QUIET_S = CLAIM_LEASE.total_seconds() + 60
# The queue has a database of its own, so that flushing the slots loses no message.
BROKER = 'export ELS_BROKER_URL="${ELS_BROKER_URL%/0}/1"; '
LISTENER = CONSUMER.replace("examples.consumer", "ops.listener")
EXPLAINED = 5  # broken batches that are explained
PACE_S = 0.02  # between two messages of the load: below what two cores can carry
FINAL = ("ready_for_pipeline_execution", "content_ingestion_failed")
WORKER = [sys.executable, "-m", "celery", "-q", "-A", "tasks.app", "worker", "--pool", "solo"]


@dataclass
class Report:
    """What was done and what came of it."""

    seed: int
    minutes: float
    faults: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    messages: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    invariants: list[Invariant] = field(default_factory=list)
    explanations: list[Explanation] = field(default_factory=list)  # of broken batches

    @property
    def ok(self) -> bool:
        """Every invariant held."""
        return bool(self.invariants) and all(each.holds for each in self.invariants)

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Tell everything to a program."""
        recoveries = sorted(self.recoveries_s)
        return {
            "ok": self.ok,
            "seed": self.seed,
            "minutes": self.minutes,
            "faults": dict(sorted(self.faults.items())),
            "batches": self.batches,
            "messages": self.messages,
            "recovery_s": {
                "probes": len(recoveries),
                "median": round(statistics.median(recoveries), 2) if recoveries else None,
                "p99": round(recoveries[int(len(recoveries) * 0.99)], 2) if recoveries else None,
            },
            "invariants": [
                {"title": each.title, "holds": each.holds, "broken": each.broken}
                for each in self.invariants
            ],
            "explanations": [asdict(each) for each in self.explanations],
        }


def torture(seed: int, minutes: float, batches: int, say: Callable[[str], None]) -> Report:
    """Run a private stack, send batches and do harm for so many minutes; check what is left."""
    report = Report(seed, minutes)
    with tempfile.TemporaryDirectory(prefix="els-torture-") as folder:
        settings = Settings(home=Path(folder) / "home", sweep_every=1)
        commands = {
            "beat": BROKER + "exec celery -q -A tasks.app beat --pidfile=",
            "downstream": BROKER + LISTENER + settings.events_queue,
        }
        shared = {"ELS_VISIBILITY_TIMEOUT": str(VISIBILITY_S), "ELS_SWEEP_EVERY": "1"}
        with (
            open(os.devnull, "w") as silence,
            Stack(
                settings,
                echo=say,
                migrate=upgrade,
                processes=commands,
                env=shared,
                output=silence,
            ) as stack,
        ):
            chamber = Chamber(stack, report, Random(seed), say)
            thread = threading.Thread(target=chamber.run, args=(minutes, batches, stack.stop))
            thread.start()
            stack.wait()  # restarts what is killed; ended by the chamber, or by a signal
            chamber.ended.set()
            thread.join()
    if chamber.failure:
        raise chamber.failure
    return report


def show(report: Report, out: Console) -> None:
    """Tell everything to a person."""
    told = report.as_json()
    out.print(f"seed {report.seed}: {report.batches} batches, {report.messages} messages\n")
    for name, count in told["faults"].items():
        out.print(f"  {count:>4} x {name}", markup=False)
    times = told["recovery_s"]
    out.print(
        f"\nrecovery, {times['probes']} probes: median {times['median']} s, P99 {times['p99']} s\n"
    )
    show_invariants(report.invariants, out)
    for explanation in report.explanations:
        show_explanation(explanation)


class Chamber:
    """One session: the load, the faults, and at the end the look at what is left."""

    def __init__(
        self, stack: Stack, report: Report, random: Random, say: Callable[[str], None]
    ) -> None:
        self.stack = stack
        self.report = report
        self.random = random
        self.say = say
        self.ended = threading.Event()
        self.failure: Exception | None = None
        self.old: list[tuple[str, Event]] = []  # messages sent, to be replayed
        self.sent: dict[str, str | None] = {}  # batch -> class id
        found = stack.endpoints
        self.postgres = Proxy(urlsplit(found.database_url).port or 0, random)
        self.redis = Proxy(urlsplit(found.redis_url).port or 0, random)
        self.broker_url = found.redis_url.removesuffix("/0") + "/1"
        self.sender = Sender(self.broker_url, "els")
        self.slots = Slots(connect(found.redis_url))
        self.workers: list[subprocess.Popen[bytes]] = []

    def run(self, minutes: float, batches: int, finish: Callable[[], None]) -> None:
        """Torment for so many minutes or batches, then look; `finish` is called in any case."""
        try:
            with self.sender, self._proxied(), self._staffed():
                load = threading.Thread(target=self._load, args=(batches,))
                load.start()
                self._torment(time.monotonic() + minutes * 60, load)
                self.ended.set()
                load.join()
                self._look()
        except Exception as error:  # noqa: BLE001 - the edge of a thread; raised by `torture`
            self.failure = error
        finally:
            finish()

    # --- the load ------------------------------------------------------------------------------

    def _load(self, batches: int) -> None:
        """Send batches, several at once, until the torment ends."""
        random = Random(self.random.random())
        waiting: list[tuple[str, Event]] = []
        while not self.ended.is_set() or waiting:
            if not self.ended.is_set() and self.report.batches < batches and len(waiting) < 60:
                waiting += self._batch(random, f"torture-{self.report.batches:05d}")
                random.shuffle(waiting)
            if waiting:
                self._send(*waiting.pop())
            time.sleep(PACE_S)

    def _batch(self, random: Random, batch_id: str) -> list[tuple[str, Event]]:
        """Make the messages of a batch: its upload, some repeats, and one or two too many."""
        slots = random.choice([1, 2, 3, 5, 25, 25, 60])
        class_id = random.choice([None, None, "class-1"])
        numbers = range(slots + random.choice([0, 0, 1, 2]))
        rejected = {n for n in numbers if random.random() < 0.05}
        bulk = [n for n in numbers if n not in rejected] if random.random() < 0.3 else []
        messages = [("els.register_batch", _registration(batch_id, slots, class_id))]
        messages += [_arrival(batch_id, n, n in rejected) for n in numbers if n not in bulk]
        if bulk:
            entries = [client.content(n, f"text-{n:03d}.txt", 1000) for n in bulk]
            messages.append(("els.assign_contents", common(batch_id, contents=entries)))
        messages += random.choices(messages, k=max(1, len(messages) // 5))
        self.sent[batch_id] = class_id
        self.report.batches += 1
        return messages

    def _send(self, task: str, event: Event) -> None:
        """Send until the broker takes it, as every upstream service must."""
        while True:
            try:
                self.sender.send(task, event)
            except StackError:
                time.sleep(0.2)
                continue
            self.old.append((task, event))
            self.report.messages += 1
            return

    # --- the faults ----------------------------------------------------------------------------

    def _torment(self, until: float, load: threading.Thread) -> None:
        faults: list[tuple[str, Callable[[], object]]] = []
        while time.monotonic() < until and not self.ended.is_set() and load.is_alive():
            if not faults:  # each fault once, in random order, before any comes again
                faults = [*self._faults()]
                self.random.shuffle(faults)
            name, fault = faults.pop()
            self.report.faults[name] += 1
            self.say(f"{name}")
            fault()
            self._staff()
            self._probe(len(self.report.recoveries_s))

    def _faults(self) -> Iterator[tuple[str, Callable[[], object]]]:
        for point in POINTS:
            yield f"worker killed at {point}", partial(self._kill_at, point)
        for _ in range(3):
            yield "worker killed anywhere", self._kill_worker
        yield "beat killed", lambda: self._signal("beat", signal.SIGKILL)
        yield "consumer killed", lambda: self._signal("downstream", signal.SIGKILL)
        yield "Redis killed", lambda: self._signal("valkey", signal.SIGKILL)
        yield "Postgres stopped at once", lambda: self._signal("postgres", signal.SIGQUIT)
        yield "Postgres connections ended", self._terminate_backends
        yield "slots flushed", lambda: self._with_redis(self.slots.client.flushdb)
        yield "scripts flushed", lambda: self._with_redis(self.slots.client.script_flush)
        yield "Redis connections cut", self.redis.cut
        yield "Postgres connections cut", self.postgres.cut
        yield "Redis replies lost", lambda: self.redis.lose_replies(5)
        yield "Postgres replies lost", lambda: self.postgres.lose_replies(5)
        yield "Redis slow", lambda: self._slow(self.redis)
        yield "Postgres slow", lambda: self._slow(self.postgres)
        yield "old messages replayed", self._replay

    def _kill_at(self, point: str) -> None:
        """Run a worker that dies where it is told to, or, when it does not get there, anywhere."""
        doomed = self._start_worker(ELS_CRASHPOINT=point)
        deadline = time.monotonic() + 8
        while doomed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        doomed.kill()
        doomed.wait()

    def _kill_worker(self) -> None:
        worker = self.random.choice(self.workers)
        worker.kill()
        worker.wait()

    def _signal(self, name: str, number: signal.Signals) -> None:
        if pid := self.stack.pid(name):
            os.kill(pid, number)

    def _terminate_backends(self) -> None:
        with suppress(psycopg.Error), self._books() as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    def _with_redis(self, step: Callable[[], object]) -> None:
        with suppress(redis.RedisError):
            step()

    def _slow(self, proxy: Proxy) -> None:
        proxy.delay_s = 0.1
        time.sleep(2)
        proxy.delay_s = 0

    def _replay(self) -> None:
        for task, event in self.random.choices(self.old, k=20) if self.old else []:
            self._send(task, event)

    def _probe(self, number: int) -> None:
        """Send a batch of one and time it until it is ready: how long recovery takes."""
        batch_id = f"probe-{number:05d}"
        started = time.monotonic()
        self._send("els.register_batch", _registration(batch_id, 1))
        self._send(*_arrival(batch_id, 0, rejected=False))
        self.sent[batch_id] = None
        if self._until(lambda: self._status(batch_id) in FINAL, QUIET_S):
            self.report.recoveries_s.append(time.monotonic() - started)

    # --- the processes -------------------------------------------------------------------------

    @contextmanager
    def _proxied(self) -> Iterator[None]:
        self.postgres.start()
        self.redis.start()
        try:
            yield
        finally:
            self.postgres.stop()
            self.redis.stop()

    @contextmanager
    def _staffed(self) -> Iterator[None]:
        try:
            self._staff()
            yield
        finally:
            for worker in self.workers:
                worker.kill()
                worker.wait()

    def _staff(self) -> None:
        """Have as many healthy workers as there should be."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < WORKERS:
            self.workers.append(self._start_worker())

    def _start_worker(self, **more: str) -> "subprocess.Popen[bytes]":
        found = self.stack.endpoints
        log = Path(found.home) / "log" / "workers.log"
        ports = (urlsplit(found.database_url).port, urlsplit(found.redis_url).port)
        environ = {
            **self.stack.environ,
            **more,
            "ELS_DATABASE_URL": found.database_url.replace(
                f":{ports[0]}", f":{self.postgres.port}"
            ),
            "ELS_REDIS_URL": found.redis_url.replace(f":{ports[1]}", f":{self.redis.port}"),
            "ELS_BROKER_URL": self.broker_url.replace(f":{ports[1]}", f":{self.redis.port}"),
        }
        name = f"torture-{self.random.randrange(10**9)}@els"
        with log.open("ab") as file:
            return subprocess.Popen([*WORKER, "-n", name], env=environ, stdout=file, stderr=file)  # noqa: S603

    # --- the look ------------------------------------------------------------------------------

    def _look(self) -> None:
        """Wait for quiet, confirming students as a teacher would; then check everything."""
        self.say("quiet: no more faults")
        batches = sorted(self.sent)
        quiet = self._until(lambda: self._is_quiet(batches), QUIET_S)
        with self._books() as conn:
            checked = check_ledger(conn, batches)
            checked.append(check_slots(conn, self.slots, batches))
            ends = [b for b in batches if self._status(b) not in FINAL]
            checked.append(Invariant("Every batch came to its end", ends))
            posted, received = self._posted(batches), self._received()
            for event_id in posted.keys() - received:
                self.say(f"not received downstream: {event_id} of {posted[event_id]}")
            lost = sorted({posted[event_id] for event_id in posted.keys() - received})
            checked.append(Invariant("Every event arrived downstream", lost))
            broken = sorted({b for each in checked for b in each.broken} & self.sent.keys())
            self.report.explanations = [self._explain(conn, b) for b in broken[:EXPLAINED]]
        self.report.invariants = checked
        self.say("quiet" if quiet else f"not quiet after {QUIET_S:g} s")

    def _is_quiet(self, batches: list[str]) -> bool:
        waiting = [b for b in batches if self._status(b) not in FINAL]
        for batch_id in waiting:
            class_id = self.sent[batch_id]
            if class_id and self._status(batch_id) == "awaiting_student_validation":
                event = common(batch_id, class_id=class_id, associations=[], timeout_triggered=True)
                self._send("els.confirm_students", event)
        return not waiting and self._posted(batches).keys() <= self._received()

    def _explain(self, conn: Conn, batch_id: str) -> Explanation:
        signs = read_signs(self.slots.client, self.broker_url, "els")
        return explain(conn, self.slots, batch_id, signs)

    def _status(self, batch_id: str) -> str | None:
        with suppress(psycopg.Error), self._books() as conn:
            tracker = ledger.tracker(conn, batch_id)
            return tracker.status if tracker else None
        return None

    def _posted(self, batches: list[str]) -> dict[str, str]:
        """Read the ids of all events that were written, each with its batch."""
        with self._books() as conn:
            rows = conn.execute(
                "SELECT id, batch_id FROM event_outbox WHERE batch_id = ANY(%s)", [batches]
            ).fetchall()
        return {str(row["id"]): row["batch_id"] for row in rows}

    def _received(self) -> set[str]:
        path = Path(self.stack.endpoints.home) / "downstream.sqlite"
        with closing(sqlite3.connect(path, timeout=10)) as opened:
            return {row[0] for row in opened.execute("SELECT id FROM received_events")}

    def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    @contextmanager
    def _books(self) -> Iterator[Conn]:
        with ledger.connect_once(self.stack.endpoints.database_url) as conn:
            yield conn


def _arrival(batch_id: str, number: int, rejected: bool) -> tuple[str, Event]:
    name = f"text-{number:03d}.txt"
    if rejected:
        return "els.reject_content", client.rejection(batch_id, number, name, 0, "EMPTY_CONTENT")
    return "els.assign_content", common(batch_id, **client.content(number, name, 1000))


def _registration(batch_id: str, slots: int, class_id: str | None = None) -> Event:
    ids = [f"essay-{n:03d}" for n in range(slots)]
    return client.registration(batch_id, ids, class_id)
