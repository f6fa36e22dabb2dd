"""A batch is registered: all of it or nothing, and once."""

import psycopg
import pytest

from core.errors import IdempotencyConflict, RegistrationConflict
from tests.core import looks
from tests.core.crowd import at_once
from tests.core.story import assign, confirm, fill, register, reject, texts, upload
from tests.factories import essay_ids, new_batch, registration, take

REGISTER = "els.register_batch"


def test_a_registration_tells_how_many_slots_it_wrote(lifecycle, batch_id):
    value = register(lifecycle, batch_id, 3)

    assert value == {
        "outcome": "registered",
        "batch_id": batch_id,
        "slots": 3,
        "pending_assigned": 0,
    }


def test_the_rows_say_what_was_announced(lifecycle, conn, batch_id):
    event = registration(
        batch_id,
        ["b", "a"],
        class_id="class-1",
        org_id="org-1",
        student_prompt_ref={"storage": "prompt-1"},
        metadata={"term": "spring"},
        deadline_s=60,
        on_deadline="proceed",
    )

    take(lifecycle, REGISTER, event)

    row = looks.batch(conn, batch_id)
    assert (row["deadline_at"] - row["registered_at"]).total_seconds() == 60
    assert str(row["correlation_id"]) == event["correlation_id"]
    expected = {
        "status": "awaiting_content_validation",
        "class_id": "class-1",
        "org_id": "org-1",
        "user_id": "teacher-1",
        "course_code": "ENG5",
        "expected_count": 2,
        "available_slots": 2,
        "student_prompt_ref": {"storage": "prompt-1"},
        "metadata": {"term": "spring"},
        "on_deadline": "proceed",
        "completed_at": None,
        "ready_at": None,
    }
    assert {name: row[name] for name in expected} == expected
    assert looks.open_slots(conn, batch_id) == {"a", "b"}


def test_redis_holds_exactly_the_open_slots(lifecycle, slots, batch_id):
    register(lifecycle, batch_id, 12)

    assert slots.free(batch_id) == set(essay_ids(12))
    assert slots.assignments(batch_id) == {}


def test_redis_holds_exactly_the_slots_that_waiting_contents_left_open(
    lifecycle, slots, conn, batch_id
):
    upload(lifecycle, batch_id, texts(4))

    register(lifecycle, batch_id, 10)

    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)
    assert len(slots.free(batch_id)) == 6


def test_the_largest_batch_is_registered_at_once(lifecycle, slots, conn, batch_id):
    value = register(lifecycle, batch_id, 100_000)

    assert value["slots"] == 100_000
    assert looks.batch(conn, batch_id)["available_slots"] == 100_000
    assert len(slots.free(batch_id)) == 100_000


def test_a_redis_that_forgot_its_scripts_is_seeded_all_the_same(lifecycle, slots, batch_id):
    slots.client.script_flush()

    register(lifecycle, batch_id, 12_345)

    assert len(slots.free(batch_id)) == 12_345
    assert slots.seed(batch_id, essay_ids(11_000)) == 11_000, "instead of those, and not as well"
    assert len(slots.free(batch_id)) == 11_000


def test_the_same_event_again_returns_the_same_value(lifecycle, conn, batch_id):
    event = registration(batch_id, 3)
    first = take(lifecycle, REGISTER, event).value
    before = looks.everything(conn, batch_id)

    again = take(lifecycle, REGISTER, event).value

    assert again == first
    assert looks.everything(conn, batch_id) == before


def test_the_same_event_many_times_at_once_registers_once(lifecycle, conn, batch_id):
    event = registration(batch_id, 5)

    dones = at_once(*[lambda: take(lifecycle, REGISTER, event)] * 12)

    assert [done.value for done in dones] == [dones[0].value] * 12
    assert dones[0].value["outcome"] == "registered"
    assert looks.count_rows(conn, batch_id)["idempotency_keys"] == 1


