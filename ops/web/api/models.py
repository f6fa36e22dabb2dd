"""What the read API answers. A reader should accept fields that it does not know."""

from typing import Any, ClassVar
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from core.states import ClassType


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    PASSING: ClassVar[set[str]] = set()
    """Fields whose change alone makes no other answer: its ETag leaves them out."""


class Broken(Answer):
    """A rule that a batch breaks, so that it is stuck."""

    code: str
    """The rule, as in the runbook."""
    title: str
    """What is wrong, in words."""
    since: AwareDatetime | None
    """Since when, if that is known."""


class Counts(Answer):
    """How many slots and contents a batch has; null: nobody has registered it."""

    expected_count: int | None
    """The number of slots."""
    open: int | None
    """Slots that wait for a content."""
    assigned: int | None
    """Slots with a content."""
    failed: int | None
    """Slots whose file was rejected or, after the deadline, never came."""
    unfilled: int | None
    """Slots that were open when the batch was closed."""
    pending: int
    """Contents and rejected files that wait for the registration."""
    excess: int
    """Contents and rejected files that found no slot."""
    undelivered: int
    """Events that wait for their delivery."""


class Batch(Answer):
    """A batch."""

    batch_id: str
    """Its id."""
    state: str
    """As `batch_essay_trackers.status` has it; `not_registered`: contents wait for it."""
    class_type: ClassType | None
    """`REGULAR`: it has a class."""
    course_code: str | None
    """As registered."""
    course_language: str | None
    """As registered."""
    user_id: str | None
    """As registered."""
    org_id: str | None
    """As registered."""
    class_id: str | None
    """As registered."""
    counts: Counts
    """Its slots and contents."""
    registered_at: AwareDatetime | None
    """When it was registered."""
    deadline_at: AwareDatetime | None
    """Until when it waits."""
    completed_at: AwareDatetime | None
    """When every slot was accounted for, and the batch sealed."""
    ready_at: AwareDatetime | None
    """When `BatchEssaysReady` was written."""
    closed_at: AwareDatetime | None
    """When it was cancelled or timed out."""
    stuck: list[Broken]
    """The rules that it breaks; none: it is not stuck."""


class Batches(Answer):
    """A page of batches, the newest first."""

    PASSING = {"rules_checked_at"}

    items: list[Batch]
    """The batches. With a filter a page may have few, or none, although `next` is there."""
    next: str | None
    """The `after` of the next page; null: this is the last one."""
    rules_checked_at: AwareDatetime
    """When the rules were checked last, for `stuck`."""
    more_stuck: bool
    """A rule is broken by more batches than one check lists, so `stuck` lacks some."""


class Cause(Answer):
    """Why the batch is not ready."""

    code: str
    """As in the runbook."""
    title: str
    """The cause in words."""
    reason: str
    """Why it is so."""
    by_itself: str
    """What the service does about it."""
    command: str
    """What a person can do."""
    since: AwareDatetime | None
    """Since when, if that is known."""


class Moment(Answer):
    """A line of the timeline."""

    at: AwareDatetime
    """When."""
    what: str
    """What happened."""


class BatchExplained(Batch):
    """A batch, and why it is or is not ready."""

    correlation_id: UUID | None
    """The `correlation_id` of its registration."""
    on_deadline: str | None
    """What happens at the deadline: `fail` or `proceed`."""
    closed_reason: str | None
    """Why it was cancelled, as the sender wrote it."""
    manifest_sha256: str | None
    """The digest of all essays with a content, once the batch is sealed."""
    causes: list[Cause]
    """Why it is not ready, the most urgent first; none: nothing is missing."""
    timeline: list[Moment]
    """What happened to it."""
    disagreements: list[str]
    """Where two places that should agree do not."""


class Essay(Answer):
    """A slot of a batch."""

    batch_id: str
    """The batch."""
    essay_id: str
    """The essay."""
    state: str
    """As `essay_states.current_status` has it."""
    text_storage_id: str | None
    """Where its text is stored; null: it has none."""
    file_upload_id: str | None
    """The upload of its file, also of a rejected one."""
    original_file_name: str | None
    """The file's name as its owner gave it."""
    validation_error_code: str | None
    """Why the file was rejected."""
    student_id: str | None
    """Its student, once the students are confirmed."""
    assigned_at: AwareDatetime | None
    """When the file, also a rejected one, took the slot."""


class BatchEssays(Answer):
    """A page of essays, in bytewise order of their ids."""

    items: list[Essay]
    """The essays."""
    next: str | None
    """The `after` of the next page; null: this is the last one."""


class EssayInBatches(Answer):
    """The slots with this essay id, by batch: an id is unique only in its batch."""

    items: list[Essay]
    """The slots."""
    next: str | None
    """The `after` of the next page; null: this is the last one."""


class DeadLetter(Answer):
    """A message that no worker could execute."""

    id: int
    """Its number."""
    task: str
    """The task that it calls."""
    task_id: str
    """The id that Celery gave it."""
    batch_id: str | None
    """The batch that it names."""
    code: str
    """Why; see the codes of dead letters."""
    sqlstate: str | None
    """The code of an error of Postgres."""
    message: str
    """Why, in words."""
    deliveries: int
    """How often it came."""
    parked_at: AwareDatetime
    """When it was kept."""
    replayed_at: AwareDatetime | None
    """When somebody sent it again."""
    discarded_at: AwareDatetime | None
    """When somebody gave it up."""


class MessageOutcome(Answer):
    """What became of a message."""

    event_id: UUID
    """The `event_id` of the message."""
    state: str
    """`executed`, or `dead_letter`: it changed nothing."""
    task: str
    """The task that it calls."""
    batch_id: str | None
    """The batch that it names."""
    outcome: dict[str, Any] | None  # Any: JSON
    """What the task returned, as it returns it for every repeat."""
    executed_at: AwareDatetime | None
    """When."""
    dead_letters: list[DeadLetter]
    """Its dead letters, the newest first: also those of repeats with another body."""


class Event(Answer):
    """An event as receivers get it: a CloudEvents 1.0 object."""

    specversion: str
    """The version of CloudEvents."""
    id: UUID
    """Always the same: drop repeats by it."""
    source: str
    """This service."""
    type: str
    """The type of the event, which decides what `data` holds."""
    subject: str
    """The batch; `unknown` for a refused message that names none."""
    time: str
    """When the event became true, in UTC."""
    datacontenttype: str
    """The type of `data`."""
    sequence: int
    """The number of the event in its batch, from 1 on."""
    correlationid: UUID
    """The `correlation_id` of the batch's registration."""
    traceparent: str | None = None
    """The span of the task that made the event true (W3C); only where traces are on."""
    data: dict[str, Any]  # Any: JSON
    """The body, by type."""

    @model_serializer(mode="wrap")
    def _without_nulls(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if self.traceparent is None:
            del written["traceparent"]
        return written


class Events(Answer):
    """A page of events, in the order in which they are read."""

    items: list[Event]
    """The events. No page after this one ever has an event that belongs before it."""
    next: str | None
    """Where to go on, now or later; null: there is no event yet."""
    more: bool
    """The next page has some already."""
