"""The examples beside a real stack: stock Celery that loses nothing and does nothing twice."""

import os
import sqlite3
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from random import Random
from urllib.parse import urlsplit

import pytest

from ops.queries import outbox
from ops.stack.proxy import Proxy
from tests.live.conftest import until
from tests.live.shop import STOCK, Shop, ready_batch

CLOSED = 9  # a port that nobody listens on
AWAY_S = float(os.environ.get("AWAY_S", "5"))  # how long the broker is away
KILLS = 50
DURABLE = "tests.live.durable_receiver"


@pytest.fixture
def shop(workers, tmp_path):
    opened = Shop(tmp_path, workers)
    yield opened
    workers.stop()
    opened.close()


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


@pytest.mark.timeout(AWAY_S + 300)
def test_a_broker_that_is_away_loses_nothing_and_doubles_nothing(
    workers, shop, proxy, events_of, conn
):
    workers.start(**shop.routes("*"))
    shop.receive()
    first, early = ready_batch()
    shop.send(*early)
    until(lambda: shop.pipelines() == {first: 1}, 60, "the network works")

    proxy.target_port = CLOSED
    proxy.cut()
    batches, messages = zip(*(ready_batch() for _ in range(5)), strict=True)
    sending = shop.send(*(message for pair in messages for message in pair))
    until(lambda: shop.spooled() == 10, what="everything is spooled")
    sending.kill()  # and the spool outlives the sender
    sending.wait(10)
    sending = shop.send()
    with pytest.raises(subprocess.TimeoutExpired):
        sending.wait(AWAY_S)
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
        meant = outbox.Events(now - timedelta(hours=1), now, batch)
        outbox.republish(conn, meant, limit=1_000)
    shop.receive()

    has_each_effect_once(shop, conn, batches)
