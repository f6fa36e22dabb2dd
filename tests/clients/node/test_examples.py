"""The examples of Node beside a stack: what is sent arrives once, and no event is lost."""

import os
import random
import time
from uuid import uuid4

import psycopg
import pytest

from els_client.inbox import Inbox
from tests import factories as make
from tests.clients.node.programs import EXAMPLES
from tests.live.conftest import until

AWAY_S = float(os.environ.get("AWAY_S", "5"))  # how long the broker is away
KILLS = int(os.environ.get("KILLS", "50"))
LINES = 40  # of an example
ADDED = ("event_id", "correlation_id", "timestamp", "schema_version", "expected_essay_count")


def draft(event):
    """Leave out what the kit adds."""
    return {name: value for name, value in event.items() if name not in ADDED}


def a_batch(size):
    """Draft a registration and a content for each of its slots."""
    batch = make.new_batch()
    register = ("els.register_batch", draft(make.registration(batch, size)))
    texts = [f"{batch}/text-{number}" for number in range(size)]
    assign = [("els.assign_content", draft(make.content(batch, text))) for text in texts]
    return batch, [register, *assign]


@pytest.fixture
def outcomes(conn):
    def read(batch):
        rows = conn.execute(
            "SELECT key::text, outcome FROM idempotency_keys WHERE batch_id = %s", [batch]
        ).fetchall()
        return {row["key"]: row["outcome"]["outcome"] for row in rows}

    return read


def ready(neighbours, batch):
    return neighbours.effects(batch, "BatchEssaysReady")


def slots(neighbours, batch):
    """List the contents that the receiver knows to have a slot, as often as it stored them."""
    assigned = neighbours.effects(batch, "EssaySlotAssigned")
    return sorted(event["data"]["text_storage_id"] for event in assigned)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.mjs")), ids=lambda e: e.name)
def test_an_example_has_less_than_forty_lines(example):
    assert len(example.read_text().splitlines()) < LINES


def test_a_sender_and_a_receiver_take_a_batch_to_its_readiness(neighbours, broker, outcomes):
    batch, messages = a_batch(5)
    neighbours.receiver(broker.url).says(1, "receiving")
    sender = neighbours.sender(broker.url)

    sender.feed(messages)
    sender.feed(messages)  # again: each is a repeat
    ids = sender.says(2 * len(messages))
    sender.finish()

    [event] = until(lambda: ready(neighbours, batch), 30, "the receiver has the batch")
    assert len(event["data"]["ready_essays"]) == 5
    assert ids[: len(messages)] == ids[len(messages) :]
    assert sorted(outcomes(batch)) == sorted(set(ids))
    assert set(outcomes(batch).values()) == {"registered", "assigned"}
    until(lambda: len(slots(neighbours, batch)) == 5, 30, "the receiver has each content")
    assert slots(neighbours, batch) == sorted(m[1]["text_storage_id"] for m in messages[1:])
    with psycopg.connect(neighbours.database_url) as db:
        assert not Inbox().is_new(db, event), "the Python kit reads the same inbox"
        assert Inbox().missing_before(db, event) == []


def test_a_broker_that_is_away_costs_nothing(neighbours, broker, outcomes):
    batch, messages = a_batch(60)
    receiver = neighbours.receiver(broker.url)
    receiver.says(1, "receiving")
    sender = neighbours.sender(broker.url)
    sender.feed(messages[:20])
    sender.says(20)

    broker.stop()
    back_at = time.monotonic() + AWAY_S
    sender.feed(messages[20:40])
    ids = sender.says(40)
    sender.kill()
    sender = neighbours.sender(broker.url)
    sender.feed(messages[40:])
    ids += sender.says(len(messages) - 40)
    until(lambda: time.monotonic() > back_at, AWAY_S + 5, "the broker comes back")
    broker.start()
    sender.finish(120)

    until(lambda: ready(neighbours, batch), 120, "the receiver has the batch")
    assert len(ready(neighbours, batch)) == 1
    assert sorted(outcomes(batch)) == sorted(ids)
    until(lambda: len(slots(neighbours, batch)) >= 60, 60, "the receiver has each content")
    assert slots(neighbours, batch) == sorted(m[1]["text_storage_id"] for m in messages[1:])
    assert receiver.process.poll() is None


