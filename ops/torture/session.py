"""One session: the load, the faults, and at the end the look at what is left."""

import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from random import Random

import psycopg
import redis

from core.db.connection import Conn
from core.errors import StackError
from core.servers.postgres_url import address
from core.servers.redis_client import connect
from core.settings import Settings
from core.slots import CLAIM_LEASE, Slots
from migrations import upgrade
from ops.client import Sender
from ops.demo.play import CONSUMER
from ops.explain.explanation import Explanation, explain
from ops.heartbeat import heartbeat_or_none
from ops.queries.invariants import Invariant, check_batches, check_slots
from ops.stack.child import Child
from ops.stack.home import make_home
from ops.stack.server import until
from ops.stack.supervisor import Stack
from ops.torture.brokers import QUEUE, Broker, RabbitMQ, ValkeyBroker
from ops.torture.faults import Fault, NoTicks, chosen
from ops.torture.load import AWAITS_STUDENTS, FINAL, RATE, Load, statuses
from ops.torture.report import Report
from ops.torture.stage import ENVIRON, WAL_MB, SmallDisk, Stage, beat

# How long the service may take to mend everything after the last fault: a claim may run out first.
QUIET_S = CLAIM_LEASE.total_seconds() + 60
PROBE_S = 120  # how long a probe is waited for; long before that it counts as late
LISTENER = CONSUMER.replace("examples.consumer", "ops.demo.event_consumer")
EXPLAINED = 5  # broken batches that are explained
LONGEST_FAULT_S, SHORTEST_FAULT_S = 75.0, 3.0


def torture(  # noqa: PLR0913 - an option each
    seed: int,
    minutes: float,
    batches: int,
    say: Callable[[str], None],
    *,
    only: tuple[str, ...] = (),
    longest_s: float | None = None,
    logs: Path | None = None,
    rabbitmq: bool = False,
    rate: float = RATE,
) -> Report:
    """Run a private stack, send batches and do harm for so many minutes; check what is left.

    `only` names the faults to do. No fault lasts longer than `longest_s`: by default an eighth of
    the session, at least 3 s and at most 75. `logs` gets what the processes wrote. `rabbitmq` takes
    a node of RabbitMQ for the broker, in place of a Valkey. `rate`: messages a second.
    Raises StackError for a fault that there is not, and where RabbitMQ is not installed.
    """
    kind = broker_kind(rabbitmq)
    faults = chosen(only, kind)
    longest_s = longest_s or min(max(minutes * 60 / 8, SHORTEST_FAULT_S), LONGEST_FAULT_S)
    report = Report(seed, minutes, longest_s, kind.name)
    say(f"no fault lasts longer than {longest_s:g} s")
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="els-torture-")))
        disk = SmallDisk(folder / "disk")
        undo.callback(disk.unmount)
        disk.mount()
        broker = kind(folder / "broker")
        undo.callback(broker.stop)
        broker.start()
        home = _home(folder, disk)
        if logs:
            undo.callback(shutil.copytree, home / "log", logs, dirs_exist_ok=True)
            copied = logs / "broker"
            undo.callback(shutil.copytree, broker.log.parent, copied, dirs_exist_ok=True)
        stack = undo.enter_context(_stack(home, broker, say, undo))
        stack.watch(Child("broker", broker.launch, broker.log, broker.process))
        stage = Stage(stack, broker, disk, Random(seed), longest_s)
        session = Session(stage, report, faults, say, rate)
        thread = threading.Thread(target=session.run, args=(minutes, batches, stack.stop))
        thread.start()
        stack.wait()  # restarts what is killed; ended by the session, or by a signal
        if not session.finished:
            session.give_up()
        thread.join()
    if not session.finished:
        raise KeyboardInterrupt
    if session.failure:
        raise session.failure
    return report


def broker_kind(rabbitmq: bool) -> type[RabbitMQ | ValkeyBroker]:
    """Choose the broker."""
    return RabbitMQ if rabbitmq else ValkeyBroker


