"""Batches whose rows somebody else keeps locked, as a person in an open transaction does.

A statement waits 10 s for a lock. If each message of such a batch did, they would take all
processes from the other batches. So once a process has waited for a batch, it first looks whether
the lock is still there, for a minute.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import monotonic

from psycopg.errors import LockNotAvailable, QueryCanceled

from core import db
from tasks.resources import resources

REMEMBERED_S = 60.0
WAITED_FOR_LONG = (LockNotAvailable, QueryCanceled)

_until: dict[str, float] = {}  # by batch, on the monotonic clock


def may_be_locked(batch_id: str) -> bool:
    """Tell whether a message has lately waited for a lock on this batch until it gave up."""
    return bool(_until) and _until.get(batch_id, 0) > monotonic()


def note(error: Exception, batches: Iterable[str]) -> None:
    """Remember these batches if the error is that a message waited too long for a lock."""
    if isinstance(error, WAITED_FOR_LONG):
        now = monotonic()
        for batch_id in [known for known, until in _until.items() if until < now]:
            _until.pop(batch_id, None)
        _until.update(dict.fromkeys(batches, now + REMEMBERED_S))


@contextmanager
def noted(batch_id: str) -> Iterator[None]:
    """Take a step for a batch; remember the batch if the step waits too long for a lock.

    Raises LockNotAvailable at once for a remembered batch that is still locked.
    """
    try:
        if may_be_locked(batch_id):
            with resources().pool.connection() as conn:
                db.batches.look_for_lock(conn, batch_id)
            _until.pop(batch_id, None)
        yield
    except WAITED_FOR_LONG as error:
        note(error, [batch_id])
        raise
