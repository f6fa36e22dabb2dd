"""The invariants: what must hold of every batch once the service is quiet.

They stand in `ops/sql/invariants.sql`. The demo, and every test that breaks something, checks them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from core import db
from core.db.connection import Conn, statements
from core.slots import Slots
from ops.queries.statements import sql

CHOSEN: LiteralString = """
    SELECT DISTINCT batch_id FROM ({}) broken
    WHERE %(batches)s::text[] IS NULL OR batch_id = ANY(%(batches)s) ORDER BY batch_id
"""
INVARIANTS = statements(sql("invariants"), "-- invariant: ")
QUERIES = {title: CHOSEN.format(query) for title, query in INVARIANTS.items()}


@dataclass(frozen=True)
class Invariant:
    """One promise, and the batches that break it."""

    title: str
    broken: list[str]

    @property
    def holds(self) -> bool:
        return not self.broken


def check_batches(conn: Conn, batches: Sequence[str] | None = None) -> list[Invariant]:
    """Check what Postgres alone can tell, of these batches or of all."""
    chosen = None if batches is None else list(batches)
    checked = []
    for title, query in QUERIES.items():
        rows = conn.execute(query, {"batches": chosen})
        checked.append(Invariant(title, [row["batch_id"] for row in rows]))
    return checked


def check_slots(conn: Conn, slots: Slots, batches: Sequence[str]) -> Invariant:
    """Check that Redis offers no slot that is not open in Postgres."""
    stale = [b for b in batches if slots.free(b) - set(db.slots.open_slots(conn, b))]
    return Invariant("Redis offers only slots that are open in Postgres", stale)
