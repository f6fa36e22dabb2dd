"""A dead letter makes a batch stuck as long as the batch needs what it says, and no longer."""

import base64
import json
from uuid import uuid4

import pytest

from core import db
from core.checks import CheckContext
from core.db.dead_letters import DeadLetter
from ops.alarms import all_rules
from tests.core.story import assign, cancel, confirm, fill, register, reject
from tests.factories import a_content, content, contents, essay_ids, registration, rejection

(check,) = (rule.check for rule in all_rules() if rule.code == "dead_letter_waiting")


@pytest.fixture
def park(conn, batch_id):
    def keep(body, task="els.assign_content", code="VALIDATION_ERROR"):
        letter = DeadLetter(task, str(uuid4()), batch_id, json.dumps(body), code, "why")
        return db.dead_letters.add(conn, letter)

    return keep


@pytest.fixture
def is_stuck(conn, slots, batch_id):
    return lambda: bool(check(CheckContext(conn, slots, batch_id)))


@pytest.fixture
def is_listed(conn, slots, batch_id):
    """Look among all batches, as the sweep and the board do."""

    def listed():
        found = check(CheckContext(conn, slots, limit=100_000))
        return batch_id in {finding.batch_id for finding in found}

    return listed


def test_a_letter_of_an_open_batch_makes_it_stuck(lifecycle, batch_id, park, is_stuck, is_listed):
    register(lifecycle, batch_id)
    park(content(batch_id))

    assert is_stuck()
    assert is_listed()


def test_a_letter_of_a_batch_that_nobody_registered_is_needed(batch_id, park, is_stuck):
    park(content(batch_id))

    assert is_stuck()


def ready(lifecycle, batch_id):
    fill(lifecycle, batch_id, 2)
    lifecycle.complete(batch_id)


def ready_regular(lifecycle, batch_id):
    fill(lifecycle, batch_id, 1, class_id="class-1")
    lifecycle.complete(batch_id)
    confirm(lifecycle, batch_id, {essay_ids(1)[0]: "student-1"})


def every_file_rejected(lifecycle, batch_id):
    register(lifecycle, batch_id, 1)
    reject(lifecycle, batch_id)
    lifecycle.complete(batch_id)


def cancelled(lifecycle, batch_id):
    register(lifecycle, batch_id)
    cancel(lifecycle, batch_id)


@pytest.mark.parametrize("end", [ready, ready_regular])
def test_a_ready_batch_needs_no_letter(lifecycle, batch_id, park, is_stuck, is_listed, end):
    end(lifecycle, batch_id)
    park(content(batch_id, "text-late"))

    assert not is_stuck()
    assert not is_listed()


@pytest.mark.parametrize("end", [every_file_rejected, cancelled])
def test_a_batch_that_ended_without_being_ready_keeps_its_reason(
    lifecycle, batch_id, park, is_stuck, is_listed, end
):
    end(lifecycle, batch_id)
    park(content(batch_id, "text-late"))

    assert is_stuck()
    assert is_listed()


def test_a_batch_that_waits_for_students_needs_its_letters(lifecycle, batch_id, park, is_stuck):
    fill(lifecycle, batch_id, 1, class_id="class-1")
    lifecycle.complete(batch_id)
    park({"batch_id": batch_id}, "els.confirm_students")

    assert is_stuck()


def flat(event):
    return {"args": [], "kwargs": event}


def in_camel_case(event):
    return {"textStorageId": event["text_storage_id"], "fileUploadId": event["file_upload_id"]}


def in_a_text(event):
    return {"args": [json.dumps(event)], "kwargs": {}}


def without_text(event):
    return {name: value for name, value in event.items() if name != "text_storage_id"}


def without_file(event):
    return {name: value for name, value in event.items() if name != "file_upload_id"}


def without_a_batch(event):
    return {name: value for name, value in event.items() if name != "batch_id"}


