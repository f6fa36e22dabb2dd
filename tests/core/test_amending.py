"""A batch may be amended until it is sealed; its readiness carries what held then."""

from datetime import UTC, datetime, timedelta

import pytest

from core import db
from core.errors import IdempotencyConflict, UnknownBatch, WrongBatchState
from core.seals import Sealed, announcement
from core.states import ACCOUNTED
from tests.core import looks
from tests.core.crowd import at_once, persist
from tests.core.story import amend, cancel, fill, register
from tests.core.test_announcing import seals_of
from tests.factories import amendment, take

AMEND = "els.amend_batch"
OLD, NEW = {"storage_id": "prompt-1"}, {"storage_id": "prompt-2"}


def test_an_open_batch_has_the_new_values(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3, student_prompt_ref=OLD, deadline_s=60)
    before = looks.batch(conn, batch_id)

    value = amend(lifecycle, batch_id, student_prompt_ref=NEW, on_deadline="proceed")

    assert value == {"outcome": "amended", "batch_id": batch_id}
    row = looks.batch(conn, batch_id)
    assert (row["student_prompt_ref"], row["on_deadline"]) == (NEW, "proceed")
    assert row["deadline_at"] == before["deadline_at"]
    assert looks.broken(conn, batch_id) == []


def test_an_amended_deadline_runs_from_now(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3, deadline_s=60)

    amend(lifecycle, batch_id, deadline_s=7_200)

    left = looks.batch(conn, batch_id)["deadline_at"] - datetime.now(UTC)
    assert timedelta(seconds=7_100) < left <= timedelta(seconds=7_200)


def test_a_full_batch_is_announced_with_the_amended_prompt(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 2, student_prompt_ref=OLD)

    assert take(lifecycle, AMEND, amendment(batch_id, student_prompt_ref=NEW)).full
    lifecycle.complete(batch_id)

    assert looks.events(conn, batch_id)[-1]["data"]["student_prompt_ref"] == NEW


def test_an_announcement_that_read_the_batch_before_has_no_effect(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 2, student_prompt_ref=OLD)
    tracker = db.batches.tracker(conn, batch_id)
    slots = db.slots.essays_in(conn, batch_id, *ACCOUNTED)
    stale = announcement(tracker, slots, Sealed(seals_of(lifecycle, batch_id), True))
    amend(lifecycle, batch_id, student_prompt_ref=NEW)

    assert db.completion.announce(conn, {batch_id: stale}) == {}
    lifecycle.complete(batch_id)

    assert looks.events(conn, batch_id)[-1]["data"]["student_prompt_ref"] == NEW


@pytest.mark.parametrize("round_", range(10))
def test_whoever_is_first_the_event_carries_what_the_row_holds(lifecycle, conn, batch_id, round_):
    fill(lifecycle, batch_id, 25, student_prompt_ref=OLD)

    def try_to_amend():
        try:
            done = take(lifecycle, AMEND, amendment(batch_id, student_prompt_ref=NEW))
        except WrongBatchState:
            return False
        if done.full:
            lifecycle.complete(batch_id)
        return True

    amended, *_ = at_once(try_to_amend, *[lambda: lifecycle.complete(batch_id)] * 3)

    expected = NEW if amended else OLD
    assert looks.types(conn, batch_id) == ["BatchContentProvisioningCompleted", "BatchEssaysReady"]
    assert looks.events(conn, batch_id)[-1]["data"]["student_prompt_ref"] == expected
    assert looks.batch(conn, batch_id)["student_prompt_ref"] == expected


def sealed(lifecycle, batch_id):
    fill(lifecycle, batch_id, 2)
    lifecycle.complete(batch_id)


def awaiting_students(lifecycle, batch_id):
    fill(lifecycle, batch_id, 2, class_id="class-1")
    lifecycle.complete(batch_id)


def cancelled(lifecycle, batch_id):
    register(lifecycle, batch_id, 2)
    cancel(lifecycle, batch_id)


@pytest.mark.parametrize("prepare", [sealed, awaiting_students, cancelled])
def test_a_sealed_or_closed_batch_is_not_amended(lifecycle, conn, batch_id, prepare):
    prepare(lifecycle, batch_id)
    before = looks.everything(conn, batch_id)

    with pytest.raises(WrongBatchState, match="until it is sealed"):
        amend(lifecycle, batch_id, student_prompt_ref=NEW)

    assert looks.everything(conn, batch_id) == before


def test_an_unknown_batch_is_not_amended(lifecycle, batch_id):
    with pytest.raises(UnknownBatch):
        amend(lifecycle, batch_id)


def test_an_amendment_counts_once(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 2)
    event = amendment(batch_id, student_prompt_ref=NEW)

    values = at_once(*[lambda: persist(lambda: take(lifecycle, AMEND, event).value)] * 4)

    assert values == [values[0]] * 4
    assert looks.batch(conn, batch_id)["amendments"] == 1
    with pytest.raises(IdempotencyConflict):
        take(lifecycle, AMEND, {**event, "student_prompt_ref": OLD})
