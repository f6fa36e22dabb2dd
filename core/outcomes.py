"""What a step leads to, and how a repeat of its event leads to the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from psycopg import errors as pg

from core import db
from core.db import Conn
from core.errors import IdempotencyConflict
from core.events import Idempotency

T = TypeVar("T")
Value = dict[str, Any]  # Any: what a task returns, JSON


@dataclass(frozen=True)
class StepResult:
    """What a step led to: the value its task returns, and what should follow its commit."""

    value: Value
    full: bool = False  # every slot is accounted for, and nobody has announced it yet
    posted: bool = False  # the outbox has events of this batch
    became: Mapping[str, int] = field(default_factory=dict)  # contents by outcome; none of a repeat
    slots: int | None = None  # of a full batch, where that is known


def outcome(name: str, batch_id: str, **more: object) -> Value:
    """Write the value that a task returns."""
    return {"outcome": name, "batch_id": batch_id, **more}


def replayed(conn: Conn, idem: Idempotency) -> StepResult | None:
    """Return the stored outcome of a repeat; None for a new event. Raises IdempotencyConflict."""
    stored = db.idempotency.stored_outcome(conn, idem.key)
    if stored is None:
        return None
    if (stored.task, stored.fingerprint) != (idem.task, idem.fingerprint):
        raise IdempotencyConflict(
            f"event {idem.key} was seen before with another body ({stored.task});"
            " send it with an event_id of its own"
        )
    return StepResult(stored.outcome, full=stored.full, posted=True)


def retry_on_conflict(step: Callable[[], T]) -> T:
    """Run a step again when another delivery of its event committed in between."""
    try:
        return step()
    except pg.UniqueViolation:
        return step()
