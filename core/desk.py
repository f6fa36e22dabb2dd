"""What people ask of the books, and the few things they do to them. A statement a function.

The lifecycle's own statements stand in `core/ledger.py`.
"""

from datetime import datetime
from typing import LiteralString

from psycopg.errors import UndefinedTable
from psycopg.rows import DictRow

from core import ledger
from core.ledger import Conn, Row
from core.states import BatchStatus, ClassType


def statuses(conn: Conn, batch_id: str | None, limit: int) -> list[DictRow]:
    """Read batches as `els status` shows them, newest first; those only waited for included."""
    return conn.execute(ledger.sql("statuses"), {"batch_id": batch_id, "limit": limit}).fetchall()


def facts(conn: Conn, batch_id: str) -> Row:
    """Read the accounts of one batch; empty when it is not registered."""
    return conn.execute(ledger.sql("facts"), {"batch_id": batch_id}).fetchone() or {}


def timeline(conn: Conn, batch_id: str) -> list[DictRow]:
    """Read what happened to a batch, in order."""
    return conn.execute(ledger.sql("timeline"), {"batch_id": batch_id}).fetchall()


def find(conn: Conn, wanted: str, limit: int) -> list[DictRow]:
    """Read where everything is that bears this id, the oldest first, open slots last."""
    return conn.execute(ledger.sql("find"), {"id": wanted, "limit": limit}).fetchall()


def letters(
    conn: Conn, *, batch_id: str | None, task: str | None, every: bool, limit: int
) -> list[DictRow]:
    """List dead letters without their bodies, newest first; `every`: handled ones as well."""
    return conn.execute(
        "SELECT id, task, batch_id, code, sqlstate, message, deliveries, parked_at, replayed_at,"
        " discarded_at FROM dead_letters"
        " WHERE (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)"
        " AND (%(task)s::text IS NULL OR task = %(task)s)"
        " AND (%(every)s OR replayed_at IS NULL AND discarded_at IS NULL)"
        " ORDER BY id DESC LIMIT %(limit)s",
        {"batch_id": batch_id, "task": task, "every": every, "limit": limit},
    ).fetchall()


def letter(conn: Conn, number: int) -> DictRow | None:
    """Read a dead letter, whole."""
    return conn.execute("SELECT * FROM dead_letters WHERE id = %s", [number]).fetchone()


def mark_replayed(conn: Conn, number: int) -> None:
    """Note that a dead letter was sent again."""
    conn.execute("UPDATE dead_letters SET replayed_at = now() WHERE id = %s", [number])


def mark_discarded(conn: Conn, number: int) -> None:
    """Note that a dead letter needs nothing any more; it is kept until its batch is purged."""
    conn.execute("UPDATE dead_letters SET discarded_at = now() WHERE id = %s", [number])


def undelivered(conn: Conn, limit: int) -> list[DictRow]:
    """List events that wait for delivery, the oldest first."""
    return conn.execute(
        "SELECT id, batch_id, type, sequence, created_at, attempts, last_error FROM event_outbox"
        " WHERE published_at IS NULL ORDER BY created_at, batch_id, sequence LIMIT %s",
        [limit],
    ).fetchall()


def republish(conn: Conn, since: datetime, batch_id: str | None) -> int:
    """Have delivered events delivered again, from a moment on; return how many."""
    return conn.execute(
        "UPDATE event_outbox SET published_at = NULL"
        " WHERE published_at IS NOT NULL AND created_at >= %(since)s"
        " AND (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)",
        {"since": since, "batch_id": batch_id},
    ).rowcount


def purgeable(conn: Conn, days: float, limit: int) -> list[str]:
    """List batches that ended so long ago, without an undelivered event or a waiting letter."""
    rows = conn.execute(
        """
        SELECT t.batch_id FROM batch_essay_trackers t
        WHERE t.status NOT IN ('awaiting_content_validation', 'awaiting_student_validation')
          AND greatest(t.completed_at, t.ready_at, t.closed_at)
              < now() - make_interval(secs => %s * 86400)
          AND NOT EXISTS (SELECT FROM event_outbox o
                          WHERE o.batch_id = t.batch_id AND o.published_at IS NULL)
          AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.batch_id = t.batch_id
                          AND d.replayed_at IS NULL AND d.discarded_at IS NULL)
          AND NOT EXISTS (SELECT FROM batch_pending_content p WHERE p.batch_id = t.batch_id)
        LIMIT %s
        """,
        [days, limit],
    )
    return [row["batch_id"] for row in rows]


def purge(conn: Conn, batch_id: str) -> None:
    """Delete a batch with all that belongs to it."""
    conn.execute("DELETE FROM idempotency_keys WHERE batch_id = %s", [batch_id])
    conn.execute("DELETE FROM repairs WHERE batch_id = %s", [batch_id])
    conn.execute("DELETE FROM dead_letters WHERE batch_id = %s", [batch_id])
    conn.execute("DELETE FROM batch_essay_trackers WHERE batch_id = %s", [batch_id])


def expired_pending(conn: Conn, days: float, *, delete: bool) -> int:
    """Count, or delete, contents that have waited so long for a batch that nobody registers."""
    waited: LiteralString = (
        " FROM batch_pending_content p WHERE p.received_at < now() - make_interval(secs => %s"
        " * 86400) AND NOT EXISTS (SELECT FROM batch_essay_trackers t"
        " WHERE t.batch_id = p.batch_id)"
    )
    if delete:
        return conn.execute("DELETE" + waited, [days]).rowcount
    row = conn.execute("SELECT count(*) AS n" + waited, [days]).fetchone()
    return int((row or {})["n"])


def counts(conn: Conn) -> dict[tuple[BatchStatus, ClassType], int]:
    """Count batches by state and class type. Reads every batch: 25 ms for 100 000."""
    rows = conn.execute(
        "SELECT status, class_id IS NOT NULL AS regular, count(*) AS n FROM batch_essay_trackers"
        " GROUP BY status, regular"
    )
    class_type = {False: ClassType.GUEST, True: ClassType.REGULAR}
    return {(BatchStatus(r["status"]), class_type[r["regular"]]): r["n"] for r in rows}


def gauges(conn: Conn) -> dict[str, float]:
    """Measure what waits; the names are those of the metrics."""
    row = conn.execute(ledger.sql("gauges")).fetchone()
    assert row is not None, "it has no WHERE"
    return row


def revision(conn: Conn) -> str | None:
    """Read which revision of the schema the database has; None: it has no schema."""
    try:
        row = conn.execute("SELECT version_num FROM alembic_version").fetchone()
    except UndefinedTable:
        return None
    return row["version_num"] if row else None
