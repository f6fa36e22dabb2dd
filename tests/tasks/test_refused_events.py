"""A refused message is announced where a route asks for it: once, and with its dead letter."""

import pytest

from core import db
from core.catalogue import MESSAGE_REFUSED
from core.db.dead_letters import DeadLetter
from core.events import cloud_event
from core.outbox import relay_all
from core.settings import Route
from ops.reference.schemas import event_faults
from tasks import dead_letters
from tests.core import looks
from tests.factories import cancellation, content, new_batch, registration

REGISTER, ASSIGN, CANCEL = "els.register_batch", "els.assign_content", "els.cancel_batch"
REFUSED = MESSAGE_REFUSED.name


@pytest.fixture
def routed(monkeypatch):
    routes = {REFUSED: [Route(task="sender.refused", queue="sender")]}
    changed = dead_letters.settings.model_copy(update={"event_routes": routes})
    monkeypatch.setattr(dead_letters, "settings", changed)


@pytest.fixture
def relayed(pool):
    """Relay everything; return the refusals that were sent since the last call."""

    def relay():
        sent = []
        relay_all(pool, sent.extend)
        return [event for event in sent if event["type"] == REFUSED]

    relay()
    return relay


def test_a_refusal_of_a_registered_batch_is_one_of_its_events(
    send, conn, batch_id, routed, relayed
):
    send(REGISTER, registration(batch_id, 1))
    bad = content(batch_id, file_size_bytes=-1, original_file_name="Anna Andersson.txt")

    value = send(ASSIGN, bad)
    [event] = relayed()

    assert event_faults(event) == []
    assert (event["subject"], event["sequence"]) == (batch_id, 1)
    assert event["data"] == {
        "dead_letter": value["dead_letter"],
        "task": ASSIGN,
        "event_id": bad["event_id"],
        "batch_id": batch_id,
        "correlation_id": bad["correlation_id"],
        "code": "VALIDATION_ERROR",
        "message": value["message"],
    }
    assert "Anna" not in str(event)
    assert looks.broken(conn, batch_id) == []


def test_a_refusal_names_a_batch_that_is_not_registered(send, batch_id, routed, relayed):
    event_id = cancellation(batch_id)
    value = send(CANCEL, event_id)
    [event] = relayed()

    assert event_faults(event) == []
    assert event["subject"] == batch_id
    assert event["data"]["code"] == "UNKNOWN_BATCH"
    assert event["sequence"] == event["data"]["dead_letter"] == value["dead_letter"]
    assert event["correlationid"] == event_id["correlation_id"]


@pytest.mark.parametrize("body", [{}, {"batch_id": "no identifier!"}, ["a"], "text", None], ids=str)
def test_a_refusal_without_a_batch_is_of_an_unknown_one(send, routed, relayed, body):
    value = send(CANCEL, body)
    [event] = relayed()

    assert event_faults(event) == []
    assert event["subject"] == "unknown"
    assert event["data"]["dead_letter"] == value["dead_letter"]


def test_a_redelivered_message_is_refused_once(conn, relayed):
    letter = DeadLetter(CANCEL, f"task-{new_batch()}", None, "{}", "EXPIRED", "expired")

    numbers = [db.dead_letters.add(conn, letter, announced=True) for _ in range(3)]
    sent = relayed()

    assert len(set(numbers)) == len(sent) == 1


def test_the_event_is_written_with_the_letter_or_not_at_all(pool, relayed):
    letter = DeadLetter(CANCEL, f"task-{new_batch()}", None, "{}", "EXPIRED", "expired")
    with pool.connection() as conn, conn.transaction(force_rollback=True):
        db.dead_letters.add(conn, letter, announced=True)

    assert relayed() == []


def test_nobody_hears_of_a_refusal_without_a_route(send, batch_id, conn, relayed):
    send(CANCEL, cancellation(batch_id))

    assert relayed() == []


def test_the_same_refusal_has_the_same_id_at_each_delivery(conn, batch_id):
    letter = DeadLetter(CANCEL, f"task-{batch_id}", None, "{}", "REVOKED", "revoked")
    number = db.dead_letters.add(conn, letter, announced=True)
    [row] = conn.execute(
        "SELECT * FROM event_outbox WHERE data ->> 'dead_letter' = %s", [str(number)]
    ).fetchall()

    assert cloud_event(row)["id"] == str(row["id"])
