"""At its deadline a batch is timed out, or proceeds with what is there; in the database's clock."""

from datetime import timedelta

import pytest

from core.errors import Refusal
from core.outbox import relay
from core.repairs import RepairContext
from core.sweep import sweep
from tests.core import looks
from tests.core.crowd import at_once, persist
from tests.core.story import (
    assign,
    cancel,
    confirm,
    fill,
    register,
    reject,
    texts,
    upload,
)
from tests.factories import essay_ids

TIMEOUT = "BatchReadinessTimeout"
COMPLETED = "BatchContentProvisioningCompleted"
READY = "BatchEssaysReady"
ERRORS = "BatchValidationErrors"
IDS = essay_ids(4)


def set_deadline(conn, batch_id, offset="-1 second"):
    """Move the deadline, as seen from the database's clock."""
    conn.execute(
        "UPDATE batch_essay_trackers SET deadline_at = now() + %s::interval WHERE batch_id = %s",
        [offset, batch_id],
    )


def time_out(lifecycle, batch_id):
    return lifecycle.time_out(batch_id).value["outcome"]


def data(conn, batch_id, event_type):
    (event,) = looks.events(conn, batch_id, event_type)
    return event["data"]


def status(conn, batch_id):
    return looks.batch(conn, batch_id)["status"]


def at_rest(lifecycle, conn, slots, batch_id):
    """The invariants that are broken once everything has been relayed."""
    relay(lifecycle.pool, [batch_id], lambda events: None)
    return looks.broken(conn, batch_id, at_rest=True, slots=slots)


@pytest.fixture
def partly_filled(lifecycle, conn, batch_id):
    """Register four slots; give one a content and let one fail; let the deadline pass."""

    def begin(**fields):
        register(lifecycle, batch_id, 4, **fields)
        held = assign(lifecycle, batch_id, "text-1")["essay_id"]
        failed = reject(lifecycle, batch_id, "file-bad")["essay_id"]
        set_deadline(conn, batch_id)
        return held, sorted({*IDS} - {held, failed})

    return begin


# --- fail ----------------------------------------------------------------------------------------


def test_a_batch_that_fails_is_timed_out_and_says_what_is_missing(
    lifecycle, conn, slots, batch_id, partly_filled
):
    held, missing = partly_filled()

    outcome = time_out(lifecycle, batch_id)

    assert outcome == "timed_out"
    row = looks.batch(conn, batch_id)
    assert (row["status"], row["closed_reason"]) == ("timed_out", "deadline")
    assert (row["available_slots"], row["ready_at"], row["completed_at"]) == (0, None, None)
    assert looks.types(conn, batch_id) == [TIMEOUT]
    told = data(conn, batch_id, TIMEOUT)
    waited_s = told.pop("waited_s")
    assert 0 <= waited_s < 300
    assert told == {
        "batch_id": batch_id,
        "expected_count": 4,
        "actual_count": 1,
        "failed_count": 1,
        "missing_count": 2,
        "missing_essay_ids": missing,
        "on_deadline": "fail",
        "ready_essays": [
            {
                "essay_id": held,
                "text_storage_id": "text-1",
                "file_upload_id": "file-text-1",
                "original_file_name": "text-1.txt",
            }
        ],
    }
    assert at_rest(lifecycle, conn, slots, batch_id) == []


def test_the_event_tells_how_long_the_batch_has_waited(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 1)
    conn.execute(
        "UPDATE batch_essay_trackers SET registered_at = now() - interval '1 hour',"
        " deadline_at = now() WHERE batch_id = %s",
        [batch_id],
    )

    time_out(lifecycle, batch_id)

    assert data(conn, batch_id, TIMEOUT)["waited_s"] == pytest.approx(3600, abs=300)