def test_the_same_batch_under_another_event_is_already_registered(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, ["a", "b"])
    before = looks.batch(conn, batch_id)

    again = register(lifecycle, batch_id, ["b", "a"])

    assert again == {"outcome": "already_registered", "batch_id": batch_id}
    assert looks.batch(conn, batch_id) == before


def test_one_of_many_events_at_once_registers_the_batch(lifecycle, conn, batch_id):
    steps = [lambda: register(lifecycle, batch_id, 5) for _ in range(10)]

    outcomes = sorted(value["outcome"] for value in at_once(*steps))

    assert outcomes == ["already_registered"] * 9 + ["registered"]
    assert looks.broken(conn, batch_id) == []


@pytest.mark.parametrize(
    "others",
    [["a"], ["a", "b", "c"], ["a", "c"], ["A", "B"]],
    ids=["fewer", "more", "another", "case"],
)
def test_other_essays_for_a_registered_batch_are_refused(lifecycle, slots, conn, batch_id, others):
    register(lifecycle, batch_id, ["a", "b"])
    before = looks.everything(conn, batch_id)

    with pytest.raises(RegistrationConflict, match=batch_id):
        register(lifecycle, batch_id, others)

    assert looks.everything(conn, batch_id) == before
    assert slots.free(batch_id) == {"a", "b"}


FULL = {
    "class_id": "class-1",
    "org_id": "org-1",
    "course_language": "en",
    "student_prompt_ref": {"storage": "prompt-1", "n": [1, 1.5]},
    "metadata": {"term": "spring"},
    "deadline_s": 60.25,
    "on_deadline": "proceed",
}
OTHER = {
    "user_id": "teacher-2",
    "org_id": "org-2",
    "class_id": "class-2",
    "course_code": "ENG6",
    "course_language": "sv",
    "student_prompt_ref": {"storage": "prompt-2"},
    "metadata": {"term": "autumn"},
    "on_deadline": "fail",
    "deadline_s": 60,
}


@pytest.mark.parametrize("field", OTHER)
def test_a_registration_that_contradicts_the_first_one_is_refused(lifecycle, conn, batch_id, field):
    register(lifecycle, batch_id, 2, **FULL)
    before = looks.everything(conn, batch_id)

    with pytest.raises(RegistrationConflict, match=f"with other {field};"):
        register(lifecycle, batch_id, 2, **FULL | {field: OTHER[field]})

    assert looks.everything(conn, batch_id) == before


def test_a_field_that_the_second_registration_leaves_out_contradicts_nothing(lifecycle, batch_id):
    register(lifecycle, batch_id, 2, **FULL)

    assert register(lifecycle, batch_id, 2)["outcome"] == "already_registered"
    nulls = dict.fromkeys(["org_id", "metadata", "deadline_s", "on_deadline"])
    assert register(lifecycle, batch_id, 2, **nulls)["outcome"] == "already_registered"


def test_a_field_that_the_first_registration_left_out_is_contradicted(lifecycle, batch_id):
    register(lifecycle, batch_id, 2)

    with pytest.raises(RegistrationConflict, match="other org_id, class_id, course_lan"):
        register(lifecycle, batch_id, 2, **FULL)


def test_every_contradicting_field_is_named_and_no_value(lifecycle, batch_id):
    register(lifecycle, batch_id, 2, **FULL)

    with pytest.raises(RegistrationConflict) as refused:
        register(lifecycle, batch_id, 3, **OTHER)

    assert f"with other essay_ids, {', '.join(OTHER)};" in str(refused.value)
    assert "teacher-2" not in str(refused.value)


def test_the_same_registration_in_other_words_is_already_registered(lifecycle, batch_id):
    register(lifecycle, batch_id, ["b", "a"], **FULL)
    words = {"student_prompt_ref": {"n": [1.0, 1.50], "storage": "prompt-1"}}

    value = register(lifecycle, batch_id, ["a", "b"], **FULL | words)

    assert value["outcome"] == "already_registered"


