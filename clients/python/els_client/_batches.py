"""The batches of `FakeELS`: what the service keeps in Postgres, in memory.

Each method is one step of the service's `core.lifecycle`, and returns the value and the events that
it leads to. It raises a Refusal before it changes anything.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from els_client._service.catalogue import AMEND_BATCH, EXCESS_CONTENT_PROVISIONED
from els_client._service.errors import (
    RegistrationConflict,
    UnknownBatch,
    UnknownEssay,
    WrongBatchState,
)
from els_client._service.events import (
    Outgoing,
    batch_cancelled,
    completion,
    essays_ready,
    lacks_some,
    manifest_sha256,
    slot_assigned,
    timeout_event,
)
from els_client._service.messages import (
    BatchAmended,
    BatchCancelled,
    BatchEssaysRegistered,
    StudentAssociationsConfirmed,
)
from els_client._service.model import Location, Message, Submission, Value, outcome
from els_client._service.states import (
    OPEN,
    BatchStatus,
    EssayStatus,
    ExcessReason,
    OnDeadline,
    completed_status,
)
from els_client._service.tracker import Tracker

Result = tuple[Value, list[Outgoing]]
AMENDABLE = frozenset(AMEND_BATCH.known_by)


@dataclass
class Slot:
    """An essay of a batch, and what it holds."""

    essay_id: str
    status: EssayStatus = EssayStatus.AWAITING_CONTENT
    submission: Submission | None = None
    assigned_at: datetime | None = None
    student_id: str | None = None

    @property
    def row(self) -> dict[str, Any]:  # Any: as a row of Postgres
        """What events tell of it."""
        held = self.submission
        failed_at = (
            self.assigned_at if self.status is EssayStatus.CONTENT_INGESTION_FAILED else None
        )
        return {
            "essay_id": self.essay_id,
            "text_storage_id": held and held.text_storage_id,
            "file_upload_id": held and held.file_upload_id,
            "original_file_name": held and held.original_file_name,
            "validation_error_code": held and held.validation_error_code,
            "validation_error_detail": held and held.validation_error_detail,
            "failed_at": failed_at and f"{failed_at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z",
            "student_id": self.student_id,
        }


@dataclass
class Batch:
    """A registered batch."""

    registration: BatchEssaysRegistered
    registered_at: datetime
    deadline_at: datetime
    on_deadline: OnDeadline
    student_prompt_ref: dict[str, Any] | None  # Any: the sender's JSON
    slots: list[Slot]  # in bytewise order of the essay ids
    status: BatchStatus = BatchStatus.AWAITING_CONTENT_VALIDATION
    manifest: str | None = None  # once it is complete
    amendments: int = 0
    deadline_passed: bool = False  # and its event was written
    locations: dict[str, Location] = field(default_factory=dict)  # by claimant

    @property
    def batch_id(self) -> str:
        return self.registration.batch_id

    @property
    def closed(self) -> bool:
        return self.status in (BatchStatus.CANCELLED, BatchStatus.TIMED_OUT)

    @property
    def open_slots(self) -> list[Slot]:
        if self.status is not BatchStatus.AWAITING_CONTENT_VALIDATION:
            return []
        return [slot for slot in self.slots if slot.status is EssayStatus.AWAITING_CONTENT]

    @property
    def tracker(self) -> Tracker:
        first = self.registration
        return Tracker(
            batch_id=first.batch_id,
            status=self.status,
            class_id=first.class_id,
            org_id=first.org_id,
            user_id=first.user_id,
            course_code=first.course_code,
            course_language=first.course_language,
            correlation_id=first.correlation_id,
            expected_count=len(self.slots),
            available_slots=len(self.open_slots),
            essay_ids_sha256=b"",
            completed_at=None,
            manifest_sha256=self.manifest,
            student_prompt_ref=self.student_prompt_ref,
            metadata=first.metadata,
            amendments=self.amendments,
        )

    def rows(self, status: EssayStatus) -> list[dict[str, Any]]:  # Any: as rows of Postgres
        return [slot.row for slot in self.slots if slot.status is status]


class Batches:
    """All batches, and what waits for one. `now` is the clock; `slot_events`: somebody asks."""

    def __init__(self, now: Callable[[], datetime], slot_events: Callable[[], bool]) -> None:
        self.now, self.slot_events = now, slot_events
        self.known: dict[str, Batch] = {}
        self.pending: dict[str, dict[str, Submission]] = {}  # by batch and claimant

    def register_batch(self, event: BatchEssaysRegistered) -> Result:
        if known := self.known.get(event.batch_id):
            _refuse_contradictions(known, event)
            return outcome("already_registered", event.batch_id), []
        batch = Batch(
            registration=event,
            registered_at=self.now(),
            deadline_at=self.now() + timedelta(seconds=event.deadline_s),
            on_deadline=OnDeadline(event.on_deadline),
            student_prompt_ref=event.student_prompt_ref,
            slots=[Slot(essay_id) for essay_id in sorted(event.essay_ids)],
        )
        self.known[event.batch_id] = batch
        waiting = [*self.pending.pop(event.batch_id, {}).values()]
        first, over = waiting[: len(batch.slots)], waiting[len(batch.slots) :]
        events = self._record_excess(batch, over)
        events = [*events, *self._place(batch, first)]
        taken = sum(each.validation_error_code is None for each in first)
        value = outcome(
            "registered", event.batch_id, slots=len(batch.slots), pending_assigned=taken
        )
        return value, [*events, *_complete(batch, self.now())]

    def assign(self, message: Message) -> Result:
        """Give each submission its slot, or say where it is instead."""
        batch = self.known.get(message.batch_id)
        if batch is None:
            waiting = self.pending.setdefault(message.batch_id, {})
            for each in message.submissions:
                waiting.setdefault(each.claimant, each)
            return message.result({}).value, []
        rest = [each for each in message.submissions if each.claimant not in batch.locations]
        room = len(batch.open_slots)
        events = self._place(batch, rest[:room])
        events += self._record_excess(batch, rest[room:])
        value = message.result(batch.locations).value
        return value, [*events, *_complete(batch, self.now())]

    def confirm_students(self, event: StudentAssociationsConfirmed) -> Result:
        batch = self.known.get(event.batch_id)
        if batch is None:
            raise UnknownBatch.named(event.batch_id)
        if batch.registration.class_id != event.class_id:
            raise WrongBatchState(
                f"batch {event.batch_id} was registered with another class_id than this one, or"
                " without; correct it and resend"
            )
        slots = {slot.essay_id: slot for slot in batch.slots}
        students = {each.essay_id: each.student_id for each in event.associations}
        if unknown := sorted(students.keys() - slots.keys()):
            named = ", ".join(unknown[:5])
            raise UnknownEssay(
                f"batch {event.batch_id} has no essay {named}; correct it and resend"
            )
        value = outcome("confirmed", event.batch_id, associated=len(students))
        ready = batch.status is BatchStatus.READY_FOR_PIPELINE_EXECUTION
        if ready and all(slots[essay].student_id == each for essay, each in students.items()):
            return value, []
        if batch.status is not BatchStatus.AWAITING_STUDENT_VALIDATION:
            raise WrongBatchState(
                f"batch {event.batch_id} is {batch.status}; students are confirmed while it is"
                f" {BatchStatus.AWAITING_STUDENT_VALIDATION}"
            )
        for essay, student in students.items():
            slots[essay].student_id = student
        return value, [_ready(batch, after_deadline=batch.deadline_passed)]

    def amend_batch(self, event: BatchAmended) -> Result:
        batch = self._registered(event.batch_id)
        if batch.status is not BatchStatus.AWAITING_CONTENT_VALIDATION:
            raise WrongBatchState(
                f"batch {event.batch_id} is {batch.status}; it can be amended until it is sealed"
            )
        if event.student_prompt_ref is not None:
            batch.student_prompt_ref = event.student_prompt_ref
        if event.deadline_s is not None:
            batch.deadline_at = self.now() + timedelta(seconds=event.deadline_s)
        if event.on_deadline is not None:
            batch.on_deadline = OnDeadline(event.on_deadline)
        batch.amendments += 1
        return outcome("amended", event.batch_id), []

    def cancel_batch(self, event: BatchCancelled) -> Result:
        batch = self._registered(event.batch_id)
        value = outcome("cancelled", event.batch_id)
        if batch.status is BatchStatus.CANCELLED:
            return value, []
        if batch.status not in OPEN:
            raise WrongBatchState(
                f"batch {event.batch_id} is {batch.status} already; it cannot be cancelled"
            )
        for slot in batch.slots:
            slot.status = EssayStatus.CANCELLED
        batch.status = BatchStatus.CANCELLED
        return value, [batch_cancelled(event.batch_id, event.reason)]

    def next_due(self) -> Batch | None:
        """Return the open batch whose deadline comes first."""
        waiting = (batch for batch in self.known.values() if batch.status in OPEN)
        return min(waiting, key=lambda batch: batch.deadline_at, default=None)

    def time_out(self, batch: Batch) -> list[Outgoing]:
        """Do what a batch wants at its deadline: close it, or proceed with what is there."""
        missing = batch.open_slots
        for slot in missing:
            slot.status = EssayStatus.CONTENT_INGESTION_FAILED
        events = []
        if not batch.deadline_passed:
            waited_s = (self.now() - batch.registered_at).total_seconds()
            essays = batch.rows(EssayStatus.READY_FOR_PROCESSING)
            names = [slot.essay_id for slot in missing]
            events = [timeout_event(batch.tracker, essays, names, waited_s, batch.on_deadline)]
        batch.deadline_passed = True
        if batch.on_deadline is OnDeadline.FAIL:
            batch.status = BatchStatus.TIMED_OUT
        elif batch.manifest is None:
            events += _complete(batch, self.now())
        else:
            events.append(_ready(batch, after_deadline=True))
        return events

    def _place(self, batch: Batch, submissions: Sequence[Submission]) -> list[Outgoing]:
        """Put submissions into the first open slots, in their order."""
        placed = [*zip(batch.open_slots, submissions, strict=False)]
        for slot, submission in placed:
            failed = submission.validation_error_code is not None
            slot.status = (
                EssayStatus.CONTENT_INGESTION_FAILED if failed else EssayStatus.READY_FOR_PROCESSING
            )
            slot.submission, slot.assigned_at = submission, self.now()
            batch.locations[submission.claimant] = Location(slot.essay_id)
        if not self.slot_events():
            return []
        return [slot_assigned(batch.batch_id, s.row) for s, each in placed if each.text_storage_id]

    def _record_excess(self, batch: Batch, submissions: Sequence[Submission]) -> list[Outgoing]:
        reason = batch.tracker.excess_reason
        for each in submissions:
            batch.locations[each.claimant] = Location(None, reason)
        if reason is not ExcessReason.NO_AVAILABLE_SLOT:
            return []
        return [_excess(batch.batch_id, each) for each in submissions if each.text_storage_id]

    def _registered(self, batch_id: str) -> Batch:
        if batch_id not in self.known:
            raise UnknownBatch.named(batch_id)
        return self.known[batch_id]


def _complete(batch: Batch, now: datetime) -> list[Outgoing]:
    """Seal and announce a batch if every slot is accounted for; else do nothing."""
    if batch.status is not BatchStatus.AWAITING_CONTENT_VALIDATION or batch.open_slots:
        return []
    essays = batch.rows(EssayStatus.READY_FOR_PROCESSING)
    failed = batch.rows(EssayStatus.CONTENT_INGESTION_FAILED)
    batch.manifest = manifest_sha256(essays)
    events = completion(batch.tracker, essays, failed, batch.manifest)
    batch.status = completed_status(batch.tracker.class_type, len(essays))
    if batch.status is BatchStatus.READY_FOR_PIPELINE_EXECUTION:
        events.append(_ready(batch, after_deadline=lacks_some(failed)))
    if batch.status is BatchStatus.AWAITING_STUDENT_VALIDATION:  # as long as for the contents
        batch.deadline_at = now + (batch.deadline_at - batch.registered_at)
    return events


def _ready(batch: Batch, *, after_deadline: bool) -> Outgoing:
    assert batch.manifest is not None, "it is complete"
    batch.status = BatchStatus.READY_FOR_PIPELINE_EXECUTION
    essays = batch.rows(EssayStatus.READY_FOR_PROCESSING)
    return essays_ready(batch.tracker, essays, batch.manifest, after_deadline=after_deadline)


def _excess(batch_id: str, submission: Submission) -> Outgoing:
    names = ("text_storage_id", "file_upload_id", "original_file_name")
    data = {name: getattr(submission, name) for name in names}
    return Outgoing(
        EXCESS_CONTENT_PROVISIONED.name,
        {"batch_id": batch_id, **data, "reason": ExcessReason.NO_AVAILABLE_SLOT},
        generation=str(submission.text_storage_id),
    )


def _refuse_contradictions(batch: Batch, again: BatchEssaysRegistered) -> None:
    """Compare a second registration with the first one, in the fields that it gives."""
    given = {name for name in again.model_fields_set if getattr(again, name) is not None}
    if other := [name for name in _contradictions(batch, again) if name in given]:
        step = f"; {AMEND_BATCH.name} changes it" if AMENDABLE.issuperset(other) else ""
        raise RegistrationConflict(
            f"batch {again.batch_id} is registered with other {', '.join(other)};"
            f" it keeps those{step}"
        )


def _contradictions(batch: Batch, again: BatchEssaysRegistered) -> Iterable[str]:
    first = batch.registration
    if sorted(first.essay_ids) != sorted(again.essay_ids):
        yield "essay_ids"
    for name in ("user_id", "org_id", "class_id", "course_code", "course_language"):
        if getattr(first, name) != getattr(again, name):
            yield name
    amended = batch.amendments > 0
    if not amended and not _same_json(batch.student_prompt_ref, again.student_prompt_ref):
        yield "student_prompt_ref"
    if not _same_json(first.metadata, again.metadata):
        yield "metadata"
    if not amended and batch.on_deadline != again.on_deadline:
        yield "on_deadline"
    waits = batch.manifest is None and not batch.closed
    if not amended and waits and first.deadline_s != again.deadline_s:
        yield "deadline_s"


def _same_json(one: object, other: object) -> bool:
    """Compare JSON values: 1 is 1.0, and not true."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(
                _same_json(one[key], other[key]) for key in one
            )
        case list(), list():
            pairs = zip(one, other, strict=False)
            return len(one) == len(other) and all(_same_json(*pair) for pair in pairs)
    return isinstance(one, bool) == isinstance(other, bool) and one == other
