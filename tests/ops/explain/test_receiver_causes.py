"""A delivered event that nobody takes: which one it is, in which queue, and since when."""

from uuid import uuid4

import pytest

from ops.explain.receiver_causes import receiver_causes
from ops.receivers import Receivers
from tests.core import looks
from tests.core.story import fill
from tests.ops.explain.receivers import event_queue

OTHER_TYPES = {"BatchCancelled", "BatchReadinessTimeout"}


@pytest.fixture
def causes_of(conn):
    def named(batch_id, *queues, nowhere=()):
        receivers = Receivers(queues, frozenset(nowhere))
        facts = looks.batch(conn, batch_id) or {}
        return list(receiver_causes(conn, batch_id, facts, receivers))

    return named


@pytest.fixture
def published(lifecycle, conn):
    """Make a batch ready whose two events were published so many minutes ago; return its id."""

    def publish(batch_id, minutes):
        fill(lifecycle, batch_id, 1)
        lifecycle.complete(batch_id)
        conn.execute(
            "UPDATE event_outbox SET published_at = now() - make_interval(mins => %s)"
            " WHERE batch_id = %s",
            [minutes, batch_id],
        )
        return batch_id

    return publish


@pytest.fixture
def later(conn, published, batch_id):
    """A batch of a while ago; no event of another test was published after it."""
    conn.execute("UPDATE event_outbox SET published_at = '2020-01-01Z'")
    return published(f"{batch_id}-later", 5)


def head_of(conn, batch_id):
    return looks.events(conn, batch_id)[0]["id"]


def test_an_event_waits_where_no_more_were_published_later_than_wait(
    causes_of, published, batch_id, later
):
    published(batch_id, 10)

    assert causes_of(batch_id, event_queue(messages=2)) == []
    [cause] = causes_of(batch_id, event_queue(messages=3))
    assert cause.code == "event_not_taken"
    assert "in queue nlp, where 3 wait" in cause.title
    assert [each.code for each in causes_of(later, event_queue(messages=1))] == ["event_not_taken"]


def test_an_event_waits_if_the_head_of_its_queue_is_no_younger(
    causes_of, conn, published, batch_id, later
):
    published(batch_id, 10)
    old, new = head_of(conn, batch_id), head_of(conn, later)

    assert causes_of(batch_id, event_queue(messages=99, oldest=new)) == []
    [cause] = causes_of(later, event_queue(messages=1, oldest=old))
    assert cause.since == looks.events(conn, later)[0]["published_at"]


def test_a_head_that_is_no_event_of_ours_counts_as_unknown(causes_of, published, batch_id, later):
    published(batch_id, 10)

    assert causes_of(batch_id, event_queue(messages=2, oldest=uuid4())) == []
    assert causes_of(batch_id, event_queue(messages=3, oldest=uuid4())) != []


def test_an_event_of_just_now_is_no_cause(causes_of, published, batch_id, later):
    published(batch_id, 0)

    assert causes_of(batch_id, event_queue(messages=9)) == []


def test_an_empty_queue_is_no_cause(causes_of, later):
    assert causes_of(later, event_queue(messages=0)) == []


def test_each_queue_has_the_types_that_are_routed_there(causes_of, later):
    ready = event_queue("nlp", ["BatchEssaysReady"], messages=1)
    others = event_queue("audit", OTHER_TYPES, messages=7)
    all_of_them = event_queue("billing", messages=2)

    titles = [cause.title for cause in causes_of(later, ready, others, all_of_them)]

    assert ["nlp" in titles[0], "billing" in titles[1], len(titles)] == [True, True, 2]
    assert "BatchEssaysReady is in queue nlp" in titles[0]


def test_an_event_that_was_not_delivered_is_no_cause_of_this_kind(
    causes_of, lifecycle, conn, batch_id
):
    fill(lifecycle, batch_id, 1)
    lifecycle.complete(batch_id)

    assert causes_of(batch_id, event_queue(messages=9)) == []


@pytest.mark.parametrize(
    ("receivers", "says"),
    [
        (None, "down, too slow, or consumes another queue"),
        (0, "no receiver consumes this queue"),
        (2, "connected, but"),
    ],
)
def test_the_reason_is_what_the_broker_knows(causes_of, later, receivers, says):
    [cause] = causes_of(later, event_queue(messages=1, receivers=receivers))

    assert says in cause.reason


def test_readiness_that_goes_nowhere_is_told_once_the_batch_is_ready(causes_of, later, lifecycle):
    fill(lifecycle, f"{later}-open", 2, class_id="class-1")

    assert causes_of(f"{later}-open", nowhere=["BatchEssaysReady"]) == []
    assert causes_of(later, nowhere=OTHER_TYPES) == []
    [cause] = causes_of(later, nowhere=["BatchEssaysReady"])
    assert cause.code == "readiness_goes_nowhere"
    assert cause.command == f"els outbox republish --batch {later} --since 30d"


def test_a_batch_that_nobody_knows_has_no_event(causes_of, batch_id):
    assert causes_of(batch_id, event_queue(messages=1), nowhere=["BatchEssaysReady"]) == []