def _home(folder: Path, disk: SmallDisk) -> Path:
    """Make the home of the stack; the files of Postgres are on the small disk, if there is one."""
    home = folder / "home"
    make_home(home)
    if disk.why_not is None:
        (home / "postgres").symlink_to(disk.path / "postgres")
    return home


def _stack(home: Path, broker: Broker, say: Callable[[str], None], undo: ExitStack) -> Stack:
    settings = Settings(home=home, sweep_every=1, broker_url=broker.url)
    schedule = "-q -A tasks.app beat --pidfile="
    return Stack(
        settings,
        echo=say,
        migrate=_migrate,
        processes={
            "beat": beat(schedule, '"$ELS_HOME/beat-clock"'),
            "downstream": LISTENER + settings.events_queue,
        },
        env=ENVIRON,
        output=undo.enter_context(open(os.devnull, "w")),
    )


def _migrate(url: str) -> None:
    """Bring the schema up, and keep the write-ahead log small, as the disk may be."""
    upgrade(url)
    with psycopg.connect(address(url).conninfo, autocommit=True) as conn:
        conn.execute(f"ALTER SYSTEM SET max_wal_size = '{WAL_MB}MB'")
        conn.execute("SELECT pg_reload_conf()")


class Session:
    """The load, the faults, and at the end the look at what is left."""

    def __init__(
        self,
        stage: Stage,
        report: Report,
        faults: list[Fault],
        say: Callable[[str], None],
        rate: float,
    ) -> None:
        self.stage = stage
        self.report = report
        self.say = say
        self.failure: Exception | None = None
        self.finished = False
        self.silences: list[str] = []  # of beat
        self.undone: list[str] = []  # faults that could not be begun, or not be ended
        self.faults = []
        for fault in faults:
            if why := fault.why_not(stage):
                report.skipped[fault.name] = why
                say(f"skipped: {fault.name}: {why}")
            else:
                self.faults.append(fault)
        sender = Sender(stage.broker_url, QUEUE)
        self.load = Load(sender, Random(stage.random.random()), rate)
        stage.replay = partial(self.load.replay, 20, stage.random)
        self.slots = Slots(connect(stage.slots_url))

    def give_up(self) -> None:
        """End at once and look at nothing, as nobody restarts what is down any more."""
        self.load.given_up.set()
        self.stage.ended.set()

    def run(self, minutes: float, batches: int, finish: Callable[[], None]) -> None:
        """Torment for so many minutes or batches, then look; `finish` is called in any case."""
        try:
            with self.load.sender, self.stage.open():
                arguments = (batches, self.stage.ended, self.stage.broker.waiting)
                load = threading.Thread(target=self.load.run, args=arguments)
                load.start()
                self._probe("first", time.monotonic())  # workers that only start meet no fault
                self.stage.broker.settle()
                self._torment(time.monotonic() + minutes * 60, load)
                self.stage.ended.set()
                load.join()
                if not self._given_up():
                    self._look()
        except Exception as error:  # noqa: BLE001 - the edge of a thread; raised by `torture`
            self.failure = error
        finally:
            self.report.batches = self.load.made
            self.report.messages = len(self.load.messages)
            self.finished = not self._given_up()
            finish()

    def _torment(self, until_s: float, load: threading.Thread) -> None:
        coming: list[Fault] = []
        while time.monotonic() < until_s and not self.stage.ended.is_set() and load.is_alive():
            if not coming:  # each fault once, in random order, before any comes again
                coming = list(self.faults)
                self.stage.random.shuffle(coming)
            if not coming:
                raise StackError("none of the faults that were asked for can be done here")
            self._strike(coming.pop())

    def _strike(self, fault: Fault) -> None:
        number = sum(self.report.faults.values())
        self.report.faults[fault.name] += 1
        self.say(fault.name)
        try:
            fault.strike(self.stage)
        except NoTicks as silence:
            self.silences.append(str(silence))
        except (StackError, OSError, psycopg.Error, redis.RedisError) as error:
            self.undone.append(f"{fault.name}: {error}")
        began = time.monotonic()
        if ended := self.stage.staff():
            self.report.exits[fault.name] += ended
        seconds = self._probe(f"probe-{number:05d}", began)
        self.report.recoveries.append((fault.name, f"probe-{number:05d}", seconds))

    def _probe(self, batch_id: str, began: float) -> float:
        """Send a batch of one; return after how many seconds it was ready, or given up for late."""
        self.load.probe(batch_id)
        until(lambda: self._given_up() or self._status(batch_id) in FINAL, PROBE_S)
        return time.monotonic() - began

    def _given_up(self) -> bool:
        return self.load.given_up.is_set()

    # --- the look ------------------------------------------------------------------------------

    def _look(self) -> None:
        """Wait for quiet, confirming students as a teacher would; then check everything."""
        self.say("quiet: no more faults")
        batches = sorted(self.load.batches)
        quiet = until(lambda: self._given_up() or self._is_quiet(batches), QUIET_S)
        with self.stage.connection() as conn:
            checked = check_batches(conn, batches)
            checked.append(check_slots(conn, self.slots, batches))
            found = statuses(conn, batches)
            ends = [b for b in batches if found.get(b) not in FINAL]
            checked.append(Invariant("Every batch came to its end", ends))
            checked.append(self._check_downstream(conn, batches))
            checked += [*self.load.check(conn), self.report.late()]
            checked.append(Invariant("The sweep ran, whatever beat's clock", self.silences))
            checked.append(Invariant("Every fault could be begun and ended", self.undone))
            broken = sorted({b for each in checked for b in each.broken} & {*batches})
            self.report.explanations = [self._explain(conn, b) for b in broken[:EXPLAINED]]
        self.report.invariants = checked
        self.say("quiet" if quiet else f"not quiet after {QUIET_S:g} s")

    def _check_downstream(self, conn: Conn, batches: list[str]) -> Invariant:
        posted, received = self._posted(conn, batches), self._received()
        missing = posted.keys() - received
        for event_id in missing:
            self.say(f"not received downstream: {event_id} of {posted[event_id]}")
        lost = sorted({posted[event_id] for event_id in missing})
        return Invariant("Every event arrived downstream", lost)

    def _is_quiet(self, batches: list[str]) -> bool:
        with suppress(psycopg.OperationalError), self.stage.connection() as conn:
            found = statuses(conn, batches)
            for batch_id, status in found.items():
                if status == AWAITS_STUDENTS:
                    self.load.confirm_students(batch_id)
            at_their_end = all(found.get(batch_id) in FINAL for batch_id in batches)
            return (
                at_their_end
                and not self.load.unanswered(conn)
                and self._posted(conn, batches).keys() <= self._received()
            )
        return False

    def _explain(self, conn: Conn, batch_id: str) -> Explanation:
        signs = heartbeat_or_none(self.slots.client, self.stage.broker_url, [QUEUE])
        return explain(conn, self.slots, batch_id, signs)

    def _status(self, batch_id: str) -> str | None:
        with suppress(psycopg.Error), self.stage.connection() as conn:
            return statuses(conn, [batch_id]).get(batch_id)
        return None

    def _posted(self, conn: Conn, batches: list[str]) -> dict[str, str]:
        """Read the ids of all events that were written, each with its batch."""
        rows = conn.execute(
            "SELECT id, batch_id FROM event_outbox WHERE batch_id = ANY(%s)", [batches]
        ).fetchall()
        return {str(row["id"]): row["batch_id"] for row in rows}

    def _received(self) -> set[str]:
        path = self.stage.home / "downstream.sqlite"
        with closing(sqlite3.connect(path, timeout=10)) as opened:
            tables = "SELECT 1 FROM sqlite_master WHERE name = 'received_events'"
            if not opened.execute(tables).fetchone():
                return set()  # the consumer has received nothing yet
            return {row[0] for row in opened.execute("SELECT id FROM received_events")}
