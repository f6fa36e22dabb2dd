"""A rejected file consumes a slot: it counts toward completion, not toward readiness."""

from datetime import datetime, timedelta

import pytest

from core.states import BatchStatus
from tests.core import looks
from tests.core.crowd import at_once, persist
from tests.core.story import assign, fill, register, reject, texts, upload
from tests.factories import rejection, take


def test_a_rejected_file_takes_a_slot(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)

    value = reject(
        lifecycle, batch_id, "file-1", validation_error_code="CONTENT_TOO_SHORT", file_size_bytes=3
    )

    assert value["outcome"] == "failed_slot"
    essay = looks.essays(conn, batch_id)[value["essay_id"]]
    assert essay["current_status"] == "content_ingestion_failed"
    assert essay["validation_error_code"] == "CONTENT_TOO_SHORT"
    assert (essay["file_upload_id"], essay["text_storage_id"]) == ("file-1", None)
    assert looks.batch(conn, batch_id)["available_slots"] == 2


@pytest.mark.parametrize("same_event", [True, False], ids=["same-event", "new-event"])
def test_a_failure_told_twice_counts_once(lifecycle, slots, conn, batch_id, same_event):
    register(lifecycle, batch_id, 3)
    event = rejection(batch_id)
    first = take(lifecycle, "els.reject_content", event).value

    again = take(lifecycle, "els.reject_content", event if same_event else rejection(batch_id))

    assert again.value == first
    assert looks.batch(conn, batch_id)["available_slots"] == 2
    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)


def test_a_failure_told_many_times_at_once_counts_once(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 5)

    values = at_once(*[lambda: persist(lambda: reject(lifecycle, batch_id))] * 12)

    assert len({value["essay_id"] for value in values}) == 1
    assert looks.batch(conn, batch_id)["available_slots"] == 4
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_a_failed_file_may_be_sent_anew_and_takes_a_slot_of_its_own(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 2)
    failed = reject(lifecycle, batch_id, "file-1")

    value = assign(lifecycle, batch_id, "text-1", file_upload_id="file-1")

    assert value["outcome"] == "assigned"
    assert value["essay_id"] != failed["essay_id"]


def test_a_failure_after_completion_changes_nothing_but_is_kept(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 2)
    lifecycle.complete(batch_id)
    before = looks.everything(conn, batch_id)

    value = reject(lifecycle, batch_id, "file-late")

    assert value == {"outcome": "excess", "batch_id": batch_id}
    after = looks.everything(conn, batch_id)
    (kept,) = after.pop("excess_content")
    assert (kept["kind"], kept["file_upload_id"]) == ("failure", "file-late")
    assert kept["reason"] == "NO_AVAILABLE_SLOT"
    assert len(after.pop("idempotency_keys")) == len(before["idempotency_keys"]) + 1
    assert after == {table: before[table] for table in after}


def test_a_failure_before_registration_waits(lifecycle, conn, batch_id):
    value = reject(lifecycle, batch_id)

    assert value == {"outcome": "pending", "batch_id": batch_id}
    (row,) = looks.waiting(conn, batch_id)
    assert (row["kind"], row["essay_file_id"]) == ("failure", "file-1")


@pytest.mark.parametrize("failed_first", [True, False])
def test_24_good_essays_of_25_are_ready(lifecycle, conn, batch_id, failed_first):
    register(lifecycle, batch_id, 25)
    detail = {"hint": "save it again"}
    if failed_first:
        reject(lifecycle, batch_id, validation_error_detail=detail)
    for text in texts(24):
        assign(lifecycle, batch_id, text)
    if not failed_first:
        reject(lifecycle, batch_id, validation_error_detail=detail)

    lifecycle.complete(batch_id)

    assert looks.batch(conn, batch_id)["status"] == "ready_for_pipeline_execution"
    completed, errors, ready = looks.events(conn, batch_id)
    assert completed["type"] == "BatchContentProvisioningCompleted"
    counts = ("expected_count", "provisioned_count", "failed_count")
    assert [completed["data"][name] for name in counts] == [25, 24, 1]
    assert errors["type"] == "BatchValidationErrors"
    assert errors["data"]["total_errors"] == 1
    assert errors["data"]["error_categories"] == {"EMPTY_CONTENT": 1}
    assert errors["data"]["critical_failure"] is False
    [failed] = errors["data"]["failed_essays"]
    assert failed["validation_error_detail"] == {"hint": "save it again"}
    assert datetime.fromisoformat(failed["failed_at"]).utcoffset() == timedelta(0)
    assert ready["type"] == "BatchEssaysReady"
    assert (ready["data"]["ready_count"], ready["data"]["failed_count"]) == (24, 1)
    assert {e["text_storage_id"] for e in ready["data"]["ready_essays"]} == set(texts(24))


@pytest.mark.parametrize("class_id", [None, "class-1"], ids=["guest", "regular"])
def test_a_batch_of_failures_is_never_ready(lifecycle, conn, batch_id, class_id):
    register(lifecycle, batch_id, 3, class_id=class_id)
    codes = ["EMPTY_CONTENT", "EMPTY_CONTENT", "ENCRYPTED_FILE_UNSUPPORTED"]
    for number, code in enumerate(codes):
        reject(lifecycle, batch_id, f"file-{number}", validation_error_code=code)

    lifecycle.complete(batch_id)

    row = looks.batch(conn, batch_id)
    assert (row["status"], row["ready_at"]) == (BatchStatus.CONTENT_INGESTION_FAILED, None)
    completed, errors = looks.events(conn, batch_id)
    assert completed["data"]["essays"] == []
    assert errors["data"]["critical_failure"] is True
    assert errors["data"]["error_categories"] == {
        "EMPTY_CONTENT": 2,
        "ENCRYPTED_FILE_UNSUPPORTED": 1,
    }
    assert looks.broken(conn, batch_id) == []


def test_contents_and_failures_at_once_fill_the_slots_exactly(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 15)
    steps = [lambda t=t: persist(lambda: assign(lifecycle, batch_id, t)) for t in texts(12)]
    steps += [
        lambda n=n: persist(lambda: reject(lifecycle, batch_id, f"file-{n}")) for n in range(12)
    ]

    outcomes = [value["outcome"] for value in at_once(*steps)]

    assert outcomes.count("excess") == 9
    assert outcomes.count("assigned") + outcomes.count("failed_slot") == 15
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_an_upload_beside_failures_completes_the_batch(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 4)
    reject(lifecycle, batch_id)

    upload(lifecycle, batch_id, texts(3))
    lifecycle.complete(batch_id)

    assert looks.batch(conn, batch_id)["provisioned_count"] == 3
