"""A regular batch is ready when its students are confirmed, not before."""

import pytest

from core.errors import IdempotencyConflict, UnknownBatch, UnknownEssay, WrongBatchState
from tests.core import looks
from tests.core.crowd import at_once, persist
from tests.core.story import assign, cancel, confirm, fill, register, reject, texts, upload
from tests.factories import association, confirmation, essay_ids, take

CONFIRM = "els.confirm_students"
FIRST, SECOND, THIRD = essay_ids(3)
STUDENTS = {FIRST: "student-1", SECOND: "student-2", THIRD: None}


@pytest.fixture
def awaiting(lifecycle, batch_id):
    """A regular batch whose contents are complete and whose students are not known."""
    fill(lifecycle, batch_id, 3, class_id="class-1")
    lifecycle.complete(batch_id)
    return batch_id


def test_a_regular_batch_is_complete_but_not_ready(conn, awaiting):
    row = looks.batch(conn, awaiting)

    assert row["status"] == "awaiting_student_validation"
    assert (row["completed_at"] is None, row["ready_at"]) == (False, None)
    assert looks.types(conn, awaiting) == ["BatchContentProvisioningCompleted"]
    assert looks.broken(conn, awaiting) == []


def test_confirmed_students_make_the_batch_ready(lifecycle, conn, awaiting):
    value = confirm(lifecycle, awaiting, STUDENTS)

    assert value == {"outcome": "confirmed", "batch_id": awaiting, "associated": 3}
    row = looks.batch(conn, awaiting)
    assert row["status"] == "ready_for_pipeline_execution"
    assert row["ready_at"] >= row["completed_at"]
    completed, ready = looks.events(conn, awaiting)
    assert ready["type"] == "BatchEssaysReady"
    assert ready["data"]["class_type"] == "REGULAR"
    assert ready["data"]["manifest_sha256"] == completed["data"]["manifest_sha256"]
    told = {e["essay_id"]: e.get("student_id") for e in ready["data"]["ready_essays"]}
    assert told == STUDENTS
    assert looks.manifest(ready["data"]["ready_essays"]) == ready["data"]["manifest_sha256"]
    assert looks.broken(conn, awaiting) == []


def test_associations_are_stored_on_the_essays(lifecycle, conn, awaiting):
    told = association(
        FIRST,
        "student-1",
        confidence_score=0.25,
        validation_method="timeout",
        validated_by="teacher-1",
        validated_at="2030-01-02T03:04:05Z",
    )

    take(lifecycle, CONFIRM, confirmation(awaiting, [told], timeout_triggered=True))

    essay = looks.essays(conn, awaiting)[FIRST]
    assert essay["student_id"] == "student-1"
    assert essay["confidence_score"] == 0.25
    assert (essay["validation_method"], essay["validated_by"]) == ("timeout", "teacher-1")
    assert essay["validated_at"].isoformat() == "2030-01-02T03:04:05+00:00"


def test_no_association_at_all_makes_the_batch_ready_too(lifecycle, conn, awaiting):
    value = confirm(lifecycle, awaiting, {})

    assert value["associated"] == 0
    _, ready = looks.events(conn, awaiting)
    assert not any("student_id" in essay for essay in ready["data"]["ready_essays"])


def test_a_failed_slot_may_have_a_student_and_is_not_ready(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 2, class_id="class-1")
    failed = reject(lifecycle, batch_id)["essay_id"]
    good = assign(lifecycle, batch_id)["essay_id"]
    lifecycle.complete(batch_id)

    confirm(lifecycle, batch_id, {failed: "student-1", good: "student-2"})

    (ready,) = looks.events(conn, batch_id, "BatchEssaysReady")
    assert [e["essay_id"] for e in ready["data"]["ready_essays"]] == [good]
    assert (ready["data"]["ready_count"], ready["data"]["failed_count"]) == (1, 1)


def test_a_full_batch_that_nobody_announced_is_announced_and_confirmed(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 3, class_id="class-1")

    value = confirm(lifecycle, batch_id, STUDENTS)

    assert value["outcome"] == "confirmed"
    assert looks.types(conn, batch_id) == [
        "BatchContentProvisioningCompleted",
        "BatchEssaysReady",
    ]


# --- repeats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_event", [True, False], ids=["same-event", "new-event"])
def test_students_confirmed_twice_make_one_event(lifecycle, conn, awaiting, same_event):
    pairs = [association(essay, student) for essay, student in STUDENTS.items()]
    event = confirmation(awaiting, pairs)
    first = take(lifecycle, CONFIRM, event).value
    before = looks.events(conn, awaiting)

    again = take(lifecycle, CONFIRM, event if same_event else confirmation(awaiting, pairs)).value

    assert again == first
    assert looks.events(conn, awaiting) == before


