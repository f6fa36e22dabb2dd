# `make reference` copies this module from core/messages.py; change that one.
"""Incoming events: their models, and the types of their fields. `core/parsing.py` reads bodies."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    Strict,
    model_validator,
)

KIB = 1024
SINGLE_LIMIT = 256 * KIB  # bytes of canonical JSON; from the contract
BULK_LIMIT = 8 * KIB * KIB
# Of a message's body on the wire: `\u00e9` takes three times as long as é, and blanks add to it.
WIRE_LIMIT = 3 * BULK_LIMIT + KIB * KIB
BIGINT_MAX = 2**63 - 1
RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:(\d{2})")
# As a JSON Schema says it: most validators do not look at `format`.
MOMENT = "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-5][0-9]([.][0-9]+)?([Zz]|[+-]00:00)$"
IDENTIFIER = r"^[A-Za-z0-9_-]{1,64}$"
NAME = r"^[^\x00-\x1f\x7f-\x9f]*$"  # no control characters; read alike by every regex engine
STORAGE_KEY = r"^[!-~]*$"
NAME_LENGTH = 255
SAID = ("default", "description", "title")  # by a JSON Schema of a field, beside its type
NOT_RFC3339 = "must be an RFC 3339 timestamp, such as 2026-01-31T08:00:00Z"
NOT_UTC = "must be in UTC, written with Z or +00:00"


def _utc(moment: datetime) -> datetime:
    if moment.utcoffset() != timedelta(0):
        raise ValueError(NOT_UTC)
    return moment


def _rfc3339(value: object) -> object:
    written = RFC3339.match(value) if isinstance(value, str) else None
    if written is None:  # digits alone would be read as seconds
        raise ValueError(NOT_RFC3339)
    if written[1] == "60":
        raise ValueError("must not be in a leap second: write 59 in place of 60")
    return value


def _version(number: int) -> int:
    if number != 1:
        raise ValueError("must be 1")
    return number


def _or_null(schema: dict[str, JsonValue]) -> None:
    due = {name: schema.pop(name) for name in list(schema) if name not in SAID}
    schema["anyOf"] = [due, {"type": "null"}]


Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
# A name that others give: of a user, an organisation, a class, a student or a course.
Name = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH, pattern=NAME)]
# The key of a file in a store, such as S3. It contains no blank, because a blank separates it from
# the essay id in a line of the manifest, and marks the claimant of a slot that is a rejected file.
StorageKey = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH, pattern=STORAGE_KEY)]
Timestamp = Annotated[
    AwareDatetime,
    Strict(False),  # of its text
    BeforeValidator(_rfc3339),
    AfterValidator(_utc),
    Field(json_schema_extra={"pattern": MOMENT}),
]
FileName = Annotated[str, Field(min_length=1, max_length=1024)]
Seconds = Annotated[float, Field(gt=0, le=10 * 366 * 86_400)]
AtDeadline = Literal["fail", "proceed"]
Nullable = Field(json_schema_extra=_or_null)  # `BatchEssaysRegistered` takes null for absent
FileSize = Annotated[int, Field(ge=0, le=BIGINT_MAX)]
JsonObject = dict[str, JsonValue]
ErrorCode = Literal[
    "EMPTY_CONTENT",
    "CONTENT_TOO_SHORT",
    "CONTENT_TOO_LONG",
    "RAW_STORAGE_FAILED",
    "TEXT_EXTRACTION_FAILED",
    "ENCRYPTED_FILE_UNSUPPORTED",
    "UNKNOWN_VALIDATION_ERROR",
]


class Wire(BaseModel):
    """Strict and frozen; an unknown field is refused. The reference shows a field's docstring."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # a value may be personal
    )


class Event(Wire):
    """The fields of every event. `event_id` is the idempotency key."""

    event_id: UUID
    """The idempotency key: a repeat of the message has the same."""
    correlation_id: UUID
    """Every outgoing event of the batch carries the one of its registration."""
    timestamp: Timestamp
    """When the sender wrote the event; a repeat may have another one."""
    schema_version: Annotated[  # a Literal would accept `true`
        int, AfterValidator(_version), Field(json_schema_extra={"minimum": 1, "maximum": 1})
    ]
    """The version of these fields."""
    batch_id: Identifier
    """The batch."""


