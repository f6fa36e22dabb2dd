"""Incoming events: their models, canonical JSON, and what makes a repeat a repeat.

`parse` writes a body as canonical JSON once; size, fingerprint and validation read that one text.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from typing import Annotated, Any, Literal, Self, TypeVar
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
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from core.errors import InvalidEvent

KIB = 1024
SINGLE_LIMIT = 256 * KIB  # bytes of canonical JSON; from the contract
BULK_LIMIT = 8 * KIB * KIB
# Of a message's body on the wire: `\u00e9` takes three times as long as é, and blanks add to it.
WIRE_LIMIT = 3 * BULK_LIMIT + KIB * KIB
BIGINT_MAX = 2**63 - 1
RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:(\d{2})")
# As a JSON Schema says it: most validators do not look at `format`.
MOMENT = "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-5][0-9]([.][0-9]+)?([Zz]|[+-]00:00)$"
NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # Postgres stores no NUL in text or jsonb
IDENTIFIER = r"^[A-Za-z0-9_-]{1,64}$"
NAME = r"^[^\x00-\x1f\x7f-\x9f]*$"  # no control characters; read alike by every regex engine
STORAGE_KEY = r"^[!-~]*$"
NAME_LENGTH = 255
SAID = ("default", "description", "title")  # by a JSON Schema of a field, beside its type
FIELD = re.compile(r"[a-z][A-Za-z_]{0,39}")  # of a sender's: a name that may be repeated
PYDANTIC = re.compile(r"^(?:Input|String|List|Dictionary|Value|Object|Data) should")
RULES = {  # the rule of each pattern, in words for senders
    IDENTIFIER: "must be 1 to 64 characters, each a letter A to Z or a to z, a digit, _ or -",
    NAME: "must not hold control characters, such as a tab or a line break",
    STORAGE_KEY: "must hold visible ASCII characters only, ! to ~: no blanks, no letters such as é",
}


NOT_RFC3339 = "must be an RFC 3339 timestamp, such as 2026-01-31T08:00:00Z"
NOT_UTC = "must be in UTC, written with Z or +00:00"
RULES_OF_KINDS = {  # in place of what pydantic says of these kinds of faults
    "missing": "is missing",
    "uuid_parsing": "must be a UUID",  # pydantic quotes a character of it
    "uuid_type": "must be a UUID",
    "datetime_parsing": NOT_RFC3339,
    "datetime_from_date_parsing": NOT_RFC3339,
    "timezone_aware": NOT_UTC,
}


def _utc(moment: datetime) -> datetime:
    if moment.utcoffset() != timedelta(0):
        raise ValueError(NOT_UTC)
    return moment


Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
# A name that others give: of a user, an organisation, a class, a student or a course.
Name = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH, pattern=NAME)]
# The key of a file in a store, such as S3. It contains no blank, because a blank separates it from
# the essay id in a line of the manifest, and marks the claimant of a slot that is a rejected file.
StorageKey = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH, pattern=STORAGE_KEY)]


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


def _plain(value: object) -> str:
    """Write a typed value of Kombu's JSON decoder as other senders write it in JSON."""
    match value:
        case UUID():
            return str(value)
        case datetime():
            return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON value")


NO_JSON = (ValueError, TypeError, RecursionError)  # from `canonical`, and from half a character
CANONICAL = json.JSONEncoder(  # made once: making it takes longer than writing a small body
    sort_keys=True,
    separators=(",", ":"),
    ensure_ascii=False,
    allow_nan=False,
    default=_plain,
)


def canonical(value: object) -> str:
    """Write JSON with sorted keys and no spaces.

    Raises ValueError, TypeError or RecursionError for what JSON cannot hold, NaN included.
    """
    return CANONICAL.encode(value)


E = TypeVar("E", bound=Event)


