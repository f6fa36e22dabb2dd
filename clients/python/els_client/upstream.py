"""The tasks of the service as typed methods: what `Sender` and `FakeELS` have in common."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel

from els_client._service.catalogue import (
    AMEND_BATCH,
    ASSIGN_CONTENT,
    ASSIGN_CONTENTS,
    CANCEL_BATCH,
    CONFIRM_STUDENTS,
    REGISTER_BATCH,
    REJECT_CONTENT,
    TASKS,
    Task,
)
from els_client._service.errors import InvalidEvent
from els_client._service.nesting import is_deeper
from els_client._service.parsing import canonical, parse
from els_client.ids import correlation_id as correlation_id_of
from els_client.ids import event_id as event_id_of
from els_client.messages import Association, AtDeadline, Content, ErrorCode

Json = Mapping[str, Any]  # Any: JSON
Outcome = dict[str, Any]  # Any: what a task returns, JSON
DEEPEST = 98  # levels of an event: the service reads bodies of 100, and Celery's has two around it


@dataclass(frozen=True)
class Message:
    """A message that is valid, and ready to be sent."""

    task: str
    task_id: str
    event_id: UUID
    body: str  # canonical JSON
    fingerprint: bytes

    @property
    def event(self) -> dict[str, Any]:  # Any: JSON
        """The body as JSON."""
        read: dict[str, Any] = json.loads(self.body)  # Any: JSON
        return read


@dataclass(frozen=True)
class Sent:
    """A message that was sent, or (`spooled`) that waits on disk until the broker is back."""

    message: Message
    spooled: bool
    _outcome: Callable[[float], Outcome] = field(repr=False, compare=False)

    @property
    def event_id(self) -> UUID:
        """The idempotency key: the same message again has the same."""
        return self.message.event_id

    def outcome(self, timeout_s: float = 30) -> Outcome:
        """Wait for what became of the message: `{"outcome": "assigned", …}`.

        A refused message has the outcome `dead_letter`, with `code` and `message`. Raises
        TimeoutError while there is none, TaskFailed, and ValueError if no results were asked for.
        """
        return self._outcome(timeout_s)


def checked(task: str, event: Json) -> Message:
    """Validate a message as the service will. Raises InvalidEvent, which names field and rule."""
    known = TASKS.get(task)
    if known is None:
        raise InvalidEvent(f"the service has no task {task}; it has {', '.join(TASKS)}")
    _, idem = parse(known.model, task, event, known.limit)
    refuse_deep(task, event)
    return Message(task, str(uuid4()), idem.key, canonical(event), idem.fingerprint)


def refuse_deep(task: str, event: object) -> None:
    """Raise InvalidEvent for an event of more levels than the service reads."""
    if is_deeper(event, DEEPEST):
        raise InvalidEvent(f"{task}: the event has more than {DEEPEST} levels, one in the other")


class Upstream(ABC):
    """Sends the events of upstream services.

    Each method builds an event, validates it and sends it. `correlation_id`: by default one that
    follows from the batch. `event_id`: by default one that follows from the body, so that the same
    call again is a repeat (see `els_client.ids`). Raises InvalidEvent, and changes nothing, for an
    event that the service would refuse.
    """

    @abstractmethod
    def send(self, task: str, event: Json) -> Sent:
        """Send an event that is complete, with its common fields."""

    def register_batch(
        self,
        batch_id: str,
        essay_ids: Sequence[str],
        *,
        course_code: str,
        user_id: str,
        org_id: str | None = None,
        class_id: str | None = None,
        course_language: str | None = None,
        student_prompt_ref: Json | None = None,
        deadline_s: float | None = None,
        on_deadline: AtDeadline | None = None,
        metadata: Json | None = None,
        correlation_id: UUID | str | None = None,
        event_id: UUID | str | None = None,
    ) -> Sent:
        """Announce a batch and the essays that it expects. With `class_id` it is a regular one."""
        if isinstance(essay_ids, str) or not isinstance(essay_ids, Sequence):
            raise TypeError(f"essay_ids must be a list of ids, not {type(essay_ids).__name__}")
        fields = {
            "essay_ids": list(essay_ids),
            "expected_essay_count": len(essay_ids),
            "course_code": course_code,
            "user_id": user_id,
            "org_id": org_id,
            "class_id": class_id,
            "course_language": course_language,
            "student_prompt_ref": student_prompt_ref,
            "deadline_s": deadline_s,
            "on_deadline": on_deadline,
            "metadata": metadata,
        }
        return self._send(REGISTER_BATCH, batch_id, fields, correlation_id, event_id)

    def assign_content(
        self,
        batch_id: str,
        *,
        text_storage_id: str,
        file_upload_id: str,
        original_file_name: str,
        file_size_bytes: int,
        raw_file_storage_id: str | None = None,
        content_md5_hash: str | None = None,
        correlation_id: UUID | str | None = None,
        event_id: UUID | str | None = None,
    ) -> Sent:
        """Announce one stored text."""
        fields = {
            "text_storage_id": text_storage_id,
            "file_upload_id": file_upload_id,
            "original_file_name": original_file_name,
            "file_size_bytes": file_size_bytes,
            "raw_file_storage_id": raw_file_storage_id,
            "content_md5_hash": content_md5_hash,
        }
        return self._send(ASSIGN_CONTENT, batch_id, fields, correlation_id, event_id)

    def assign_contents(
        self,
        batch_id: str,
        contents: Iterable[Content | Json],
        *,
        correlation_id: UUID | str | None = None,
        event_id: UUID | str | None = None,
    ) -> Sent:
        """Announce the stored texts of one upload."""
        fields = {"contents": [_plain(content) for content in contents]}
        return self._send(ASSIGN_CONTENTS, batch_id, fields, correlation_id, event_id)

    def reject_content(
        self,
        batch_id: str,
        *,
        file_upload_id: str,
        original_file_name: str,
        validation_error_code: ErrorCode,
        validation_error_detail: Json | None = None,
        raw_file_storage_id: str | None = None,
        file_size_bytes: int | None = None,
        correlation_id: UUID | str | None = None,
        event_id: UUID | str | None = None,
    ) -> Sent:
        """Announce a file that failed validation. It takes a slot."""
        fields = {
            "file_upload_id": file_upload_id,
            "original_file_name": original_file_name,
            "validation_error_code": validation_error_code,
            "validation_error_detail": validation_error_detail,
            "raw_file_storage_id": raw_file_storage_id,
            "file_size_bytes": file_size_bytes,
        }
        return self._send(REJECT_CONTENT, batch_id, fields, correlation_id, event_id)

    def confirm_students(
        self,
        batch_id: str,
        *,
        class_id: str,
        associations: Iterable[Association | Json],
        timeout_triggered: bool = False,
        correlation_id: UUID | str | None = None,
        event_id: UUID | str | None = None,
    ) -> Sent:
        """Announce whose essays they are."""
        fields = {
            "class_id": class_id,
            "associations": [_plain(association) for association in associations],
            "timeout_triggered": timeout_triggered,
        }
        return self._send(CONFIRM_STUDENTS, batch_id, fields, correlation_id, event_id)

    def cancel_batch(
        self,
        batch_id: str,
        *,
        reason: str,
        correlation_id: UUID | str | None = None,
        event_id: UUID | str | None = None,
    ) -> Sent:
        """Give a batch up."""
        return self._send(CANCEL_BATCH, batch_id, {"reason": reason}, correlation_id, event_id)

    def amend_batch(
        self,
        batch_id: str,
        *,
        student_prompt_ref: Json | None = None,
        deadline_s: float | None = None,
        on_deadline: AtDeadline | None = None,
        correlation_id: UUID | str | None = None,
        event_id: UUID | str | None = None,
    ) -> Sent:
        """Change a batch that is not sealed yet.

        The id is a new one at each call: the same amendment later, after another one or with a
        deadline that runs from now, is no repeat. Give an `event_id` to make it one.
        """
        fields = {
            "student_prompt_ref": student_prompt_ref,
            "deadline_s": deadline_s,
            "on_deadline": on_deadline,
        }
        return self._send(AMEND_BATCH, batch_id, fields, correlation_id, event_id or uuid4())

    def _send(
        self,
        task: Task,
        batch_id: str,
        fields: Json,
        correlation_id: UUID | str | None,
        event_id: UUID | str | None,
    ) -> Sent:
        event: dict[str, Any] = {  # Any: JSON
            "batch_id": batch_id,
            "schema_version": 1,
            **{name: value for name, value in fields.items() if value is not None},
        }
        try:
            event["correlation_id"] = str(correlation_id or correlation_id_of(batch_id))
            event["event_id"] = str(event_id or event_id_of(task.name, event))
        except (ValueError, TypeError, RecursionError):  # no JSON: `send` says why it is refused
            event["event_id"] = str(uuid4())
        event["timestamp"] = datetime.now(UTC).isoformat()
        return self.send(task.name, event)


def _plain(part: BaseModel | Json) -> Json:
    return part.model_dump(mode="json", exclude_none=True) if isinstance(part, BaseModel) else part
