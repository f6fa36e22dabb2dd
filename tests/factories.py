"""Builders: an event with everything it needs; a test spells out only what matters."""

from datetime import UTC, datetime
from uuid import uuid4

from core.catalogue import TASKS
from core.model import Message, SubmittingEvent
from core.parsing import parse

LIMIT = 8 * 1024 * 1024
MODELS = {task.name: task.model for task in TASKS.values()}


def new_batch() -> str:
    return f"batch-{uuid4().hex[:12]}"


def essay_ids(count: int) -> list[str]:
    return [f"essay-{number:06d}" for number in range(count)]


def now() -> str:
    return datetime.now(UTC).isoformat()


def common(batch_id: str, **fields) -> dict:
    return {
        "event_id": str(uuid4()),
        "correlation_id": str(uuid4()),
        "timestamp": now(),
        "schema_version": 1,
        "batch_id": batch_id,
        **fields,
    }


def registration(batch_id: str, essays: int | list[str] = 3, **fields) -> dict:
    ids = essay_ids(essays) if isinstance(essays, int) else essays
    return common(
        batch_id,
        **{
            "essay_ids": ids,
            "expected_essay_count": len(ids),
            "course_code": "ENG5",
            "user_id": "teacher-1",
            **fields,
        },
    )


def a_content(text: str, **fields) -> dict:
    return {
        "text_storage_id": text,
        "file_upload_id": f"file-{text}",
        "original_file_name": f"{text}.txt",
        "file_size_bytes": 1200,
        **fields,
    }


def content(batch_id: str, text: str = "text-1", **fields) -> dict:
    return common(batch_id, **{**a_content(text), **fields})


def contents(batch_id: str, texts: list[str], **fields) -> dict:
    return common(batch_id, contents=[a_content(text) for text in texts], **fields)


def rejection(batch_id: str, file: str = "file-1", **fields) -> dict:
    return common(
        batch_id,
        **{
            "file_upload_id": file,
            "original_file_name": f"{file}.txt",
            "validation_error_code": "EMPTY_CONTENT",
            **fields,
        },
    )


def association(essay_id: str, student_id: str | None = "student-1", **fields) -> dict:
    return {
        "essay_id": essay_id,
        "student_id": student_id,
        "confidence_score": 0.9,
        "validation_method": "human",
        "validated_at": now(),
        **fields,
    }


def confirmation(batch_id: str, associations: list[dict], class_id="class-1", **fields) -> dict:
    return common(
        batch_id,
        **{
            "class_id": class_id,
            "associations": associations,
            "timeout_triggered": False,
            **fields,
        },
    )


def cancellation(batch_id: str, reason: str = "teacher asked") -> dict:
    return common(batch_id, reason=reason)


def amendment(batch_id: str, **fields) -> dict:
    return common(batch_id, **(fields or {"on_deadline": "proceed"}))


EXAMPLES = {  # one event for each task
    "els.register_batch": registration("b", 3),
    "els.assign_content": content("b"),
    "els.assign_contents": contents("b", ["text-1", "text-2"]),
    "els.reject_content": rejection("b"),
    "els.confirm_students": confirmation("b", [association("essay-1"), association("essay-2")]),
    "els.cancel_batch": cancellation("b"),
    "els.amend_batch": amendment("b"),
}


def take(lifecycle, task: str, event: dict):
    """Validate an event and take its step, as the task does; return `StepResult`."""
    parsed, idem = parse(MODELS[task], task, event, LIMIT)
    if not isinstance(parsed, SubmittingEvent):
        return getattr(lifecycle, task.removeprefix("els."))(parsed, idem)
    [result] = lifecycle.assign([Message.of(parsed, idem)])
    if isinstance(result, Exception):
        raise result
    return result
