"""Events leave the outbox at least once, in their order, and none is lost."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Event, Lock
from uuid import UUID

import pytest

from core import db
from core.errors import NotSent
from core.outbox import RELAY_CHUNK, relay, relay_all
from tests.core import looks
from tests.core.crowd import DEADLINE_S, at_once, blocked_by, until
from tests.core.story import assign, cancel, confirm, fill, register, texts, upload
from tests.factories import essay_ids, new_batch, registration, take


class Broker:
    """Takes events; refuses those at these positions, once each."""

    def __init__(self, refuse=()):
        self.taken, self.refuse, self.lock = [], list(refuse), Lock()

    def send(self, events):
        one_by_one(self.take)(events)

    def take(self, event):
        with self.lock:
            if len(self.taken) in self.refuse:
                self.refuse.remove(len(self.taken))
                raise ConnectionError("the broker is away")
            self.taken.append(event)

    def sequences(self, batch_id):
        return [event["sequence"] for event in self.taken if event["subject"] == batch_id]


def one_by_one(take):
    """Make what sends events of what takes one."""

    def send(events):
        for sent, event in enumerate(events):
            try:
                take(event)
            except ConnectionError as error:
                raise NotSent(str(error), sent) from error

    return send


@pytest.fixture
def ten_events(telling, batch_id):
    register(telling, batch_id, 12)
    upload(telling, batch_id, texts(10))
    return batch_id


def test_the_relay_sends_in_order_and_marks(pool, conn, ten_events):
    broker = Broker()

    sent = relay(pool, [ten_events], broker.send)

    assert sent == 10
    assert broker.sequences(ten_events) == list(range(1, 11))
    for row in looks.events(conn, ten_events):
        assert row["published_at"] is not None
        assert (row["attempts"], row["last_error"]) == (1, None)
    assert looks.broken(conn, ten_events) == []


def test_a_second_relay_finds_nothing_to_send(pool, ten_events):
    relay(pool, [ten_events], Broker().send)
    broker = Broker()

    assert relay(pool, [ten_events], broker.send) == 0
    assert broker.taken == []


def test_an_unknown_batch_has_nothing_to_send(pool, batch_id):
    assert relay(pool, [batch_id], Broker().send) == 0


@pytest.mark.parametrize("position", [0, 4, 9])
def test_a_refused_event_stops_its_batch_and_is_sent_first_next_time(
    pool, conn, ten_events, position
):
    broker = Broker(refuse=[position, position])

    sent = [relay(pool, [ten_events], broker.send) for _ in range(2)]

    assert sent == [position, 0]
    told = looks.events(conn, ten_events)
    assert [row["published_at"] is not None for row in told] == [
        number < position for number in range(10)
    ]
    assert told[position]["attempts"] == 2
    assert told[position]["last_error"] == "the broker is away"

    assert relay(pool, [ten_events], broker.send) == 10 - position
    assert broker.sequences(ten_events) == list(range(1, 11))
    row = looks.events(conn, ten_events)[position]
    assert (row["attempts"], row["last_error"]) == (3, None)


def test_more_events_than_one_chunk_leave_in_order(telling, pool, batch_id):
    count = RELAY_CHUNK * 2 + 7
    register(telling, batch_id, count)
    upload(telling, batch_id, texts(count))
    broker = Broker(refuse=[RELAY_CHUNK + 3])

    sent = relay(pool, [batch_id], broker.send), relay(pool, [batch_id], broker.send)

    assert sent == (RELAY_CHUNK + 3, RELAY_CHUNK + 4)
    assert broker.sequences(batch_id) == list(range(1, count + 1))


def test_relays_at_once_lose_nothing_and_keep_the_order(pool, ten_events):
    broker = Broker()

    sent = at_once(*[lambda: relay(pool, [ten_events], broker.send)] * 6)

    assert sum(sent) == 10
    assert broker.sequences(ten_events) == list(range(1, 11))


def test_a_relay_waits_for_one_that_is_under_way(pool, conn, ten_events):
    broker, may_go_on, pid = Broker(), Event(), []

    def slow(event):
        pid or pid.append(relaying(conn))
        assert may_go_on.wait(DEADLINE_S)
        broker.take(event)

    with ThreadPoolExecutor(2) as crowd:
        first = crowd.submit(relay, pool, [ten_events], one_by_one(slow))
        until(lambda: pid)
        second = crowd.submit(relay, pool, [ten_events], broker.send)
        until(lambda: blocked_by(conn, pid[0]))
        may_go_on.set()

        assert (first.result(), second.result()) == (10, 0)
    assert broker.sequences(ten_events) == list(range(1, 11))


def relaying(conn):
    """Name the session that relays."""
    row = conn.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'idle in transaction' AND starts_with(query, %s)",
        [db.outbox.TAKE_UNPUBLISHED.splitlines()[0]],
    ).fetchone()
    return row["pid"]


def test_a_relay_that_dies_sends_again(pool, conn, ten_events):
    broker = Broker()

    def dying(event):
        if event["sequence"] == 6:
            raise KeyboardInterrupt
        broker.take(event)

    with pytest.raises(KeyboardInterrupt):
        relay(pool, [ten_events], one_by_one(dying))
    relay(pool, [ten_events], broker.send)

    assert broker.sequences(ten_events) == [*range(1, 6), *range(1, 11)]
    assert len({event["id"] for event in broker.taken}) == 10
    assert looks.broken(conn, ten_events) == []


def test_an_event_that_is_posted_meanwhile_leaves_with_the_next_relay(telling, pool, ten_events):
    broker = Broker()

    def busy(event):
        if event["sequence"] == 3:
            assign(telling, ten_events, "text-meanwhile")
        broker.take(event)

    sent = [relay(pool, [ten_events], one_by_one(busy)) for _ in range(2)]

    assert sent == [10, 1]
    assert broker.sequences(ten_events) == list(range(1, 12))


def test_the_relay_of_all_sends_what_every_batch_has(lifecycle, pool, conn):
    until(lambda: relay_all(pool, Broker().send) == 0)  # what other tests left
    batches = [new_batch() for _ in range(4)]
    for batch_id in batches:
        fill(lifecycle, batch_id, 2)
        lifecycle.complete(batch_id)
    broker = Broker()

    sent = at_once(*[lambda: relay_all(pool, broker.send)] * 3)

    assert sum(sent) == 8
    for batch_id in batches:
        assert broker.sequences(batch_id) == [1, 2]
        assert looks.broken(conn, batch_id, at_rest=True) == []


def test_a_batch_that_cannot_be_sent_holds_up_no_other(lifecycle, pool, conn):
    until(lambda: relay_all(pool, Broker().send) == 0)
    away, batches = new_batch(), [new_batch() for _ in range(4)]
    for batch_id in [away, *batches]:
        fill(lifecycle, batch_id, 1)
        lifecycle.complete(batch_id)
    broker = Broker()

    def picky(event):
        if event["subject"] == away:
            raise ConnectionError("not this one")
        broker.take(event)

    assert relay_all(pool, one_by_one(picky)) == 8
    assert relay_all(pool, broker.send) == 2


def test_events_of_several_batches_leave_by_one_commit_in_the_order_of_each(telling, pool, conn):
    batches = [new_batch() for _ in range(3)]
    for batch_id in batches:
        register(telling, batch_id, 5)
        upload(telling, batch_id, texts(5))
    broker = Broker(refuse=[7])

    sent = relay(pool, batches[:2], broker.send), relay(pool, batches[:2], broker.send)

    assert sent == (7, 3)
    assert [broker.sequences(batch_id) for batch_id in batches] == [[1, 2, 3, 4, 5]] * 2 + [[]]
    moments = {row["published_at"] for b in batches[:2] for row in looks.events(conn, b)}
    assert len(moments) == 2


def test_an_event_is_a_cloud_event(lifecycle, pool, conn, batch_id):
    event = registration(batch_id, 2, class_id="class-1")
    take(lifecycle, "els.register_batch", event)
    upload(lifecycle, batch_id, texts(3))
    lifecycle.complete(batch_id)
    confirm(lifecycle, batch_id, {essay_ids(1)[0]: "student-1"})
    other = new_batch()
    register(lifecycle, other)
    cancel(lifecycle, other)
    broker = Broker()

    relay(pool, [batch_id], broker.send)
    relay(pool, [other], broker.send)

    assert [told["type"] for told in broker.taken] == [
        "ExcessContentProvisioned",
        "BatchContentProvisioningCompleted",
        "BatchEssaysReady",
        "BatchCancelled",
    ]
    stored = looks.events(conn, batch_id) + looks.events(conn, other)
    for told, row in zip(broker.taken, stored, strict=True):
        assert set(told) == {
            "specversion",
            "id",
            "source",
            "type",
            "subject",
            "time",
            "datacontenttype",
            "sequence",
            "correlationid",
            "data",
        }
        assert told["specversion"] == "1.0"
        assert UUID(told["id"]) == row["id"]
        assert told["source"] == "urn:essay-lifecycle-service"
        assert told["subject"] == told["data"]["batch_id"] == row["batch_id"]
        assert told["time"].endswith("Z")
        assert datetime.fromisoformat(told["time"]) == row["created_at"]
        assert told["datacontenttype"] == "application/json"
        assert told["sequence"] == row["sequence"]
        assert told["correlationid"] == str(row["correlation_id"])
        assert told["data"] == row["data"]
    assert broker.taken[0]["correlationid"] == event["correlation_id"]


def test_a_trace_is_passed_on(lifecycle, pool, conn, batch_id):
    register(lifecycle, batch_id)
    cancel(lifecycle, batch_id)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    conn.execute("UPDATE event_outbox SET traceparent = %s WHERE batch_id = %s", [trace, batch_id])
    broker = Broker()

    relay(pool, [batch_id], broker.send)

    assert broker.taken[0]["traceparent"] == trace
