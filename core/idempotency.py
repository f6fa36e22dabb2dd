"""How a repeat of an event leads to what the event led to."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from psycopg import Error
from psycopg import errors as pg

from core import db
from core.db.connection import Conn
from core.errors import IdempotencyConflict
from core.messages import Idempotency
from core.model import StepResult

P = ParamSpec("P")
T = TypeVar("T")
# The constraints that another delivery of an event, or another event of its content, violates.
REPEATS = frozenset(
    {
        "pk_idempotency_keys",
        "uq_essay_states_content",
        "uq_essay_states_failure",
        "uq_excess_content_content",
        "uq_excess_content_failure",
    }
)


def is_repeat(error: Error) -> bool:
    """Tell whether an insert failed because another delivery was faster."""
    return isinstance(error, pg.UniqueViolation) and error.diag.constraint_name in REPEATS


def replayed(conn: Conn, idem: Idempotency) -> StepResult | None:
    """Return the stored outcome of a repeat; None for a new event. Raises IdempotencyConflict."""
    stored = db.idempotency.stored_outcome(conn, idem.key)
    if stored is None:
        return None
    if (stored["task"], stored["fingerprint"]) != (idem.task, idem.fingerprint):
        raise IdempotencyConflict(
            f"event {idem.key} was seen before with another body ({stored['task']});"
            " send it with an event_id of its own"
        )
    return StepResult(stored["outcome"], full=stored["full"], posted=True)


def retry_on_conflict(step: Callable[P, T]) -> Callable[P, T]:
    """Run a step again when another delivery of its event commits first."""

    @wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return step(*args, **kwargs)
        except pg.UniqueViolation as error:
            if not is_repeat(error):
                raise
            return step(*args, **kwargs)

    return run
