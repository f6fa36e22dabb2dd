# `make reference` copies this module from ops/reference/event_bodies.py; change that one.
"""What downstream services receive: the fields of each event, for the reference and the schemas.

What writes events does not use these models, because nobody here reads a body. Tests validate every
event that they and the demo receive against them.
"""

from collections.abc import Mapping
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from els_client._service.messages import ErrorCode, FileName, Identifier, JsonObject, Name, StorageKey
from els_client._service.states import ClassType, ExcessReason, OnDeadline

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Body(BaseModel):
    """A receiver should accept fields that it does not know: later versions may add some."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )


class Essay(Body):
    """An essay that holds a content."""

    essay_id: Identifier
    """The essay."""
    text_storage_id: StorageKey
    """Where its text is stored."""
    file_upload_id: StorageKey
    """The upload of its file."""
    original_file_name: FileName
    """The file's name as its owner gave it."""


class ReadyEssay(Essay):
    """An essay for the pipeline."""

    student_id: Name | None = None
    """Its student; absent: unknown, or a guest batch."""


class FailedEssay(Body):
    """An essay without a content: its file was rejected, or never came."""

    essay_id: Identifier
    """The essay."""
    validation_error_code: ErrorCode | None = None
    """Why the file was rejected; absent: no file came before the deadline."""
    validation_error_detail: JsonObject | None = None
    """What the file service said about it."""
    failed_at: AwareDatetime | None = None
    """When the rejection took the slot."""
    file_upload_id: StorageKey | None = None
    """The upload of the rejected file."""
    original_file_name: FileName | None = None
    """The file's name as its owner gave it."""


class EssaysRef(Body):
    """Stands for a list of essays that would make the event larger than 512 KiB."""

    field: str
    """The name of the list that is left out."""
    total: Count
    """The length of that list."""
    first: list[ReadyEssay | FailedEssay]
    """The first 1 000 essays, or as many as fit."""
    rest: str
    """The address of the read API that lists all of them: `/v1/batches/{id}/essays?state=…`; with
    `&after=` and the last id of `first` it lists the rest."""


class ObjectRef(Body):
    """Stands for an object of the sender's that is too large for the event."""

    bytes: Count
    """The object's size as canonical JSON."""
    rest: str
    """Where to read it."""


class _OfBatch(Body):
    batch_id: Identifier
    """The batch."""


class _OfEssays(_OfBatch):
    essays_ref: EssaysRef | None = None
    """In place of the list of essays, where that is too large."""


class _OfRegistration(_OfEssays):
    class_type: ClassType
    """`GUEST`: registered without a class. `REGULAR`: with one."""
    course_code: Name
    """As registered."""
    course_language: Name | None = None
    """As registered."""
    user_id: Name
    """As registered."""
    org_id: Name | None = None
    """As registered."""
    class_id: Name | None = None
    """As registered."""
    metadata: JsonObject | None = None
    """As registered."""
    expected_count: Count
    """The number of slots."""
    failed_count: Count
    """The number of slots without a content."""
    manifest_sha256: Sha256
    """The digest of all essays with a content; see the rule of the manifest."""
    reason: Literal["DEADLINE_PASSED"] | None = None
    """Present where the batch went on at a deadline, without some contents or students."""
    objects_ref: dict[str, ObjectRef] | None = None
    """By name, the objects of the sender's that are left out because they are too large."""


class BatchContentProvisioningCompleted(_OfRegistration):
    """Every slot of the batch is accounted for."""

    provisioned_count: Count
    """The number of slots with a content."""
    essays: list[Essay] | None = None
    """The essays with a content, in bytewise order of their ids."""


class BatchEssaysReady(_OfRegistration):
    """The pipeline can start with the batch."""

    ready_count: Count
    """The number of essays for the pipeline."""
    ready_essays: list[ReadyEssay] | None = None
    """These essays, in bytewise order of their ids."""
    student_prompt_ref: JsonObject | None = None
    """As registered."""