@pytest.mark.parametrize("same_event", [True, False], ids=["same-event", "new-events"])
def test_students_confirmed_many_times_at_once_make_one_event(
    lifecycle, conn, awaiting, same_event
):
    pairs = [association(essay, student) for essay, student in STUDENTS.items()]
    event = confirmation(awaiting, pairs)

    def attempt():
        told = event if same_event else confirmation(awaiting, pairs)
        return persist(lambda: take(lifecycle, CONFIRM, told).value)

    values = at_once(*[attempt] * 10)

    assert values == [values[0]] * 10
    assert len(looks.events(conn, awaiting, "BatchEssaysReady")) == 1


def test_other_students_afterwards_are_refused(lifecycle, conn, awaiting):
    confirm(lifecycle, awaiting, STUDENTS)
    before = looks.everything(conn, awaiting)

    with pytest.raises(WrongBatchState, match="ready_for_pipeline_execution"):
        confirm(lifecycle, awaiting, {**STUDENTS, SECOND: "student-9"})

    assert looks.everything(conn, awaiting) == before


def test_an_event_id_with_other_students_is_a_conflict(lifecycle, conn, awaiting):
    event = confirmation(awaiting, [association(FIRST, "student-1")])
    take(lifecycle, CONFIRM, event)
    before = looks.everything(conn, awaiting)

    with pytest.raises(IdempotencyConflict):
        take(lifecycle, CONFIRM, {**event, "associations": [association(FIRST, "student-2")]})

    assert looks.everything(conn, awaiting) == before


# --- refusals -------------------------------------------------------------------------------------


def test_an_unknown_essay_is_refused_and_nothing_changes(lifecycle, conn, awaiting):
    before = looks.everything(conn, awaiting)

    with pytest.raises(UnknownEssay, match="essay-elsewhere"):
        confirm(lifecycle, awaiting, {FIRST: "student-1", "essay-elsewhere": "student-2"})

    assert looks.everything(conn, awaiting) == before
    assert confirm(lifecycle, awaiting, STUDENTS)["outcome"] == "confirmed"


def test_an_unknown_batch_is_refused_until_it_is_known(lifecycle, conn, batch_id):
    event = confirmation(batch_id, [association(FIRST)])

    with pytest.raises(UnknownBatch, match=batch_id):
        take(lifecycle, CONFIRM, event)

    fill(lifecycle, batch_id, 3, class_id="class-1")
    lifecycle.complete(batch_id)
    assert take(lifecycle, CONFIRM, event).value["outcome"] == "confirmed"


@pytest.mark.parametrize("full", [True, False], ids=["ready", "open"])
def test_a_guest_batch_has_no_students_to_confirm(lifecycle, conn, batch_id, full):
    fill(lifecycle, batch_id, 3) if full else register(lifecycle, batch_id, 3)
    lifecycle.complete(batch_id)
    before = looks.everything(conn, batch_id)

    with pytest.raises(WrongBatchState, match="class"):
        confirm(lifecycle, batch_id, STUDENTS)

    assert looks.everything(conn, batch_id) == before


def test_another_class_is_refused(lifecycle, conn, awaiting):
    before = looks.everything(conn, awaiting)

    with pytest.raises(WrongBatchState, match="another class_id") as caught:
        confirm(lifecycle, awaiting, STUDENTS, class_id="class-9")

    assert "class-9" not in str(caught.value), "a refusal tells no names"

    assert looks.everything(conn, awaiting) == before


def test_an_incomplete_batch_is_refused_until_it_is_complete(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3, class_id="class-1")
    upload(lifecycle, batch_id, texts(2))
    event = confirmation(batch_id, [association(FIRST)])
    before = looks.everything(conn, batch_id)

    with pytest.raises(WrongBatchState, match="awaiting_content_validation"):
        take(lifecycle, CONFIRM, event)

    assert looks.everything(conn, batch_id) == before
    upload(lifecycle, batch_id, texts(3))
    lifecycle.complete(batch_id)
    assert take(lifecycle, CONFIRM, event).value["outcome"] == "confirmed"


def test_a_batch_of_failures_has_no_students_to_confirm(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 1, class_id="class-1")
    reject(lifecycle, batch_id)
    lifecycle.complete(batch_id)

    with pytest.raises(WrongBatchState, match="content_ingestion_failed"):
        confirm(lifecycle, batch_id, {FIRST: "student-1"})

    assert looks.events(conn, batch_id, "BatchEssaysReady") == []


def test_a_cancelled_batch_is_refused(lifecycle, conn, awaiting):
    cancel(lifecycle, awaiting)

    with pytest.raises(WrongBatchState, match="cancelled"):
        confirm(lifecycle, awaiting, STUDENTS)

    assert looks.events(conn, awaiting, "BatchEssaysReady") == []


def test_students_and_a_cancellation_at_once_leave_one_of_both(lifecycle, conn, awaiting):
    def attempt(step):
        try:
            return persist(step)["outcome"]
        except WrongBatchState:
            return "refused"

    outcomes = at_once(
        lambda: attempt(lambda: confirm(lifecycle, awaiting, STUDENTS)),
        lambda: attempt(lambda: cancel(lifecycle, awaiting)),
    )

    assert sorted(outcomes) in (["confirmed", "refused"], ["cancelled", "refused"])
    assert looks.broken(conn, awaiting) == []
