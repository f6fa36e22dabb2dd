# `make reference` copies this module from core/catalogue.py; change that one.
"""The tasks that upstream services call and the events that downstream services get.

The one place that names them; everything else reads it. Statements in SQL name event types too,
and a test compares them with this list.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from els_client._service.messages import (
    BULK_LIMIT,
    SINGLE_LIMIT,
    BatchAmended,
    BatchCancelled,
    BatchContentsProvisioned,
    BatchEssaysRegistered,
    EssayContentProvisioned,
    EssayValidationFailed,
    Event,
    StudentAssociationsConfirmed,
)

LONGEST_NAME = 255  # characters of a task's name that are compared; it may have any number


@dataclass(frozen=True)
class Task:
    """A task that upstream services call.

    An event does not name its type: it is the first task's of which it has a field of `known_by`.
    Messages of `batched` tasks take slots; a worker settles those that wait in one batch.
    """

    name: str
    model: type[Event]
    known_by: tuple[str, ...]
    limit: int = SINGLE_LIMIT  # bytes of canonical JSON
    batched: bool = False


@dataclass(frozen=True)
class EventType:
    """An outgoing event and when it is written; an `opt_in` one only where a route asks for it.

    `ops/reference/event_bodies.py` has a model of its body, under the same name.
    """

    name: str
    when: str
    opt_in: bool = False


REGISTER_BATCH = Task("els.register_batch", BatchEssaysRegistered, ("essay_ids",), BULK_LIMIT)
ASSIGN_CONTENT = Task(
    "els.assign_content", EssayContentProvisioned, ("text_storage_id",), batched=True
)
ASSIGN_CONTENTS = Task(
    "els.assign_contents", BatchContentsProvisioned, ("contents",), BULK_LIMIT, batched=True
)
REJECT_CONTENT = Task(
    "els.reject_content", EssayValidationFailed, ("validation_error_code",), batched=True
)
CONFIRM_STUDENTS = Task(
    "els.confirm_students", StudentAssociationsConfirmed, ("associations",), BULK_LIMIT
)
CANCEL_BATCH = Task("els.cancel_batch", BatchCancelled, ("reason",))
AMEND_BATCH = Task(
    "els.amend_batch", BatchAmended, ("student_prompt_ref", "deadline_s", "on_deadline")
)

TASKS = {each.name: each for each in [*globals().values()] if isinstance(each, Task)}
BATCHED = tuple(task.name for task in TASKS.values() if task.batched)


def unknown_task(name: str) -> str:
    """Say that senders have no such task, and which one may be meant."""
    near = get_close_matches(name[:LONGEST_NAME], TASKS, 1)
    is_meant = f"is {near[0]} meant?" if near else f"senders have {', '.join(sorted(TASKS))}"
    return f"the service has no task of this name for senders; {is_meant}"


BATCH_CONTENT_PROVISIONING_COMPLETED = EventType(
    "BatchContentProvisioningCompleted", "once, when every slot is accounted for"
)
BATCH_ESSAYS_READY = EventType(
    "BatchEssaysReady",
    "once, with completion (guest batch) or when the students are confirmed (regular batch);"
    " never if every slot failed",
)
BATCH_VALIDATION_ERRORS = EventType("BatchValidationErrors", "with completion, if a slot failed")
EXCESS_CONTENT_PROVISIONED = EventType(
    "ExcessContentProvisioned", "once for each content that found every slot taken"
)
ESSAY_SLOT_ASSIGNED = EventType(
    "EssaySlotAssigned", "once for each content with a slot", opt_in=True
)
BATCH_READINESS_TIMEOUT = EventType("BatchReadinessTimeout", "once, when the deadline has passed")
BATCH_CANCELLED = EventType("BatchCancelled", "once, when the batch is cancelled")
MESSAGE_REFUSED = EventType("MessageRefused", "with each dead letter", opt_in=True)

EVENTS = {each.name: each for each in [*globals().values()] if isinstance(each, EventType)}
OPT_IN = frozenset(event.name for event in EVENTS.values() if event.opt_in)


def event_task(event_type: str) -> str:
    """Name the Celery task that gets events of this type where no route says otherwise."""
    return f"els.events.{re.sub(r'(?<!^)(?=[A-Z])', '_', event_type).lower()}"
