"""A batch may be given up until it is ready."""

import pytest

from core.errors import IdempotencyConflict, UnknownBatch, WrongBatchState
from tests.core import looks
from tests.core.crowd import at_once, persist
from tests.core.story import assign, cancel, fill, register, reject, texts, upload
from tests.factories import cancellation, take

CANCEL = "els.cancel_batch"


def test_an_open_batch_is_cancelled(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    assign(lifecycle, batch_id)

    value = cancel(lifecycle, batch_id, "the teacher changed her mind")

    assert value == {"outcome": "cancelled", "batch_id": batch_id}
    row = looks.batch(conn, batch_id)
    assert (row["status"], row["available_slots"]) == ("cancelled", 0)
    assert row["closed_at"] is not None
    assert row["closed_reason"] == "the teacher changed her mind"
    states = {essay["current_status"] for essay in looks.essays(conn, batch_id).values()}
    assert states == {"cancelled"}
    (event,) = looks.events(conn, batch_id)
    assert event["type"] == "BatchCancelled"
    assert event["data"] == {"batch_id": batch_id, "reason": "the teacher changed her mind"}
    assert looks.broken(conn, batch_id) == []


def test_a_batch_that_awaits_its_students_is_cancelled(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 2, class_id="class-1")
    lifecycle.complete(batch_id)

    cancel(lifecycle, batch_id)

    row = looks.batch(conn, batch_id)
    assert (row["status"], row["ready_at"]) == ("cancelled", None)
    assert looks.types(conn, batch_id) == ["BatchContentProvisioningCompleted", "BatchCancelled"]
    assert looks.broken(conn, batch_id) == []


def test_a_full_batch_that_was_not_announced_is_never_announced_once_cancelled(
    lifecycle, conn, batch_id
):
    fill(lifecycle, batch_id, 2)

    cancel(lifecycle, batch_id)
    lifecycle.complete(batch_id)

    assert looks.types(conn, batch_id) == ["BatchCancelled"]
    assert looks.broken(conn, batch_id) == []


@pytest.mark.parametrize("same_event", [True, False], ids=["same-event", "new-event"])
def test_a_batch_cancelled_twice_says_so_once(lifecycle, conn, batch_id, same_event):
    register(lifecycle, batch_id, 3)
    event = cancellation(batch_id, "first")
    first = take(lifecycle, CANCEL, event).value
    before = looks.batch(conn, batch_id)

    again = take(lifecycle, CANCEL, event if same_event else cancellation(batch_id, "second")).value

    assert again == first
    assert looks.batch(conn, batch_id) == before
    assert looks.types(conn, batch_id) == ["BatchCancelled"]


@pytest.mark.parametrize("same_event", [True, False], ids=["same-event", "new-events"])
def test_a_batch_cancelled_many_times_at_once_says_so_once(lifecycle, conn, batch_id, same_event):
    register(lifecycle, batch_id, 3)
    event = cancellation(batch_id)

    def attempt():
        return take(lifecycle, CANCEL, event if same_event else cancellation(batch_id)).value

    values = at_once(*[lambda: persist(attempt)] * 8)

    assert values == [{"outcome": "cancelled", "batch_id": batch_id}] * 8
    assert looks.types(conn, batch_id) == ["BatchCancelled"]


def test_an_event_id_with_another_reason_is_a_conflict(lifecycle, conn, batch_id):
    register(lifecycle, batch_id)
    event = cancellation(batch_id, "first")
    take(lifecycle, CANCEL, event)

    with pytest.raises(IdempotencyConflict):
        take(lifecycle, CANCEL, {**event, "reason": "second"})


@pytest.mark.parametrize("failed", [False, True], ids=["ready", "failed"])
def test_a_batch_that_has_ended_is_not_cancelled(lifecycle, conn, batch_id, failed):
    register(lifecycle, batch_id, 1)
    reject(lifecycle, batch_id) if failed else assign(lifecycle, batch_id)
    lifecycle.complete(batch_id)
    before = looks.everything(conn, batch_id)

    with pytest.raises(WrongBatchState, match="already"):
        cancel(lifecycle, batch_id)

    assert looks.everything(conn, batch_id) == before


def test_an_unknown_batch_is_not_cancelled(lifecycle, conn, batch_id):
    assign(lifecycle, batch_id)
    event = cancellation(batch_id)

    with pytest.raises(UnknownBatch, match=batch_id):
        take(lifecycle, CANCEL, event)

    assert looks.types(conn, batch_id) == []
    register(lifecycle, batch_id)
    assert take(lifecycle, CANCEL, event).value["outcome"] == "cancelled"


@pytest.mark.parametrize("redis", ["warm", "flushed"])
def test_a_content_after_the_end_is_kept_and_told_to_nobody(
    lifecycle, conn, batch_id, valkey, redis
):
    register(lifecycle, batch_id, 3)
    cancel(lifecycle, batch_id)
    if redis == "flushed":
        valkey.flushdb()

    values = [assign(lifecycle, batch_id, "late"), assign(lifecycle, batch_id, "late")]

    assert values == [{"outcome": "closed", "batch_id": batch_id}] * 2
    (kept,) = looks.rows(conn, "excess_content", batch_id)
    assert (kept["text_storage_id"], kept["reason"]) == ("late", "BATCH_CANCELLED")
    assert looks.types(conn, batch_id) == ["BatchCancelled"]
    assert looks.broken(conn, batch_id) == []


def test_a_rejected_file_after_the_end_is_kept(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    cancel(lifecycle, batch_id)

    value = reject(lifecycle, batch_id, "file-late")

    assert value == {"outcome": "closed", "batch_id": batch_id}
    (kept,) = looks.rows(conn, "excess_content", batch_id)
    assert (kept["kind"], kept["reason"]) == ("failure", "BATCH_CANCELLED")


def test_an_upload_after_the_end_is_kept(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    upload(lifecycle, batch_id, texts(2))
    cancel(lifecycle, batch_id)

    value = upload(lifecycle, batch_id, texts(4))

    assert value["outcome"] == "accepted"
    assert looks.excess(conn, batch_id) == texts(2, start=2)
    assert looks.types(conn, batch_id) == ["BatchCancelled"]


@pytest.mark.parametrize("redis", ["warm", "flushed"])
def test_a_known_content_still_returns_its_slot(lifecycle, conn, batch_id, valkey, redis):
    register(lifecycle, batch_id, 3)
    first = assign(lifecycle, batch_id)
    failed = reject(lifecycle, batch_id)
    cancel(lifecycle, batch_id)
    if redis == "flushed":
        valkey.flushdb()

    assert assign(lifecycle, batch_id) == first
    assert reject(lifecycle, batch_id) == failed
    assert looks.excess(conn, batch_id) == []


def test_the_keys_of_a_cancelled_batch_run_out(lifecycle, batch_id, valkey):
    register(lifecycle, batch_id, 3)
    assign(lifecycle, batch_id)

    cancel(lifecycle, batch_id)

    keys = valkey.keys(f"batch:{{{batch_id}}}:*")
    assert f"batch:{{{batch_id}}}:assignments" in keys
    assert all(0 < valkey.ttl(key) <= 3_600 for key in keys)


def test_redis_offers_no_slot_of_a_cancelled_batch(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 3)

    cancel(lifecycle, batch_id)

    assert looks.broken(conn, batch_id, slots=slots) == []


def test_a_cancelled_batch_registered_again_stays_cancelled(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    cancel(lifecycle, batch_id)

    value = register(lifecycle, batch_id, 3)

    assert value["outcome"] == "already_registered"
    assert looks.batch(conn, batch_id)["status"] == "cancelled"


@pytest.mark.parametrize("round_", range(6))
def test_a_cancellation_amid_contents_leaves_every_one_in_its_place(
    lifecycle, conn, batch_id, round_
):
    register(lifecycle, batch_id, 20)
    steps = [lambda t=t: persist(lambda: assign(lifecycle, batch_id, t)) for t in texts(12)]
    steps += [lambda: persist(lambda: upload(lifecycle, batch_id, texts(6, start=9)))]
    steps.insert(round_ * 2, lambda: persist(lambda: cancel(lifecycle, batch_id)))

    at_once(*steps)

    assert looks.batch(conn, batch_id)["status"] == "cancelled"
    assert {*looks.placed(conn, batch_id), *looks.excess(conn, batch_id)} == set(texts(15))
    assert looks.types(conn, batch_id) == ["BatchCancelled"]
    assert looks.broken(conn, batch_id) == []


@pytest.mark.parametrize("round_", range(4))
def test_of_a_cancellation_and_an_announcement_at_once_one_wins(lifecycle, conn, batch_id, round_):
    fill(lifecycle, batch_id, 5)

    def attempt():
        try:
            return cancel(lifecycle, batch_id)["outcome"]
        except WrongBatchState:
            return "refused"

    cancelled, announced = at_once(
        lambda: persist(attempt), lambda: persist(lambda: lifecycle.complete(batch_id)).value
    )

    if cancelled == "cancelled":
        assert announced["outcome"] == "nothing_to_announce"
        assert looks.types(conn, batch_id) == ["BatchCancelled"]
    else:
        assert announced["outcome"] == "announced"
        assert "BatchCancelled" not in looks.types(conn, batch_id)
    assert looks.broken(conn, batch_id) == []
