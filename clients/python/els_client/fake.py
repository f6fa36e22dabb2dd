"""The service in memory, with a clock of its own, for the tests of senders and receivers.

It validates, decides and words its events by the service's own code. A test of the service plays
one table of scenarios, and random ones, on both, and compares every value and event.

What differs: a content gets the first open slot, where the service gives any; a deadline is kept to
the microsecond, where the service needs some seconds; and nothing is slow, away or contended.
"""

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from els_client._batches import Batches, Result
from els_client._service.catalogue import (
    AMEND_BATCH,
    CANCEL_BATCH,
    CONFIRM_STUDENTS,
    ESSAY_SLOT_ASSIGNED,
    EVENTS,
    MESSAGE_REFUSED,
    OPT_IN,
    REGISTER_BATCH,
    TASKS,
    unknown_task,
)
from els_client._service.errors import IdempotencyConflict, Refusal
from els_client._service.events import (
    NO_BATCH,
    Outgoing,
    cloud_event,
    message_refused,
    outgoing_id,
)
from els_client._service.messages import Idempotency
from els_client._service.model import Message as Submitted
from els_client._service.named_batch import batch_of, ids_of
from els_client._service.parsing import canonical, parse
from els_client.upstream import Json, Outcome, Sent, Upstream, checked, refuse_deep

Received = dict[str, Any]  # Any: a CloudEvent, JSON
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
NO_CORRELATION = "00000000-0000-0000-0000-000000000000"
FIRST_LETTER = 1_001  # not to be taken for the sequence of an event


class UnknownTask(Refusal):
    code = "UNKNOWN_TASK"


@dataclass(frozen=True)
class DeadLetter:
    """A message that was refused."""

    number: int
    task: str
    code: str
    message: str
    body: Any  # Any: JSON