def test_a_receiver_that_is_killed_again_and_again_has_each_effect_once(neighbours, broker):
    size = 20 * KILLS
    batch, [register, *contents] = a_batch(size)
    sender = neighbours.sender(broker.url)
    sender.feed([register])

    for number in range(KILLS):
        receiver = neighbours.receiver(broker.url)
        sender.feed(contents[20 * number : 20 * (number + 1)])
        receiver.says(1, "receiving")
        moment = time.monotonic() + random.uniform(0, 0.4)
        until(lambda at=moment: time.monotonic() > at, 5, "the moment to kill it")
        receiver.kill()
    before = len(slots(neighbours, batch))
    sender.finish()
    neighbours.receiver(broker.url)

    until(lambda: len(slots(neighbours, batch)) >= size, 120, "the receiver has each content")
    until(lambda: ready(neighbours, batch), 30, "the receiver has the batch")
    assert slots(neighbours, batch) == sorted(event["text_storage_id"] for _, event in contents)
    assert len(ready(neighbours, batch)) == 1
    assert before > 0, "no receiver lived long enough to do something"


def bad_input(batch):
    """Write each kind of bad input for a guest batch of one essay that is ready, by its code."""
    taken = str(uuid4())
    cancel = draft(make.cancellation(batch))
    other = draft(make.registration(batch, 3))
    students = draft(make.confirmation(make.new_batch(), [make.association("essay-001")]))
    content = draft(make.content(batch))
    return {
        "a field that is none": ("els.cancel_batch", cancel | {"colour": "red"}),
        "a field of another type": ("els.assign_content", content | {"file_size_bytes": "1"}),
        "a field that is missing": ("els.cancel_batch", {"batch_id": batch}),
        "another version": ("els.cancel_batch", cancel | {"schema_version": 2}),
        "too large": ("els.cancel_batch", cancel | {"reason": "x" * 300_000}),
        "half a character": ("els.cancel_batch", cancel | {"reason": "\ud800"}),
        "another body for an id": ("els.cancel_batch", cancel | {"event_id": taken}),
        "another registration": ("els.register_batch", other),
        "no such batch": ("els.confirm_students", students),
        "too late": ("els.amend_batch", {"batch_id": batch, "deadline_s": 60}),
        "no such task": ("els.asign_content", content),
    }, taken


CODES = {
    "another body for an id": "IDEMPOTENCY_CONFLICT",
    "another registration": "REGISTRATION_CONFLICT",
    "no such batch": "UNKNOWN_BATCH",
    "too late": "WRONG_BATCH_STATE",
    "no such task": "UNKNOWN_TASK",
}  # the others: VALIDATION_ERROR


def test_the_refusal_of_each_kind_of_bad_input_is_received(neighbours, broker):
    batch, messages = a_batch(1)
    kinds, taken = bad_input(batch)
    neighbours.receiver(broker.url)
    sender = neighbours.sender(broker.url)
    messages[1][1]["event_id"] = taken
    sender.feed(messages)
    until(lambda: ready(neighbours, batch), 30, "the batch is ready")

    sender.feed(kinds.values())
    ids = sender.says(len(messages) + len(kinds))[len(messages) :]
    sender.finish()

    named = dict(zip(ids, kinds, strict=True))
    subjects = {event.get("batch_id", "unknown") for _, event in kinds.values()}

    def refusals():
        found = [e for s in subjects for e in neighbours.effects(s, "MessageRefused")]
        return found if len(found) >= len(kinds) else None

    refused = until(refusals, 60, "each refusal is received")
    codes = {named[event["data"]["event_id"]]: event["data"]["code"] for event in refused}
    assert codes == {kind: CODES.get(kind, "VALIDATION_ERROR") for kind in kinds}
    assert len(refused) == len(kinds)