SHAPES = [dict, flat, in_camel_case, in_a_text, without_text, without_file, without_a_batch]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_that_has_its_slot_needs_no_letter(lifecycle, batch_id, park, is_stuck, shape):
    register(lifecycle, batch_id)
    park(shape(content(batch_id, "text-1")))
    assert is_stuck()

    assign(lifecycle, batch_id, "text-1")

    assert not is_stuck()


def test_the_slot_of_another_file_is_none(lifecycle, batch_id, park, is_stuck):
    register(lifecycle, batch_id)
    park(content(batch_id, "text-1"))

    assign(lifecycle, batch_id, "text-10")

    assert is_stuck()


def test_the_slot_in_another_batch_is_none(lifecycle, batch_id, park, is_stuck):
    register(lifecycle, batch_id)
    register(lifecycle, f"{batch_id}-other")
    park(content(batch_id, "text-1"))

    assign(lifecycle, f"{batch_id}-other", "text-1")

    assert is_stuck()


def test_a_rejected_file_that_has_its_slot_needs_no_letter(lifecycle, batch_id, park, is_stuck):
    register(lifecycle, batch_id)
    park(rejection(batch_id, "file-1", validation_error_code="ODD"), "els.reject_content")

    reject(lifecycle, batch_id, "file-1")

    assert not is_stuck()


def test_an_upload_is_needed_until_each_of_its_files_has_a_slot(
    lifecycle, batch_id, park, is_stuck
):
    register(lifecycle, batch_id)
    park(contents(batch_id, ["text-1", "text-2"]), "els.assign_contents")

    assign(lifecycle, batch_id, "text-1")
    half_way = is_stuck()
    assign(lifecycle, batch_id, "text-2")

    assert half_way
    assert not is_stuck()


def test_a_registration_that_came_after_all_needs_no_letter(lifecycle, batch_id, park, is_stuck):
    park(registration(batch_id, expected_essay_count=4), "els.register_batch")
    assert is_stuck()

    register(lifecycle, batch_id)

    assert not is_stuck()


def test_a_registration_that_contradicts_the_batch_is_needed(lifecycle, batch_id, park, is_stuck):
    register(lifecycle, batch_id)
    park(registration(batch_id, 4), "els.register_batch", "REGISTRATION_CONFLICT")

    assert is_stuck()


def test_a_message_that_was_executed_after_all_needs_no_letter(lifecycle, batch_id, park, is_stuck):
    fill(lifecycle, batch_id, 1, class_id="class-1")
    event_id = str(uuid4())
    park({"event_id": event_id, "batch_id": batch_id}, "els.amend_batch", "EXPIRED")
    assert is_stuck()

    assign(lifecycle, batch_id, "text-late", event_id=event_id)

    assert not is_stuck()


def test_an_id_that_was_used_twice_stays_a_reason(lifecycle, batch_id, park, is_stuck):
    register(lifecycle, batch_id)
    event_id = str(uuid4())
    assign(lifecycle, batch_id, "text-1", event_id=event_id)

    park(content(batch_id, "text-2", event_id=event_id), code="IDEMPOTENCY_CONFLICT")

    assert is_stuck()


ODD = {
    "NUL": {"original_file_name": "a\0b", "event_id": "\0"},
    "a lone surrogate": {"text_storage_id": "a\ud800b"},
    "no uuid": {"event_id": "'; --"},
    "nearly a uuid": {"event_id": "z" * 36},
    "a list": [1, [2]],
    "null": None,
    "a text": "text_storage_id",
    "base64": {"base64": base64.b64encode(b"\xff" * 90).decode()},
    "large": {"contents": [a_content(f"text-{n}") for n in range(10_000)]},
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD.keys())
def test_whatever_the_body_is_the_letter_is_judged(lifecycle, batch_id, park, is_stuck, body):
    register(lifecycle, batch_id)
    park(body)

    assert is_stuck()