class FakeELS:
    """The service in memory. `events` has every event, in order."""

    def __init__(self, opt_in: Iterable[str] = (), now: datetime = BEGINNING) -> None:
        """Take the opt-in events that the service is asked for, and the moment to begin at."""
        self.now = now
        self.events: list[Received] = []
        self.dead_letters: list[DeadLetter] = []
        self.sender: Upstream = _FakeSender(self)
        self._opt_in: set[str] = set()
        self._receivers: list[Callable[[Received], object]] = []
        self._delivered = 0
        self._delivering = False
        self._outcomes: dict[UUID, tuple[str, bytes, Outcome]] = {}
        self._letters: dict[tuple[str, str, str], int] = {}
        self._sequences: dict[str, int] = {}
        self._batches = Batches(lambda: self.now, lambda: ESSAY_SLOT_ASSIGNED.name in self._opt_in)
        self.ask_for(*opt_in)

    def ask_for(self, *types: str) -> None:
        """Ask for opt-in events, as a route of the service does. Raises ValueError."""
        if unknown := set(types) - OPT_IN:
            raise ValueError(f"no opt-in event is named {', '.join(sorted(unknown))}")
        self._opt_in |= set(types)

    def on_event(self, receive: Callable[[Received], object], *, times: int = 1) -> None:
        """Hand every later event to a receiver. `times`: deliver it more than once."""
        self._receivers += [receive] * times

    def send(self, task: str, event: object, task_id: str | None = None) -> Outcome:
        """Do what a worker does with a message; return the value of the task.

        `event` is any body: one that is refused becomes a dead letter. A delivery again has the
        `task_id` of the first.
        """
        try:
            value = self._execute(task, event)
        except Refusal as error:
            value = self._refuse(task, task_id or str(uuid4()), event, error)
        self._deliver()
        return deepcopy(value)

    def advance(self, seconds: float = 0, **more: float) -> None:
        """Let time pass: `advance(90)`, `advance(hours=25)`. Deadlines have their effects."""
        end = self.now + timedelta(seconds=seconds, **more)
        if end < self.now:
            raise ValueError("time does not go back")
        while (due := self._batches.next_due()) and due.deadline_at <= end:
            self.now = max(self.now, due.deadline_at)
            self._post(due.batch_id, self._batches.time_out(due))
        self.now = end
        self._deliver()

    def status(self, batch_id: str) -> str | None:
        """Tell the status of a batch, as the service names it; None: it is not registered."""
        batch = self._batches.known.get(batch_id)
        return batch.status.value if batch else None

    def essays(self, batch_id: str) -> dict[str, str | None]:
        """Map the essays of a batch to the `text_storage_id` that each holds."""
        slots = self._batches.known[batch_id].slots
        return {slot.essay_id: slot.row["text_storage_id"] for slot in slots}

    # --- a message ----------------------------------------------------------------------------

    def _execute(self, task: str, raw: object) -> Outcome:
        known = TASKS.get(task)
        if known is None:
            raise UnknownTask(unknown_task(task))
        event, idem = parse(known.model, task, raw, known.limit)
        refuse_deep(task, raw)
        stored = self._outcomes.get(idem.key)
        if stored is None:
            value, events = self._step(task, event, idem)
            self._outcomes[idem.key] = (task, idem.fingerprint, value)
            self._post(event.batch_id, events)
            return value
        first_task, fingerprint, value = stored
        if (first_task, fingerprint) != (task, idem.fingerprint):
            raise IdempotencyConflict(
                f"event {idem.key} was seen before with another body ({first_task});"
                " send it with an event_id of its own"
            )
        return value

    def _step(self, task: str, event: Any, idem: Idempotency) -> Result:  # Any: of the task's model
        steps: dict[str, Callable[[Any], Result]] = {
            REGISTER_BATCH.name: self._batches.register_batch,
            CONFIRM_STUDENTS.name: self._batches.confirm_students,
            CANCEL_BATCH.name: self._batches.cancel_batch,
            AMEND_BATCH.name: self._batches.amend_batch,
        }
        if task in steps:
            return steps[task](event)
        return self._batches.assign(Submitted.of(event, idem))

    def _refuse(self, task: str, task_id: str, event: object, error: Refusal) -> Outcome:
        """Keep a message as a dead letter; a delivery again is the same one."""
        body = _json(event)
        ids = ids_of(event, batch_of(event))
        key = (task_id, task, json.dumps(body, sort_keys=True))
        if key not in self._letters:
            number = self._letters[key] = len(self._letters) + FIRST_LETTER
            self.dead_letters.append(DeadLetter(number, task, error.code, str(error), body))
            if MESSAGE_REFUSED.name in self._opt_in:
                refused = message_refused(number, task, error.code, str(error), ids)
                self._post(ids.get("batch_id"), [refused])
        return {
            "outcome": "dead_letter",
            "batch_id": ids.get("batch_id"),
            "code": error.code,
            "dead_letter": self._letters[key],
            "message": str(error),
        }

    # --- events -------------------------------------------------------------------------------

    def _post(self, batch_id: str | None, events: Iterable[Outgoing]) -> None:
        """Number events in their batch; those of none (refusals) by their dead letter."""
        batch = self._batches.known.get(batch_id or "")
        for event in events:
            assert event.type in EVENTS, event.type
            if batch:
                number = self._sequences[batch.batch_id] = (
                    self._sequences.get(batch.batch_id, 0) + 1
                )
                correlation: object = batch.registration.correlation_id
            else:
                number = event.data["dead_letter"]
                correlation = UUID(event.data.get("correlation_id", NO_CORRELATION))
            row = {
                "id": outgoing_id(batch_id or NO_BATCH, event.type, event.generation),
                "type": event.type,
                "batch_id": batch and batch.batch_id,
                "created_at": self.now,
                "sequence": number,
                "correlation_id": correlation,
                "traceparent": None,
                "data": json.loads(canonical(event.data)),
            }
            self.events.append(cloud_event(row))

    def _deliver(self) -> None:
        """Hand over what is new; what a receiver sends meanwhile comes after."""
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._delivered < len(self.events):
                event = self.events[self._delivered]
                self._delivered += 1
                for receive in self._receivers:
                    receive(deepcopy(event))
        finally:
            self._delivering = False


class _FakeSender(Upstream):
    """A `Sender` that sends to the service in memory."""

    def __init__(self, els: FakeELS) -> None:
        self._els = els

    def send(self, task: str, event: Json) -> Sent:
        message = checked(task, event)
        value = self._els.send(task, message.event, message.task_id)
        return Sent(message, spooled=False, _outcome=lambda _: deepcopy(value))


def _json(event: object) -> Any:  # Any: JSON
    try:
        return json.loads(canonical(event))
    except (ValueError, TypeError, RecursionError):
        return {**ids_of(event, batch_of(event)), "not_json": repr(event)}
