"""The examples of Node beside a stack: what is sent arrives once, and no event is lost."""

from uuid import uuid4

import pytest

from tests import factories as make
from tests.clients.node.programs import EXAMPLES
from tests.clients.proofs import (
    a_batch,
    draft,
    test_a_broker_that_is_away_costs_nothing,
    test_a_receiver_that_is_killed_again_and_again_has_each_effect_once,
    test_a_sender_and_a_receiver_take_a_batch_to_its_readiness,
)
from tests.live.conftest import until

__all__ = [
    "test_a_broker_that_is_away_costs_nothing",
    "test_a_receiver_that_is_killed_again_and_again_has_each_effect_once",
    "test_a_sender_and_a_receiver_take_a_batch_to_its_readiness",
]
LINES = 40  # of an example


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.mjs")), ids=lambda e: e.name)
def test_an_example_has_less_than_forty_lines(example):
    assert len(example.read_text().splitlines()) < LINES


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
    until(lambda: neighbours.ready(batch), 30, "the batch is ready")

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
