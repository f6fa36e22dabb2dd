"""Idempotency keys: the outcome of each event, written with its effect."""

from uuid import UUID

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from core.db.connection import Conn, Row
from core.messages import Idempotency


def stored_outcome(conn: Conn, key: UUID) -> DictRow | None:
    """Read the first outcome of an event; `full`: nobody has announced its full batch yet."""
    return conn.execute(
        """
        SELECT k.task, k.fingerprint, k.outcome,
               coalesce(t.available_slots = 0 AND t.completed_at IS NULL
                        AND t.closed_at IS NULL, false) AS full
        FROM idempotency_keys k LEFT JOIN batch_essay_trackers t USING (batch_id)
        WHERE k.key = %s
        """,
        [key],
    ).fetchone()


def write_key(conn: Conn, idem: Idempotency, batch_id: str, outcome: Row) -> None:
    """Write the key of an event with its outcome.

    Raises UniqueViolation (`pk_idempotency_keys`) when another delivery was faster.
    """
    conn.execute(
        "INSERT INTO idempotency_keys (key, task, fingerprint, outcome, batch_id)"
        " VALUES (%s, %s, %s, %s, %s)",
        [idem.key, idem.task, idem.fingerprint, Jsonb(outcome), batch_id],
    )
