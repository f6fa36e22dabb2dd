"""Numbers over all batches: for metrics, the head of the board, and the charts."""

from dataclasses import dataclass

from psycopg.rows import DictRow

from core.db.connection import Conn
from core.states import BatchStatus, ClassType
from ops.queries.statements import sql


@dataclass(frozen=True)
class Pending:
    """Contents and rejected files that wait for batches that nobody has registered."""

    contents: int
    batches: int
    oldest_seconds: float | None


def pending(conn: Conn) -> Pending:
    """Count what waits for a registration, from its first second on."""
    row = conn.execute(
        "SELECT count(*) AS contents, count(DISTINCT batch_id) AS batches,"
        " extract(epoch FROM now() - greatest(least(min(received_at), now()), '0001-01-01Z'))"
        "  ::float8 AS oldest_seconds"
        " FROM batch_pending_content p WHERE NOT EXISTS"
        " (SELECT FROM batch_essay_trackers t WHERE t.batch_id = p.batch_id)"
    ).fetchone()
    assert row is not None, "it counts"
    return Pending(**row)


def counts(conn: Conn) -> dict[tuple[BatchStatus, ClassType], int]:
    """Count batches by status and class type. Reads every batch: 25 ms for 100 000."""
    rows = conn.execute(
        "SELECT status, class_id IS NOT NULL AS regular, count(*) AS n FROM batch_essay_trackers"
        " GROUP BY status, regular"
    )
    class_type = {False: ClassType.GUEST, True: ClassType.REGULAR}
    return {(BatchStatus(r["status"]), class_type[r["regular"]]): r["n"] for r in rows}


def gauges(conn: Conn) -> dict[str, float]:
    """Measure what waits, by the names of the metrics."""
    row = conn.execute(sql("gauges")).fetchone()
    assert row is not None, "it has no WHERE"
    return row


def letters_by_code(conn: Conn) -> dict[str, int]:
    """Count the dead letters that wait, by code."""
    rows = conn.execute(
        "SELECT code, count(*) AS n FROM dead_letters"
        " WHERE replayed_at IS NULL AND discarded_at IS NULL GROUP BY code"
    )
    return {row["code"]: row["n"] for row in rows}


def counters(conn: Conn) -> DictRow:
    """Count for the head of the board: open, ready today (UTC), and what waits."""
    row = conn.execute(
        "SELECT (SELECT count(*) FROM batch_essay_trackers WHERE status IN"
        " ('awaiting_content_validation', 'awaiting_student_validation')) AS open,"
        " (SELECT count(*) FROM batch_essay_trackers WHERE ready_at >="
        " date_trunc('day', now(), 'UTC')) AS ready_today,"
        " (SELECT count(*) FROM event_outbox WHERE published_at IS NULL) AS outbox,"
        " (SELECT count(*) FROM dead_letters"
        "  WHERE replayed_at IS NULL AND discarded_at IS NULL) AS dead_letters,"
        " (SELECT count(*) FROM batch_pending_content p WHERE NOT EXISTS"
        "  (SELECT FROM batch_essay_trackers t WHERE t.batch_id = p.batch_id)) AS pending"
    ).fetchone()
    assert row is not None
    return row


def activity(conn: Conn, parts: int, part_s: int) -> list[DictRow]:
    """Count what happened in each part of a span that ends now. Reads the rows of the span."""
    return conn.execute(sql("activity"), {"parts": parts, "part_s": part_s}).fetchall()
