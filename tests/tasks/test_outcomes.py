"""Every task, sent as a message: its value, and what follows it."""

import pytest

from core.lifecycle import SLOTS_PER_HEADER
from core.slots import CHUNK
from tests.core import looks
from tests.core.story import texts
from tests.factories import (
    amendment,
    association,
    cancellation,
    confirmation,
    content,
    contents,
    essay_ids,
    registration,
    rejection,
)

REGISTER, ASSIGN, UPLOAD = "els.register_batch", "els.assign_content", "els.assign_contents"
REJECT, CONFIRM, CANCEL = "els.reject_content", "els.confirm_students", "els.cancel_batch"
AMEND = "els.amend_batch"
DONE = ["BatchContentProvisioningCompleted", "BatchEssaysReady"]


def test_every_task_of_the_contract_is_there():
    from tasks.app import app

    assert {REGISTER, ASSIGN, UPLOAD, REJECT, CONFIRM, CANCEL, AMEND} <= set(app.tasks)


def test_a_guest_batch_runs_from_registration_to_readiness(send, conn, batch_id):
    values = [
        send(REGISTER, registration(batch_id, 3)),
        send(ASSIGN, content(batch_id, "text-1")),
        send(REJECT, rejection(batch_id, "file-2")),
        send(UPLOAD, contents(batch_id, ["text-1", "text-3", "text-4"])),
    ]

    assert values[0] == {
        "outcome": "registered",
        "batch_id": batch_id,
        "slots": 3,
        "pending_assigned": 0,
    }
    assert [value["outcome"] for value in values[1:]] == ["assigned", "failed_slot", "accepted"]
    assert looks.types(conn, batch_id) == [
        "ExcessContentProvisioned",
        "BatchContentProvisioningCompleted",
        "BatchValidationErrors",
        "BatchEssaysReady",
    ]
    assert looks.batch(conn, batch_id)["status"] == "ready_for_pipeline_execution"
    assert looks.broken(conn, batch_id, at_rest=True) == []


def test_an_amended_full_batch_is_announced_at_once(send, conn, batch_id):
    send(REGISTER, registration(batch_id, 1, course_language="sv"))

    value = send(AMEND, amendment(batch_id, student_prompt_ref={"storage_id": "prompt-2"}))
    send(ASSIGN, content(batch_id))

    assert value == {"outcome": "amended", "batch_id": batch_id}
    data = looks.events(conn, batch_id)[-1]["data"]
    assert data["student_prompt_ref"] == {"storage_id": "prompt-2"}
    assert data["course_language"] == "sv"


def test_a_regular_batch_is_ready_when_its_students_are_confirmed(send, conn, batch_id):
    send(REGISTER, registration(batch_id, 2, class_id="class-1"))
    send(UPLOAD, contents(batch_id, texts(2)))
    before = looks.types(conn, batch_id)

    value = send(CONFIRM, confirmation(batch_id, [association(essay_ids(1)[0])]))

    assert value == {"outcome": "confirmed", "batch_id": batch_id, "associated": 1}
    assert before == DONE[:1]
    assert looks.types(conn, batch_id) == DONE
    assert looks.broken(conn, batch_id, at_rest=True) == []


def test_what_waited_is_taken_and_completes_the_batch(send, conn, batch_id):
    values = [send(ASSIGN, content(batch_id, text)) for text in texts(2)]

    value = send(REGISTER, registration(batch_id, 2))

    assert [each["outcome"] for each in values] == ["pending", "pending"]
    assert value["pending_assigned"] == 2
    assert looks.types(conn, batch_id) == DONE


def test_a_content_too_many_is_excess_and_told(send, conn, batch_id, messages):
    send(REGISTER, registration(batch_id, 1))
    send(ASSIGN, content(batch_id, "text-1"))

    value = send(ASSIGN, content(batch_id, "text-2"))

    assert value == {"outcome": "excess", "batch_id": batch_id}
    assert messages()[-1]["headers"]["task"] == "els.events.excess_content_provisioned"


def test_a_cancelled_batch_takes_nothing_more(send, conn, batch_id):
    send(REGISTER, registration(batch_id))

    values = [
        send(CANCEL, cancellation(batch_id)),
        send(ASSIGN, content(batch_id)),
        send(REJECT, rejection(batch_id)),
    ]

    assert [value["outcome"] for value in values] == ["cancelled", "closed", "closed"]
    assert looks.types(conn, batch_id) == ["BatchCancelled"]


def test_a_batch_of_failures_is_announced_but_never_ready(send, conn, batch_id):
    send(REGISTER, registration(batch_id, 2))

    for file in ["file-1", "file-2"]:
        send(REJECT, rejection(batch_id, file))

    assert looks.types(conn, batch_id) == [
        "BatchContentProvisioningCompleted",
        "BatchValidationErrors",
    ]
    assert looks.batch(conn, batch_id)["status"] == "content_ingestion_failed"


def test_every_message_twice_gives_the_same_values_and_events(send, conn, batch_id, valkey):
    steps = [
        (ASSIGN, content(batch_id, "early")),
        (REGISTER, registration(batch_id, 4)),
        (ASSIGN, content(batch_id, "text-1")),
        (REJECT, rejection(batch_id)),
        (UPLOAD, contents(batch_id, ["text-2", "text-3"])),
    ]
    first = [send(task, event) for task, event in steps]
    before = looks.everything(conn, batch_id)
    valkey.flushdb()

    again = [send(task, event) for task, event in steps]

    assert again == first
    assert looks.everything(conn, batch_id) == before


def test_a_batch_of_many_ranges_is_sealed_and_announced(send, conn, batch_id):
    count = 2 * SLOTS_PER_HEADER + 200
    send(REGISTER, registration(batch_id, count))

    value = send(UPLOAD, contents(batch_id, texts(count)))

    assert value == {"outcome": "accepted", "batch_id": batch_id, "contents": count}
    assert looks.types(conn, batch_id) == DONE
    assert len(looks.placed(conn, batch_id)) == count
    assert looks.broken(conn, batch_id, at_rest=True) == []


# --- large uploads --------------------------------------------------------------------------------


LARGE = CHUNK + 1  # contents, which are more than one call claims


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "waiting"])
def test_a_large_upload_ends_with_every_content_in_one_place(send, conn, batch_id, registered):
    if registered:
        send(REGISTER, registration(batch_id, LARGE))
    send(UPLOAD, contents(batch_id, [*texts(LARGE + 50), *texts(25)]))
    if not registered:
        send(REGISTER, registration(batch_id, LARGE))

    assert len(looks.placed(conn, batch_id)) == LARGE
    assert len(looks.excess(conn, batch_id)) == 50
    assert looks.broken(conn, batch_id, at_rest=True) == []


def test_a_large_upload_again_changes_nothing(send, conn, batch_id):
    send(REGISTER, registration(batch_id, LARGE))
    event = contents(batch_id, texts(LARGE))
    first = send(UPLOAD, event)
    before = looks.everything(conn, batch_id)

    again = send(UPLOAD, event)

    assert again == first
    assert looks.everything(conn, batch_id) == before


def test_a_large_upload_with_a_used_event_id_is_refused(send, conn, batch_id):
    send(REGISTER, registration(batch_id, LARGE))
    event = content(batch_id)
    send(ASSIGN, event)
    before = looks.everything(conn, batch_id)

    value = send(UPLOAD, contents(batch_id, texts(LARGE), event_id=event["event_id"]))

    assert value["code"] == "IDEMPOTENCY_CONFLICT"
    assert looks.everything(conn, batch_id) == before