def parse(model: type[E], task: str, raw: object, limit: int) -> tuple[E, Idempotency]:
    """Validate a body; return the event and its idempotency key with fingerprint.

    `limit` is in bytes of canonical JSON. The fingerprint is the SHA-256 of the canonical JSON
    without `timestamp`, so a sender may send a repeat with another one. Raises InvalidEvent.
    """
    if not isinstance(raw, Mapping):
        raise InvalidEvent(f"{task}: the event must be a JSON object; send kwargs={{'event': …}}")
    try:
        compared = canonical({key: raw[key] for key in raw if key != "timestamp"})
        stamp = canonical({key: raw[key] for key in raw if key == "timestamp"})
        text = "{" + ",".join(filter(None, (compared[1:-1], stamp[1:-1]))) + "}"
        body = text.encode()
    except NO_JSON as error:
        raise InvalidEvent(f"{task}: {_no_json(raw, error)}") from error
    if len(body) > limit:
        raise InvalidEvent(f"{task}: the event has {len(body)} bytes; at most {limit} are allowed")
    try:
        event = model.model_validate_json(body)
    except ValidationError as error:
        raise InvalidEvent(f"{task}: {_first_faults(error)}") from error
    if "\\u0000" in text and NUL.search(text):  # `in` is a hundred times as fast
        named = next(name for name in raw if NUL.search(canonical({name: raw[name]})))
        raise InvalidEvent(f"{task}: {named}: must not hold a NUL character")
    return event, Idempotency(event.event_id, task, hashlib.sha256(compared.encode()).digest())


def _no_json(raw: Mapping[str, Any], error: Exception) -> str:  # Any: no JSON
    """Name the first field that JSON cannot hold, and say why."""
    for name, value in raw.items():
        try:
            canonical({name: value}).encode()
        except NO_JSON as its_own:
            ours = name in _fields() or (isinstance(name, str) and FIELD.fullmatch(name))
            return f"{name if ours else 'event'}: {_why_no_json(its_own)}"
    return f"event: {_why_no_json(error)}"


def _why_no_json(error: Exception) -> str:
    match error:
        case RecursionError():
            return "is nested too deeply"
        case UnicodeEncodeError():
            return "must not hold half of a surrogate pair, which is no character"
        case ValueError() if "Circular" not in str(error):
            return "must not hold NaN or Infinity, which JSON does not have"
    return "must not hold a value of a type that JSON does not have"


def _first_faults(error: ValidationError, most: int = 5) -> str:
    """Name the first faults by field, without the values: they may be personal.

    Unknown fields come first, as a field that is misspelt or nested is missing too.
    """
    faults = error.errors(include_url=False, include_input=False)
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")
    named = [f"{_place(fault)}: {_rule(fault)}" for fault in faults]
    more = f" (and {len(named) - most} more)" if len(named) > most else ""
    return "; ".join(named[:most]) + more


def _place(fault: ErrorDetails) -> str:
    """Name a field: one of ours, or one that cannot be the name of a person or a file."""
    parts = fault["loc"]
    ours = list(takewhile(lambda part: isinstance(part, int) or part in _fields(), parts))
    unknown = parts[len(ours) : len(ours) + 1]
    if fault["type"] == "extra_forbidden" and FIELD.fullmatch(str(*unknown)):
        ours += unknown
    return ".".join(map(str, ours)) or "event"


def _rule(fault: ErrorDetails) -> str:
    match fault["type"]:
        case "extra_forbidden":
            name = str(fault["loc"][-1])
            near = get_close_matches(name.lower(), _fields(), 1)
            is_meant = f"; is {near[0]} meant?" if near and near[0] != name else ""
            return _unknown(fault) + is_meant
        case kind if kind in RULES_OF_KINDS:
            return RULES_OF_KINDS[kind]
        case "value_error":
            return str(fault["ctx"]["error"])
    rule = RULES.get(fault.get("ctx", {}).get("pattern", ""), fault["msg"])
    return PYDANTIC.sub("must", rule).replace(" after validation", "")


def _unknown(fault: ErrorDetails) -> str:
    named = _place(fault).rpartition(".")[2] == str(fault["loc"][-1])
    return "is an unknown field" if named else "has an unknown field"


@cache
def _fields() -> frozenset[str]:
    """List the fields of all events and of their parts."""
    models: tuple[type[BaseModel], ...] = (*Event.__subclasses__(), Content, Association)
    return frozenset(name for model in models for name in model.model_fields)