class BatchEssaysRegistered(Event):
    """The orchestrator expects these essays. A batch without `class_id` is a guest batch."""

    essay_ids: Annotated[
        list[Identifier],
        Field(min_length=1, max_length=100_000, json_schema_extra={"uniqueItems": True}),
    ]
    """The essays that are expected, each once; their bytewise order is the order of the slots."""
    expected_essay_count: Annotated[int, Field(ge=1, le=100_000)]
    """The number of `essay_ids`."""
    course_code: Name
    """The course, as the events repeat it."""
    course_language: Name | None = None
    """The language of the course, as the events repeat it."""
    user_id: Name
    """The teacher."""
    org_id: Name | None = None
    """The teacher's organisation."""
    class_id: Name | None = None
    """The class. Absent: a guest batch, which is ready once it is complete. Present: a regular one,
    which then waits for `els.confirm_students`."""
    student_prompt_ref: JsonObject | None = None
    """Where the students' task is; `BatchEssaysReady` carries it."""
    deadline_s: Annotated[Seconds, Nullable] = 86_400
    """Seconds from the registration until the batch no longer waits; at most ten years."""
    on_deadline: Annotated[AtDeadline, Nullable] = "fail"
    """At the deadline: give the batch up, or go on without the essays that are missing."""
    metadata: JsonObject | None = None
    """Anything of the sender's; the events carry it."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        return {
            name: value
            for name, value in given.items()
            if value is not None or name not in ("deadline_s", "on_deadline")
        }

    @model_validator(mode="after")
    def _ids_are_unique_and_counted(self) -> Self:
        if len(set(self.essay_ids)) != len(self.essay_ids):
            raise ValueError("essay_ids must be unique")
        if self.expected_essay_count != len(self.essay_ids):
            raise ValueError("expected_essay_count must equal the number of essay_ids")
        return self


class Content(Wire):
    """One stored text."""

    text_storage_id: StorageKey
    """Where the text is stored. A content of a batch is known by it."""
    file_upload_id: StorageKey
    """The upload of the file that the text comes from."""
    original_file_name: FileName
    """The file's name as its owner gave it."""
    raw_file_storage_id: StorageKey | None = None
    """Where the file itself is stored."""
    file_size_bytes: FileSize
    """The size of the file."""
    content_md5_hash: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """A hash of the text; stored and not compared."""


class EssayContentProvisioned(Content, Event):
    """The file service stored one text."""


class BatchContentsProvisioned(Event):
    """The file service stored the texts of one upload."""

    contents: Annotated[list[Content], Field(min_length=1, max_length=10_000)]
    """The texts."""


class EssayValidationFailed(Event):
    """The file service rejected a file; it consumes a slot."""

    file_upload_id: StorageKey
    """The upload of the file. A rejected file of a batch is known by it."""
    original_file_name: FileName
    """The file's name as its owner gave it."""
    raw_file_storage_id: StorageKey | None = None
    """Where the file itself is stored."""
    validation_error_code: ErrorCode
    """Why the file is no essay."""
    validation_error_detail: JsonObject | None = None
    """What a person needs to mend the file."""
    file_size_bytes: FileSize | None = None
    """The size of the file."""


class Association(Wire):
    """The student of an essay."""

    essay_id: Identifier
    """The essay."""
    student_id: Name | None = None
    """Its student; absent or null: unknown."""
    confidence_score: Annotated[float, Field(ge=0, le=1)]
    """How sure the match is."""
    validation_method: Literal["human", "timeout", "auto"]
    """Who confirmed it: a person, a timeout or a program."""
    validated_by: Name | None = None
    """The person who confirmed it."""
    validated_at: Timestamp
    """When it was confirmed."""


class StudentAssociationsConfirmed(Event):
    """A teacher, or a timeout, confirmed the students of a batch."""

    class_id: Name
    """The class of the registration, to the letter."""
    associations: Annotated[list[Association], Field(max_length=100_000)]
    """Whose essays they are; each essay once. An essay that is absent has no student."""
    timeout_triggered: bool
    """A timeout confirmed them, and not a person."""

    @model_validator(mode="after")
    def _one_association_an_essay(self) -> Self:
        ids = [association.essay_id for association in self.associations]
        if len(set(ids)) != len(ids):
            raise ValueError("associations must name each essay once")
        return self


class BatchCancelled(Event):
    """The orchestrator gives the batch up."""

    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Why; the event repeats it."""


class BatchAmended(Event):
    """The orchestrator changes a batch that is not sealed yet. It names one field at least."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
                for name in ("student_prompt_ref", "deadline_s", "on_deadline")
            ]
        }
    )

    student_prompt_ref: JsonObject | None = None
    """Where the students' task is from now on; `BatchEssaysReady` carries it."""
    deadline_s: Seconds | None = None
    """Seconds from now until the batch no longer waits; at most ten years."""
    on_deadline: AtDeadline | None = None
    """At the deadline: give the batch up, or go on without the essays that are missing."""

    @model_validator(mode="after")
    def _amends_something(self) -> Self:
        if all(
            each is None for each in (self.student_prompt_ref, self.deadline_s, self.on_deadline)
        ):
            raise ValueError("name student_prompt_ref, deadline_s or on_deadline")
        return self


@dataclass(frozen=True)
class Idempotency:
    """A repeat has the same key, task and fingerprint of the body."""

    key: UUID
    task: str
    fingerprint: bytes
