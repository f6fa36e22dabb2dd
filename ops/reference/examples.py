"""One whole example of each message; tests validate them, and send and receive such ones."""

from typing import Any

from core.catalogue import EVENTS
from core.events import SOURCE, manifest_sha256, outgoing_id

Json = dict[str, Any]  # Any: JSON
BATCH = "batch-2026-11-7b"
CORRELATION = "0d2f7c1e-58a4-4b0e-9a0b-6f1c2d3e4f50"
PERSON = "larare_asa_123"


def _event(event_id: str, at: str, **fields: Any) -> Json:  # Any: JSON
    return {
        "event_id": event_id,
        "correlation_id": CORRELATION,
        "timestamp": f"2026-11-26T{at}Z",
        "schema_version": 1,
        "batch_id": BATCH,
        **fields,
    }


def _content(number: int) -> Json:
    return {
        "text_storage_id": f"texts/2026/{BATCH}/{number}.txt",
        "file_upload_id": f"upload-{number}",
        "original_file_name": f"Uppsats {number}.docx",
    }


def _stored(number: int) -> Json:
    return {
        **_content(number),
        "raw_file_storage_id": f"files/2026/{BATCH}/{number}.docx",
        "file_size_bytes": 18_432,
        "content_md5_hash": "9e107d9d372bb6826bd81d3542a419d6",
    }


def _association(essay_id: str, student_id: str | None) -> Json:
    return {
        "essay_id": essay_id,
        "student_id": student_id,
        "confidence_score": 0.97,
        "validation_method": "human",
        "validated_by": PERSON,
        "validated_at": "2026-11-26T08:40:00Z",
    }


TASK_EXAMPLES: dict[str, Json] = {
    "els.register_batch": _event(
        "b9f5a0d2-3f1a-4a58-8d53-1f6f6f0a1a01",
        "08:00:00",
        essay_ids=["essay-1", "essay-2", "essay-3"],
        expected_essay_count=3,
        course_code="ENG5",
        course_language="en",
        user_id=PERSON,
        org_id="skolan_vasteras",
        class_id="7b",
        student_prompt_ref={"storage_id": "prompts/eng5/7.txt"},
        deadline_s=7_200,
        on_deadline="proceed",
        metadata={"term": "2026-autumn"},
    ),
    "els.assign_content": _event("b9f5a0d2-3f1a-4a58-8d53-1f6f6f0a1a02", "08:05:00", **_stored(1)),
    "els.assign_contents": _event(
        "b9f5a0d2-3f1a-4a58-8d53-1f6f6f0a1a03", "08:05:10", contents=[_stored(1), _stored(2)]
    ),
    "els.reject_content": _event(
        "b9f5a0d2-3f1a-4a58-8d53-1f6f6f0a1a04",
        "08:06:00",
        file_upload_id="upload-3",
        original_file_name="Uppsats 3.pdf",
        raw_file_storage_id=f"files/2026/{BATCH}/3.pdf",
        validation_error_code="ENCRYPTED_FILE_UNSUPPORTED",
        validation_error_detail={"hint": "save the file without a password"},
        file_size_bytes=90_112,
    ),
    "els.confirm_students": _event(
        "b9f5a0d2-3f1a-4a58-8d53-1f6f6f0a1a05",
        "08:41:00",
        class_id="7b",
        associations=[_association("essay-1", "student-17"), _association("essay-2", None)],
        timeout_triggered=False,
    ),
    "els.cancel_batch": _event(
        "b9f5a0d2-3f1a-4a58-8d53-1f6f6f0a1a06", "08:50:00", reason="the teacher chose another class"
    ),
    "els.amend_batch": _event(
        "b9f5a0d2-3f1a-4a58-8d53-1f6f6f0a1a07",
        "08:02:00",
        student_prompt_ref={"storage_id": "prompts/eng5/8.txt"},
        deadline_s=3_600,
    ),
}


def _cloud_event(
    event_type: str, sequence: int, at: str, data: Json, generation: str = "1"
) -> Json:
    return {
        "specversion": "1.0",
        "id": str(outgoing_id(BATCH, event_type, generation)),
        "source": SOURCE,
        "type": event_type,
        "subject": BATCH,
        "time": f"2026-11-26T{at}Z",
        "datacontenttype": "application/json",
        "sequence": sequence,
        "correlationid": CORRELATION,
        "data": {"batch_id": BATCH, **data},
    }


ESSAYS = [{"essay_id": f"essay-{number}", **_content(number)} for number in (1, 2)]
REGISTERED = {
    "class_type": "REGULAR",
    "course_code": "ENG5",
    "course_language": "en",
    "user_id": PERSON,
    "org_id": "skolan_vasteras",
    "class_id": "7b",
    "metadata": {"term": "2026-autumn"},
    "expected_count": 3,
    "failed_count": 1,
    "manifest_sha256": manifest_sha256(ESSAYS),
}

EVENT_EXAMPLES: dict[str, Json] = {
    event["type"]: event
    for event in (
        _cloud_event(
            "BatchContentProvisioningCompleted",
            1,
            "08:06:00.412",
            {**REGISTERED, "provisioned_count": 2, "essays": ESSAYS},
        ),
        _cloud_event(
            "BatchEssaysReady",
            3,
            "08:41:00.087",
            {
                **REGISTERED,
                "ready_count": 2,
                "ready_essays": [{**ESSAYS[0], "student_id": "student-17"}, ESSAYS[1]],
                "student_prompt_ref": {"storage_id": "prompts/eng5/7.txt"},
            },
        ),
        _cloud_event(
            "BatchValidationErrors",
            2,
            "08:06:00.412",
            {
                "failed_essays": [
                    {
                        "essay_id": "essay-3",
                        "file_upload_id": "upload-3",
                        "original_file_name": "Uppsats 3.pdf",
                        "validation_error_code": "ENCRYPTED_FILE_UNSUPPORTED",
                        "validation_error_detail": {"hint": "save the file without a password"},
                        "failed_at": "2026-11-26T08:06:00.398Z",
                    }
                ],
                "total_errors": 1,
                "error_categories": {"ENCRYPTED_FILE_UNSUPPORTED": 1},
                "critical_failure": False,
            },
        ),
        _cloud_event(
            "ExcessContentProvisioned",
            4,
            "08:42:10.930",
            {**_content(4), "reason": "NO_AVAILABLE_SLOT"},
            _content(4)["text_storage_id"],
        ),
        _cloud_event(
            "EssaySlotAssigned", 1, "08:05:00.031", ESSAYS[0], _content(1)["text_storage_id"]
        ),
        _cloud_event(
            "BatchReadinessTimeout",
            1,
            "10:00:01.204",
            {
                "expected_count": 3,
                "actual_count": 2,
                "failed_count": 0,
                "missing_count": 1,
                "missing_essay_ids": ["essay-3"],
                "ready_essays": ESSAYS,
                "waited_s": 7_201.204,
                "on_deadline": "proceed",
            },
        ),
        _cloud_event(
            "MessageRefused",
            2,
            "08:41:00.020",
            {
                "dead_letter": 17,
                "task": "els.confirm_students",
                "event_id": "b9f5a0d2-3f1a-4a58-8d53-1f6f6f0a1a05",
                "correlation_id": CORRELATION,
                "code": "UNKNOWN_ESSAY",
                "message": f"batch {BATCH} has no essay essay-9; correct it and resend",
            },
            "17",
        ),
        _cloud_event(
            "BatchCancelled", 1, "08:50:00.020", {"reason": "the teacher chose another class"}
        ),
    )
}
assert EVENT_EXAMPLES.keys() == EVENTS.keys(), "an event has no example"
