"""The examples beside a real stack: stock Celery that loses nothing and does nothing twice."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import pytest

from ops import queries
from ops.stack.embedded import leashed
from ops.stack.proxy import Proxy
from tests import factories as make
from tests.live.conftest import until

ROOT = Path(__file__).parents[2]
CLOSED = 9  # a port that nobody listens on
KILLS = 50
STOCK, DURABLE = "receiver", "tests.live.durable_receiver"


class Shop:
    """A folder with the example sender and receiver, on the broker of some workers."""

    def __init__(self, folder, workers):
        self.folder, self.workers = folder, workers
        self.queue = f"{workers.queue}.nlp"
        self.broker_url = workers.broker_url
        self.processes = []

    @property
    def environ(self):
        return {
            **os.environ,
            "CELERY_BROKER_URL": self.broker_url,
            "ELS_QUEUE": self.workers.queue,
            "PYTHONPATH": f"{ROOT / 'examples'}:{ROOT}",
        }

    def routes(self, *types, task="els.event"):
        """The setting that leads these types to the receiver."""
        route = [{"task": task, "queue": self.queue}]
        return {"ELS_EVENT_ROUTES": json.dumps(dict.fromkeys(types, route))}

    def receive(self, app=STOCK):
        """Start the receiver."""
        command = ["-m", "celery", "-A", app, "worker", "-Q", self.queue, "--pool", "solo"]
        name = ["-n", f"{self.queue}@test", "--loglevel", "INFO"]
        return self._start([*command, *name], "receiver")

    def send(self, *messages):
        """Start the sender with these pairs of a task and an event."""
        lines = [json.dumps({"task": task, "event": event}) for task, event in messages]
        given = self.folder / f"lines-{len(self.processes)}"
        given.write_text("".join(f"{line}\n" for line in lines))
        with given.open() as stdin:
            return self._start([str(ROOT / "examples/sender.py")], "sender", stdin)

    def _start(self, arguments, name, stdin=None):
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            process = subprocess.Popen(
                leashed([sys.executable, *arguments], signal.SIGKILL),
                cwd=self.folder,
                env=self.environ,
                stdin=stdin,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def query(self, statement, file="receiver.sqlite"):
        with closing(sqlite3.connect(self.folder / file, timeout=10)) as db:
            try:
                return db.execute(statement).fetchall()
            except sqlite3.OperationalError:  # no table yet
                return []

    def inbox(self):
        return [json.loads(event) for (event,) in self.query("SELECT event FROM inbox")]

    def pipelines(self):
        return Counter(batch for (batch,) in self.query("SELECT batch_id FROM pipelines"))

    def spooled(self):
        return len(self.query("SELECT line FROM spool", "spool.sqlite"))

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait(10)
        if self.workers.on_rabbitmq:
            with self.workers.broker() as connection:
                connection.default_channel.queue_delete(self.queue)


@pytest.fixture
def shop(workers, tmp_path):
    opened = Shop(tmp_path, workers)
    yield opened
    workers.stop()
    opened.close()


def ready_batch():
    """Return a batch and the messages that make it ready."""
    batch = make.new_batch()
    return batch, [
        ("els.register_batch", make.registration(batch, 1)),
        ("els.assign_content", make.content(batch)),
    ]


def stored_ids(events_of, batches):
    return {str(row["id"]) for batch in batches for row in events_of(batch)}


def test_an_event_waits_for_a_receiver_that_has_never_run(workers, shop, events_of):
    workers.start(**shop.routes("*"))
    batch, messages = ready_batch()
    assert shop.send(*messages).wait(60) == 0
    until(
        lambda: len(rows := events_of(batch)) == 2 and all(row["published_at"] for row in rows),
        what="both events are delivered",
    )

    shop.receive()

    until(lambda: len(shop.inbox()) == 2, what="both are received")
    assert {event["id"] for event in shop.inbox()} == stored_ids(events_of, [batch])
    assert shop.pipelines() == {batch: 1}


def test_the_receiver_keeps_an_event_of_a_task_that_it_does_not_have(workers, shop):
    workers.start(**shop.routes("BatchEssaysReady", task="els.events.not_invented_yet"))
    shop.receive()
    batch, messages = ready_batch()

    shop.send(*messages)

    until(lambda: shop.pipelines() == {batch: 1}, what="the batch is received")
    assert [event["type"] for event in shop.inbox()] == ["BatchEssaysReady"]


def test_an_event_whose_effect_fails_is_kept(workers, shop):
    with closing(sqlite3.connect(shop.folder / "receiver.sqlite")) as db, db:
        db.execute("CREATE TABLE pipelines (batch_id CHECK (false))")
    workers.start(**shop.routes("*"))
    shop.receive()
    _, messages = ready_batch()

    shop.send(*messages)

    until(lambda: len(shop.inbox()) == 2, what="both events are kept")
    until(
        lambda: sorted(shop.query("SELECT done FROM inbox")) == [(0,), (1,)],
        what="only the event without an effect is done",
    )


def test_a_receiver_waits_while_its_database_is_away(workers, shop):
    with closing(sqlite3.connect(shop.folder / "receiver.sqlite", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        workers.start(**shop.routes("BatchEssaysReady"))
        shop.receive()
        batch, messages = ready_batch()
        shop.send(*messages)
        until(lambda: "received" in (shop.folder / "receiver.log").read_text(), what="it has it")
        db.execute("ROLLBACK")

    until(lambda: shop.pipelines() == {batch: 1}, what="the batch is received")


@pytest.fixture
def proxy(workers, shop):
    """A network between the shop and the broker."""
    url = urlsplit(workers.broker_url)
    between = Proxy(url.port, Random(1))
    between.start()
    shop.broker_url = url._replace(
        netloc=url.netloc.replace(f":{url.port}", f":{between.port}")
    ).geturl()
    yield between
    between.stop()


def test_a_broker_that_is_away_loses_nothing_and_doubles_nothing(
    workers, shop, proxy, events_of, conn
):
    workers.start(**shop.routes("*"))
    shop.receive()
    first, early = ready_batch()
    shop.send(*early)
    until(lambda: shop.pipelines() == {first: 1}, what="the network works")

    proxy.target_port = CLOSED
    proxy.cut()
    batches, messages = zip(*(ready_batch() for _ in range(5)), strict=True)
    sending = shop.send(*(message for pair in messages for message in pair))
    until(lambda: shop.spooled() == 10, what="everything is spooled")
    sending.kill()  # and the spool outlives the sender
    sending.wait(10)
    sending = shop.send()
    with pytest.raises(subprocess.TimeoutExpired):
        sending.wait(5)
    assert shop.spooled() == 10
    proxy.target_port = urlsplit(workers.broker_url).port

    assert sending.wait(60) == 0
    assert shop.spooled() == 0
    until(lambda: shop.pipelines() == dict.fromkeys([first, *batches], 1), 60, "all are ready")
    assert {event["id"] for event in shop.inbox()} == stored_ids(events_of, [first, *batches])
    outcomes = conn.execute(
        "SELECT count(*) AS n FROM idempotency_keys WHERE batch_id = ANY(%s)", [list(batches)]
    ).fetchone()
    assert outcomes["n"] == 10


def killed_again_and_again(workers, shop, app):
    """Kill the receiver while events come; return the batches that became ready meanwhile."""
    batches = []
    for _ in range(KILLS):
        receiver, before = shop.receive(app), len(shop.inbox())
        for _ in range(4):
            batch, messages = ready_batch()
            batches.append(batch)
            for message in messages:
                workers.send(*message)
        until(lambda before=before: len(shop.inbox()) > before, 60, "the receiver receives")
        receiver.kill()
        receiver.wait(10)
    return batches


def has_each_effect_once(shop, conn, batches):
    """Wait until both events of each batch are received; then each must have had its effect once.

    Where beat runs, the receiver also gets events of batches that other tests have left: the sweep
    completes these, and the relay knows no other route.
    """
    query = "SELECT id::text FROM event_outbox WHERE batch_id = ANY(%s)"

    def lacking():
        stored = {row["id"] for row in conn.execute(query, [batches])}
        return 2 * len(batches) - len(stored & {event["id"] for event in shop.inbox()})

    until(lambda: lacking() == 0, 120, "every event is received")
    pipelines = shop.pipelines()
    assert {batch: pipelines[batch] for batch in batches} == dict.fromkeys(batches, 1)


@pytest.mark.outage
@pytest.mark.timeout(900)
def test_a_receiver_that_is_killed_fifty_times_has_each_effect_once(workers, shop, conn):
    workers.start(**shop.routes("*"))
    app = STOCK if workers.on_rabbitmq else DURABLE

    batches = killed_again_and_again(workers, shop, app)
    shop.receive(app)

    has_each_effect_once(shop, conn, batches)


@pytest.mark.outage
@pytest.mark.timeout(900)
@pytest.mark.redis_only("it is about the stock transport of Redis")
def test_what_stock_celery_loses_on_redis_comes_again(workers, shop, conn):
    workers.start(**shop.routes("*"))
    workers.start(command="beat")

    batches = killed_again_and_again(workers, shop, STOCK)
    delivered = "SELECT count(published_at) AS n FROM event_outbox WHERE batch_id = ANY(%s)"
    until(
        lambda: conn.execute(delivered, [batches]).fetchone()["n"] == 2 * len(batches),
        60,
        "each event is delivered, while nobody is there to take it",
    )
    for batch in batches:
        now = datetime.now(UTC)
        meant = queries.Events(now - timedelta(hours=1), now, batch)
        queries.republish(conn, meant, limit=1_000)
    shop.receive()

    has_each_effect_once(shop, conn, batches)


# --- what the service refuses, its sender hears -------------------------------------------------


def bad_messages():
    """Return what no sender should send, by the code of its refusal."""
    batch, messages = ready_batch()
    assigned = messages[1][1]
    other = make.registration(batch, 2, course_code="other")
    stranger = make.new_batch()
    confirmation = partial(make.confirmation, associations=[make.association("essay-none")])
    regular = make.registration(make.new_batch(), 1, class_id="class-1")
    return [*messages, ("els.register_batch", regular)], [
        ("VALIDATION_ERROR", "els.assign_content", make.content(batch, file_size_bytes=-1)),
        ("VALIDATION_ERROR", "els.register_batch", {}),
        ("IDEMPOTENCY_CONFLICT", "els.assign_content", {**assigned, "text_storage_id": "other"}),
        ("REGISTRATION_CONFLICT", "els.register_batch", other),
        ("UNKNOWN_BATCH", "els.cancel_batch", make.cancellation(stranger)),
        ("UNKNOWN_BATCH", "els.amend_batch", make.amendment(stranger)),
        ("UNKNOWN_ESSAY", "els.confirm_students", confirmation(regular["batch_id"])),
        ("WRONG_BATCH_STATE", "els.cancel_batch", make.cancellation(batch)),
        ("UNKNOWN_TASK", "els.asign_content", make.content(batch)),
    ]


def test_every_kind_of_bad_input_comes_back_as_a_refusal(workers, shop, conn):
    workers.start(**shop.routes("MessageRefused"))
    workers.start(command="beat")
    shop.receive()
    good, bad = bad_messages()

    shop.send(*good, *(message[1:] for message in bad)).wait(60)
    event = make.content(make.new_batch())
    workers.send("els.assign_content", event, serializer="pickle")
    codes = Counter([code for code, *_ in bad] + ["MALFORMED_MESSAGE"])
    if not workers.on_rabbitmq:  # which drops an expired message: tests/rabbitmq/test_dropped.py
        late = datetime.now(UTC) - timedelta(hours=1)
        workers.send("els.assign_content", event, expires=late)
        codes["EXPIRED"] = 1

    until(lambda: len(shop.inbox()) >= codes.total(), 60, "every refusal is received")
    refused = [each["data"] for each in shop.inbox()]
    assert Counter(each["code"] for each in refused) == codes
    named = {each["event_id"]: each["code"] for each in refused if "event_id" in each}
    for code, _, event in bad:
        if "event_id" in event:
            assert named[event["event_id"]] == code
    assert len(shop.query("SELECT id FROM inbox")) == codes.total()