class BatchValidationErrors(_OfEssays):
    """Some slots of a complete batch have no content."""

    failed_essays: list[FailedEssay] | None = None
    """These slots, in bytewise order of their essay ids."""
    total_errors: Count
    """Their number."""
    error_categories: dict[str, Count]
    """Their number by error code; `NOT_RECEIVED`: no file came before the deadline."""
    critical_failure: bool
    """No essay has a content."""


class ExcessContentProvisioned(_OfBatch):
    """A content found every slot of its batch taken."""

    text_storage_id: StorageKey
    """Where the text is stored."""
    file_upload_id: StorageKey
    """The upload of its file."""
    original_file_name: FileName
    """The file's name as its owner gave it."""
    reason: Literal[ExcessReason.NO_AVAILABLE_SLOT]
    """Why it has no slot."""


class EssaySlotAssigned(Essay):
    """A content has a slot."""

    batch_id: Identifier
    """The batch."""


class BatchReadinessTimeout(_OfEssays):
    """The deadline passed before the batch was ready."""

    expected_count: Count
    """The number of slots."""
    actual_count: Count
    """The number of slots with a content."""
    failed_count: Count
    """The number of slots whose file was rejected."""
    missing_count: Count
    """The number of slots for which nothing came."""
    missing_essay_ids: Annotated[list[Identifier], Field(max_length=5_000)]
    """Their essays, at most 5 000."""
    ready_essays: list[ReadyEssay] | None = None
    """The essays with a content, in bytewise order of their ids."""
    waited_s: Annotated[float, Field(ge=0)]
    """Seconds since the registration, or since the batch was complete if it waited for students."""
    on_deadline: OnDeadline
    """`fail`: the batch is closed. `proceed`: it goes on without what is missing."""


class BatchCancelled(_OfBatch):
    """The batch was given up."""

    reason: str
    """As the sender wrote it."""


class MessageRefused(Body):
    """A message became a dead letter, and changed nothing."""

    dead_letter: Annotated[int, Field(ge=1)]
    """The number of the dead letter."""
    task: str
    """The task that the message calls, as its sender wrote it; `unknown` if it is no message."""
    event_id: UUID | None = None
    """The `event_id` of the message, where it has one."""
    batch_id: Identifier | None = None
    """The batch that the message names; it need not be registered."""
    correlation_id: UUID | None = None
    """The `correlation_id` of the message, where it has one."""
    code: str
    """Why; see the codes of dead letters."""
    message: str
    """Why, in words, without values of the body."""


BODIES: Mapping[str, type[Body]] = {
    body.__name__: body
    for body in (
        BatchContentProvisioningCompleted,
        BatchEssaysReady,
        BatchValidationErrors,
        ExcessContentProvisioned,
        EssaySlotAssigned,
        BatchReadinessTimeout,
        BatchCancelled,
        MessageRefused,
    )
}


class CloudEvent(BaseModel):
    """The envelope of every event: a CloudEvents 1.0 object."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    specversion: Literal["1.0"]
    """The version of CloudEvents."""
    id: UUID
    """The same at every delivery: drop repeats by it."""
    source: Literal["urn:essay-lifecycle-service"]
    """This service."""
    type: str
    """The type of the event, which decides what `data` holds."""
    subject: Identifier
    """The batch; `unknown` for a refused message that names none."""
    time: AwareDatetime
    """When the event became true, in UTC."""
    datacontenttype: Literal["application/json"]
    """The type of `data`."""
    sequence: Annotated[int, Field(ge=1)]
    """The number of the event in its batch, from 1 on. Of a refusal without a registered batch: of
    its dead letter."""
    correlationid: UUID
    """The `correlation_id` of the batch's registration. Of a refusal without one: the message's, or
    zeros."""
    traceparent: str | None = None
    """The span of the task that made the event true (W3C); only where traces are on."""
    data: dict[str, JsonValue]
    """The body, by type."""
