"""Retention: delete what is older than `ELS_RETENTION_DAYS`, in small steps.

The purge of beat and `els purge` share this code.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from psycopg_pool import ConnectionPool

from core import db
from core.db.connection import Conn
from core.db.retention import FIRST_KEY, WITHOUT_BATCH
from core.slots import Slots

RETENTION = "retention"  # the actor of what the service purges by itself
BATCHES_AT_ONCE = 50  # of one transaction
SLOTS_AT_ONCE = 20_000  # of these: under a second
ROWS_AT_ONCE = 1_000
KEYS_AT_ONCE = 5_000  # read; few of them are deleted


@dataclass
class Purge:
    """Deletes what is older than so many days. `after` remembers how far the keys were read."""

    pool: "ConnectionPool[Conn]"
    slots: Slots
    days: float
    actor: str
    done: Counter[str] = field(default_factory=Counter)

    def run(
        self, *, seconds: float | None = None, after: UUID = FIRST_KEY, each: Callable[[], object]
    ) -> UUID:
        """Take steps until nothing is left, or the time is over; return where to go on with keys.

        `each` is called after each step. Raises psycopg.Error, redis.RedisError.
        """
        ends_at = None if seconds is None else time.monotonic() + seconds

        def over() -> bool:
            each()
            return ends_at is not None and time.monotonic() > ends_at

        while self._batches() and not over():
            pass
        for kind in WITHOUT_BATCH:
            while self._without_batch(kind) and not over():
                pass
        while (last := self._keys(after)) is not None:
            after = last
            if over():
                return after
        return FIRST_KEY

    def _batches(self) -> bool:
        """Purge the next batches; False: these were the last."""
        with db.transaction(self.pool) as conn:
            found = db.retention.purgeable(conn, self.days, BATCHES_AT_ONCE, slots=SLOTS_AT_ONCE)
            db.retention.purge(conn, found, self.actor)
        self.slots.forget(found)
        self.done["batches"] += len(found)
        return bool(found)

    def _without_batch(self, kind: str) -> bool:
        with self.pool.connection() as conn:
            count = db.retention.purge_without_batch(conn, kind, self.days, ROWS_AT_ONCE)
        self.done[kind] += count
        return count == ROWS_AT_ONCE

    def _keys(self, after: UUID) -> UUID | None:
        with self.pool.connection() as conn:
            deleted, last = db.retention.purge_keys(conn, self.days, after, KEYS_AT_ONCE)
        self.done["keys"] += deleted
        return last