@pytest.mark.parametrize("redis", ["warm", "flushed"])
def test_what_comes_after_the_deadline_is_closed(
    lifecycle, conn, valkey, batch_id, partly_filled, redis
):
    partly_filled()
    time_out(lifecycle, batch_id)
    if redis == "flushed":
        valkey.flushdb()

    outcomes = [
        assign(lifecycle, batch_id, "late")["outcome"],
        assign(lifecycle, batch_id, "late")["outcome"],
        reject(lifecycle, batch_id, "file-late")["outcome"],
        upload(lifecycle, batch_id, ["text-1", "late-2"])["outcome"],
    ]

    assert outcomes == ["closed", "closed", "closed", "accepted"]
    kept = looks.rows(conn, "excess_content", batch_id)
    assert [row["text_storage_id"] or row["file_upload_id"] for row in kept] == [
        "late",
        "file-late",
        "late-2",
    ]
    assert {row["reason"] for row in kept} == {"BATCH_TIMED_OUT"}
    assert looks.types(conn, batch_id) == [TIMEOUT]
    assert looks.broken(conn, batch_id) == []


def test_what_has_a_slot_keeps_it(lifecycle, batch_id, partly_filled):
    held, _ = partly_filled()

    time_out(lifecycle, batch_id)

    assert assign(lifecycle, batch_id, "text-1")["essay_id"] == held


def test_a_batch_that_is_timed_out_is_neither_cancelled_nor_confirmed_nor_anew(
    lifecycle, conn, batch_id, partly_filled
):
    partly_filled(class_id="class-1")
    time_out(lifecycle, batch_id)

    with pytest.raises(Refusal, match="timed_out"):
        cancel(lifecycle, batch_id)
    with pytest.raises(Refusal, match="timed_out"):
        confirm(lifecycle, batch_id, {})

    assert register(lifecycle, batch_id, 4, class_id="class-1")["outcome"] == "already_registered"
    assert looks.types(conn, batch_id) == [TIMEOUT]


# --- proceed -------------------------------------------------------------------------------------


def test_a_guest_batch_proceeds_with_what_is_there(lifecycle, conn, slots, batch_id, partly_filled):
    held, missing = partly_filled(on_deadline="proceed")

    outcome = time_out(lifecycle, batch_id)

    assert outcome == "announced"
    assert status(conn, batch_id) == "ready_for_pipeline_execution"
    assert looks.types(conn, batch_id) == [TIMEOUT, COMPLETED, ERRORS, READY]
    assert data(conn, batch_id, TIMEOUT)["missing_essay_ids"] == missing
    assert data(conn, batch_id, TIMEOUT)["on_deadline"] == "proceed"
    completed = data(conn, batch_id, COMPLETED)
    assert (completed["provisioned_count"], completed["failed_count"]) == (1, 3)
    assert completed["reason"] == data(conn, batch_id, READY)["reason"] == "DEADLINE_PASSED"
    errors = data(conn, batch_id, ERRORS)
    assert errors["error_categories"] == {"EMPTY_CONTENT": 1, "NOT_RECEIVED": 2}
    assert (errors["total_errors"], errors["critical_failure"]) == (3, False)
    assert {essay["essay_id"] for essay in errors["failed_essays"]} == {*IDS} - {held}
    ready = data(conn, batch_id, READY)
    assert [essay["essay_id"] for essay in ready["ready_essays"]] == [held]
    assert ready["manifest_sha256"] == looks.manifest(ready["ready_essays"])
    assert at_rest(lifecycle, conn, slots, batch_id) == []


@pytest.mark.parametrize("class_id", [None, "class-1"], ids=["guest", "regular"])
def test_a_batch_that_has_nothing_to_proceed_with_fails(lifecycle, conn, slots, batch_id, class_id):
    register(lifecycle, batch_id, 2, on_deadline="proceed", class_id=class_id)
    set_deadline(conn, batch_id)

    time_out(lifecycle, batch_id)

    assert status(conn, batch_id) == "content_ingestion_failed"
    assert looks.types(conn, batch_id) == [TIMEOUT, COMPLETED, ERRORS]
    assert data(conn, batch_id, ERRORS)["critical_failure"] is True
    assert data(conn, batch_id, ERRORS)["error_categories"] == {"NOT_RECEIVED": 2}
    assert at_rest(lifecycle, conn, slots, batch_id) == []


