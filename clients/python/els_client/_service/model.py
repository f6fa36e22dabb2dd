# `make reference` copies this module from core/model.py; change that one.
"""The few types that a content passes on its way to a slot, and what a step leads to."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from els_client._service.messages import (
    BatchContentsProvisioned,
    Content,
    EssayContentProvisioned,
    EssayValidationFailed,
    Idempotency,
)
from els_client._service.states import ExcessReason

Value = dict[str, Any]  # Any: what a task returns, JSON
SubmittingEvent = EssayContentProvisioned | BatchContentsProvisioned | EssayValidationFailed


class Location(NamedTuple):  # made for each content, so no dataclass
    """Where a submission is: in a slot, in excess for a reason, or (both None) pending."""

    essay_id: str | None = None
    excess_reason: ExcessReason | None = None


@dataclass(frozen=True)
class Submission:
    """A stored text, or (with `validation_error_code`) a rejected file, that wants a slot."""

    file_upload_id: str
    original_file_name: str
    text_storage_id: str | None = None
    raw_file_storage_id: str | None = None
    file_size_bytes: int | None = None
    content_md5_hash: str | None = None
    validation_error_code: str | None = None
    validation_error_detail: Mapping[str, Any] | None = None  # Any: the sender's JSON

    @classmethod
    def of(cls, announced: Content | EssayValidationFailed) -> "Submission":
        fields = announced.__dict__
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})

    @property
    def claimant(self) -> str:
        """Name who claims a slot. No storage key has a blank, so the two kinds cannot collide."""
        return self.text_storage_id or f"rejected {self.file_upload_id}"

    def outcome(self, location: Location) -> str:
        """Name what became of this submission, as the contract does."""
        match location:
            case Location(essay_id=str()):
                return "failed_slot" if self.validation_error_code else "assigned"
            case Location(excess_reason=None):
                return "pending"
            case Location(excess_reason=ExcessReason.NO_AVAILABLE_SLOT):
                return "excess"
        return "closed"


@dataclass(frozen=True, eq=False)  # a message that was sent twice is two messages
class Message:
    """One message and what it submits. `contents` is what a bulk message counts, repeats too."""

    idem: Idempotency
    batch_id: str
    submissions: Sequence[Submission]
    contents: int | None = None

    @classmethod
    def of(cls, event: SubmittingEvent, idem: Idempotency) -> "Message":
        """List what an event submits; a text that an upload names twice is one submission."""
        if not isinstance(event, BatchContentsProvisioned):
            return cls(idem, event.batch_id, [Submission.of(event)])
        distinct = {content.text_storage_id: Submission.of(content) for content in event.contents}
        return cls(idem, event.batch_id, [*distinct.values()], len(event.contents))

    @property
    def claimants(self) -> list[str]:
        return [submission.claimant for submission in self.submissions]

    def value(self, location: Location) -> Value:
        """Return the task's value; `location` is that of the first submission."""
        if self.contents is not None:
            return outcome("accepted", self.batch_id, contents=self.contents)
        slot = {"essay_id": location.essay_id} if location.essay_id else {}
        return outcome(self.submissions[0].outcome(location), self.batch_id, **slot)

    def result(
        self,
        locations: Mapping[str, Location],
        repeats: Collection[str] = (),
        *,
        full: bool = False,
        posted: bool = False,
        slots: int | None = None,
    ) -> "StepResult":
        """Say what became of each submission; one that is not located is pending.

        `repeats` had their place before, so they do not count again.
        """
        places = [locations.get(each.claimant, Location()) for each in self.submissions]
        became = Counter(
            each.outcome(place)
            for each, place in zip(self.submissions, places, strict=True)
            if each.claimant not in repeats
        )
        return StepResult(self.value(places[0]), full, posted, became, slots)


@dataclass(frozen=True)
class StepResult:
    """The value that a task returns, and what its batch needs after the commit."""

    value: Value
    full: bool = False  # every slot of the batch is accounted for, and nobody has announced it yet
    posted: bool = False  # the outbox has events of the batch
    became: Mapping[str, int] = field(default_factory=dict)  # contents by outcome; none of a repeat
    slots: int | None = None  # of a full batch, where that is known


def outcome(name: str, batch_id: str, **more: object) -> Value:
    return {"outcome": name, "batch_id": batch_id, **more}