def test_a_complete_batch_is_not_asked_for_its_deadline(lifecycle, batch_id):
    fill(lifecycle, batch_id, 1, class_id="class-1", deadline_s=60)
    lifecycle.complete(batch_id)

    value = register(lifecycle, batch_id, 1, class_id="class-1", deadline_s=70)

    assert value["outcome"] == "already_registered"


def test_of_two_different_registrations_at_once_one_is_refused(lifecycle, conn, batch_id):
    def attempt(essays):
        try:
            return register(lifecycle, batch_id, essays)["outcome"]
        except RegistrationConflict:
            return "refused"

    outcomes = at_once(lambda: attempt(["a", "b"]), lambda: attempt(["c"]))

    assert sorted(outcomes) == ["refused", "registered"]
    assert looks.broken(conn, batch_id) == []


def test_an_event_id_cannot_register_a_second_batch(lifecycle, conn, batch_id):
    event, other = registration(batch_id), new_batch()
    take(lifecycle, REGISTER, event)

    with pytest.raises(IdempotencyConflict, match=event["event_id"]):
        take(lifecycle, REGISTER, {**event, "batch_id": other})

    assert looks.batch(conn, other) is None


def test_a_registration_that_fails_in_the_middle_leaves_nothing(
    lifecycle, slots, conn, batch_id, failing_essay
):
    essay_id, mend = failing_essay
    assign(lifecycle, batch_id, "text-1")
    reject(lifecycle, batch_id, "file-2")
    before = looks.everything(conn, batch_id)
    event = registration(batch_id, [*essay_ids(5), essay_id])

    with pytest.raises(psycopg.errors.RaiseException):
        take(lifecycle, REGISTER, event)

    assert looks.everything(conn, batch_id) == before
    assert len(looks.waiting(conn, batch_id)) == 2
    assert slots.free(batch_id) == set()

    mend()
    value = take(lifecycle, REGISTER, event).value

    assert (value["slots"], value["pending_assigned"]) == (6, 1)
    assert looks.waiting(conn, batch_id) == []
    assert looks.broken(conn, batch_id) == []


@pytest.mark.parametrize(
    ("fields", "class_type", "status"),
    [
        ({}, "GUEST", "ready_for_pipeline_execution"),
        ({"org_id": "org-1"}, "GUEST", "ready_for_pipeline_execution"),
        ({"class_id": "class-1"}, "REGULAR", "awaiting_student_validation"),
        (
            {"class_id": "class-1", "org_id": "org-1"},
            "REGULAR",
            "awaiting_student_validation",
        ),
    ],
    ids=["neither", "organisation", "class", "both"],
)
def test_the_class_alone_tells_a_regular_batch(
    lifecycle, conn, batch_id, fields, class_type, status
):
    fill(lifecycle, batch_id, 1, **fields)

    lifecycle.complete(batch_id)

    (event,) = looks.events(conn, batch_id, "BatchContentProvisioningCompleted")
    assert event["data"]["class_type"] == class_type
    assert looks.batch(conn, batch_id)["status"] == status


def test_every_event_carries_the_correlation_id_of_the_registration(lifecycle, conn, batch_id):
    event = registration(batch_id, 2, class_id="class-1")
    take(lifecycle, REGISTER, event)
    upload(lifecycle, batch_id, texts(3))

    lifecycle.complete(batch_id)
    confirm(lifecycle, batch_id, {essay_ids(1)[0]: "student-1"})

    assert len(looks.events(conn, batch_id)) == 3
    assert {str(row["correlation_id"]) for row in looks.events(conn, batch_id)} == {
        event["correlation_id"]
    }


def test_a_second_registration_with_another_prompt_names_the_task_that_amends(lifecycle, batch_id):
    register(lifecycle, batch_id, student_prompt_ref={"storage_id": "prompt-1"})

    with pytest.raises(RegistrationConflict, match=r"student_prompt_ref.*els\.amend_batch"):
        register(lifecycle, batch_id, student_prompt_ref={"storage_id": "prompt-2"})