def test_a_content_after_proceeding_is_excess(lifecycle, conn, batch_id, partly_filled):
    partly_filled(on_deadline="proceed")
    time_out(lifecycle, batch_id)

    outcome = assign(lifecycle, batch_id, "late")["outcome"]

    assert outcome == "excess"
    (kept,) = looks.rows(conn, "excess_content", batch_id)
    assert kept["reason"] == "NO_AVAILABLE_SLOT"
    assert looks.types(conn, batch_id)[-1] == "ExcessContentProvisioned"
    assert looks.broken(conn, batch_id) == []


def test_a_death_before_the_announcement_is_made_up_for(
    lifecycle, conn, batch_id, partly_filled, monkeypatch
):
    partly_filled(on_deadline="proceed")
    with monkeypatch.context() as patch:
        patch.setattr(type(lifecycle), "complete", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lifecycle.time_out(batch_id)

    sweep(RepairContext(lifecycle, lambda events: None), batch_id)

    assert looks.types(conn, batch_id) == [TIMEOUT, COMPLETED, ERRORS, READY]
    assert looks.broken(conn, batch_id) == []


# --- not before, not twice -----------------------------------------------------------------------


@pytest.mark.parametrize("on_deadline", ["fail", "proceed"])
def test_nothing_happens_before_the_deadline(lifecycle, conn, slots, batch_id, on_deadline):
    register(lifecycle, batch_id, 3, on_deadline=on_deadline)
    set_deadline(conn, batch_id, "1 minute")
    before = looks.everything(conn, batch_id), slots.free(batch_id)

    outcome = time_out(lifecycle, batch_id)

    assert outcome == "not_due"
    assert (looks.everything(conn, batch_id), slots.free(batch_id)) == before


@pytest.mark.parametrize("on_deadline", ["fail", "proceed"])
def test_nothing_happens_twice(lifecycle, conn, batch_id, partly_filled, on_deadline):
    partly_filled(on_deadline=on_deadline)
    time_out(lifecycle, batch_id)
    before = looks.everything(conn, batch_id)

    outcome = time_out(lifecycle, batch_id)

    assert outcome == "not_due"
    assert looks.everything(conn, batch_id) == before


@pytest.mark.parametrize("on_deadline", ["fail", "proceed"])
def test_of_many_hands_at_once_one_times_out(lifecycle, conn, batch_id, partly_filled, on_deadline):
    partly_filled(on_deadline=on_deadline)

    outcomes = at_once(*[lambda: persist(lambda: time_out(lifecycle, batch_id))] * 6)

    assert outcomes.count("not_due") == 5
    assert len(looks.events(conn, batch_id, TIMEOUT)) == 1
    assert looks.broken(conn, batch_id) == []


def test_a_full_batch_that_waits_for_its_announcement_is_announced_instead(
    lifecycle, conn, slots, batch_id
):
    fill(lifecycle, batch_id, 3)
    set_deadline(conn, batch_id)

    outcome = time_out(lifecycle, batch_id)
    found = sweep(RepairContext(lifecycle, lambda events: None), batch_id)

    assert outcome == "not_due"
    assert [each.rule for each in found] == ["full_not_announced"]
    assert looks.types(conn, batch_id) == [COMPLETED, READY]
    assert at_rest(lifecycle, conn, slots, batch_id) == []


@pytest.mark.parametrize("ended", ["ready", "cancelled"])
def test_a_batch_that_has_ended_is_not_timed_out(lifecycle, conn, batch_id, ended):
    fill(lifecycle, batch_id, 2)
    lifecycle.complete(batch_id) if ended == "ready" else cancel(lifecycle, batch_id)
    set_deadline(conn, batch_id)
    before = looks.everything(conn, batch_id)

    assert time_out(lifecycle, batch_id) == "not_due"
    assert looks.everything(conn, batch_id) == before


def test_a_batch_that_nobody_knows_is_not_timed_out(lifecycle, batch_id):
    assert time_out(lifecycle, batch_id) == "not_due"


def test_the_deadline_follows_from_the_registration(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 1, deadline_s=90.5)

    row = looks.batch(conn, batch_id)

    assert row["deadline_at"] - row["registered_at"] == timedelta(seconds=90.5)


# --- students ------------------------------------------------------------------------------------


@pytest.fixture
def without_students(lifecycle, conn, batch_id):
    """Complete a regular batch; nobody confirms its students."""

    def begin(**fields):
        fill(lifecycle, batch_id, 2, class_id="class-1", deadline_s=3600, **fields)
        lifecycle.complete(batch_id)

    return begin


def test_the_students_get_as_long_as_the_contents_had(conn, batch_id, without_students):
    without_students()

    row = looks.batch(conn, batch_id)

    assert row["deadline_at"] - row["completed_at"] == timedelta(hours=1)


def test_the_deadline_of_the_contents_is_not_that_of_the_students(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 2, class_id="class-1", deadline_s=3600)
    conn.execute(  # all contents came in the last second
        "UPDATE batch_essay_trackers SET registered_at = now() - interval '1 hour',"
        " deadline_at = now() WHERE batch_id = %s",
        [batch_id],
    )

    lifecycle.complete(batch_id)

    assert time_out(lifecycle, batch_id) == "not_due"
    assert status(conn, batch_id) == "awaiting_student_validation"


def test_a_batch_without_its_students_is_timed_out(
    lifecycle, conn, slots, batch_id, without_students
):
    without_students()
    set_deadline(conn, batch_id)

    time_out(lifecycle, batch_id)

    assert status(conn, batch_id) == "timed_out"
    assert looks.types(conn, batch_id) == [COMPLETED, TIMEOUT]
    told = data(conn, batch_id, TIMEOUT)
    assert (told["actual_count"], told["failed_count"], told["missing_essay_ids"]) == (2, 0, [])
    with pytest.raises(Refusal, match="timed_out"):
        confirm(lifecycle, batch_id, {"essay-000000": "student-1"})
    assert at_rest(lifecycle, conn, slots, batch_id) == []


def test_a_batch_proceeds_with_unknown_students(lifecycle, conn, slots, batch_id, without_students):
    without_students(on_deadline="proceed")
    set_deadline(conn, batch_id)

    time_out(lifecycle, batch_id)

    assert status(conn, batch_id) == "ready_for_pipeline_execution"
    assert looks.types(conn, batch_id) == [COMPLETED, TIMEOUT, READY]
    ready = data(conn, batch_id, READY)
    assert [essay.get("student_id") for essay in ready["ready_essays"]] == [None, None]
    assert ready["reason"] == "DEADLINE_PASSED"
    assert "reason" not in data(conn, batch_id, COMPLETED)
    assert ready["manifest_sha256"] == data(conn, batch_id, COMPLETED)["manifest_sha256"]
    assert at_rest(lifecycle, conn, slots, batch_id) == []


def test_a_batch_that_proceeded_once_proceeds_without_its_students_too(
    lifecycle, conn, slots, batch_id, partly_filled
):
    partly_filled(on_deadline="proceed", class_id="class-1")
    time_out(lifecycle, batch_id)
    set_deadline(conn, batch_id)

    time_out(lifecycle, batch_id)

    assert status(conn, batch_id) == "ready_for_pipeline_execution"
    assert len(looks.events(conn, batch_id, READY)) == 1
    assert at_rest(lifecycle, conn, slots, batch_id) == []


@pytest.mark.parametrize("on_deadline", ["fail", "proceed"])
def test_of_a_confirmation_and_the_deadline_at_once_one_wins(
    lifecycle, conn, batch_id, without_students, on_deadline
):
    without_students(on_deadline=on_deadline)
    set_deadline(conn, batch_id)

    def attempt():
        try:
            return confirm(lifecycle, batch_id, {"essay-000000": "student-1"})["outcome"]
        except Refusal:
            return "refused"

    confirmed, timed = at_once(
        lambda: persist(attempt), lambda: persist(lambda: time_out(lifecycle, batch_id))
    )

    assert (confirmed, timed) in [("confirmed", "not_due"), ("refused", "timed_out")]
    assert len(looks.events(conn, batch_id, READY)) == (
        1 if confirmed == "confirmed" or on_deadline == "proceed" else 0
    )
    assert looks.broken(conn, batch_id) == []


# --- at once with everything else ----------------------------------------------------------------


@pytest.mark.parametrize("on_deadline", ["fail", "proceed"])
@pytest.mark.parametrize("round_", range(4))
def test_a_deadline_amid_contents_leaves_every_one_in_its_place(
    lifecycle, conn, slots, batch_id, on_deadline, round_
):
    register(lifecycle, batch_id, 20, on_deadline=on_deadline)
    set_deadline(conn, batch_id)
    steps = [lambda t=t: persist(lambda: assign(lifecycle, batch_id, t)) for t in texts(10)]
    steps += [lambda: persist(lambda: upload(lifecycle, batch_id, texts(6, start=7)))]
    steps += [lambda: persist(lambda: reject(lifecycle, batch_id))]
    steps.insert(round_ * 3, lambda: persist(lambda: time_out(lifecycle, batch_id)))

    at_once(*steps)

    ended = {"fail": {"timed_out"}, "proceed": {"ready_for_pipeline_execution"}}
    nothing_came = {"content_ingestion_failed"} if not looks.placed(conn, batch_id) else set()
    assert status(conn, batch_id) in ended[on_deadline] | nothing_came
    assert {*looks.placed(conn, batch_id), *filter(None, looks.excess(conn, batch_id))} == set(
        texts(13)
    )
    assert len(looks.events(conn, batch_id, TIMEOUT)) == 1
    assert at_rest(lifecycle, conn, slots, batch_id) == []


@pytest.mark.parametrize("on_deadline", ["fail", "proceed"])
@pytest.mark.parametrize("round_", range(3))
def test_the_last_content_and_the_deadline_at_once_end_the_batch_once(
    lifecycle, conn, slots, batch_id, on_deadline, round_
):
    register(lifecycle, batch_id, 3, on_deadline=on_deadline)
    upload(lifecycle, batch_id, texts(2))
    set_deadline(conn, batch_id)
    steps = [
        lambda: persist(lambda: assign(lifecycle, batch_id, "the-last"))["outcome"],
        lambda: persist(lambda: time_out(lifecycle, batch_id)),
    ]

    outcomes = at_once(*steps[:: 1 if round_ % 2 else -1])
    lifecycle.complete(batch_id)

    late = {"fail": "closed", "proceed": "excess"}[on_deadline]
    assert ("assigned" in outcomes) == ("not_due" in outcomes)
    assert ("assigned" in outcomes) != (late in outcomes)
    assert at_rest(lifecycle, conn, slots, batch_id) == []


@pytest.mark.parametrize("on_deadline", ["fail", "proceed"])
def test_of_a_cancellation_and_the_deadline_at_once_one_wins(
    lifecycle, conn, slots, batch_id, on_deadline
):
    register(lifecycle, batch_id, 5, on_deadline=on_deadline)
    upload(lifecycle, batch_id, texts(2))
    set_deadline(conn, batch_id)

    def attempt():
        try:
            return cancel(lifecycle, batch_id)["outcome"]
        except Refusal:
            return "refused"

    cancelled, timed = at_once(
        lambda: persist(attempt), lambda: persist(lambda: time_out(lifecycle, batch_id))
    )

    if cancelled == "cancelled" and timed == "not_due":
        assert looks.types(conn, batch_id) == ["BatchCancelled"]
    else:
        assert TIMEOUT in looks.types(conn, batch_id)
    assert at_rest(lifecycle, conn, slots, batch_id) == []
