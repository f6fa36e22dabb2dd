"""What an explanation reads of one batch, beside its counts and its history."""

from collections.abc import Collection
from datetime import datetime, timedelta
from uuid import UUID

from psycopg.rows import DictRow

from core.db.connection import Conn
from ops.queries.dead_letters import among_needed


def first_registered(conn: Conn) -> datetime | None:
    """Return when the first batch of all was registered; None: there is none."""
    row = conn.execute("SELECT min(registered_at) AS at FROM batch_essay_trackers").fetchone()
    return row["at"] if row else None


def excess_by_reason(conn: Conn, batch_id: str, limit: int) -> list[DictRow]:
    """Count what found no slot, by reason, with the names of the first few files."""
    return conn.execute(
        "SELECT reason, count(*) AS files, (array_agg(coalesce(text_storage_id, file_upload_id)"
        " ORDER BY received_at, id))[:%s] AS names"
        " FROM excess_content WHERE batch_id = %s GROUP BY reason ORDER BY reason",
        [limit, batch_id],
    ).fetchall()


def held_twice(conn: Conn, batch_id: str, limit: int) -> list[DictRow]:
    """List files that hold several slots: one that was rejected and also stored, for instance."""
    return conn.execute(
        "SELECT file_upload_id AS name, count(*) AS slots, (array_agg(essay_id || ' ('"
        " || coalesce(text_storage_id, CASE WHEN validation_error_code IS NULL THEN current_status"
        "  ELSE 'rejected' END) || ')' ORDER BY essay_id))[:5] AS held"
        " FROM essay_states WHERE batch_id = %s AND file_upload_id IS NOT NULL"
        " GROUP BY file_upload_id HAVING count(*) > 1 ORDER BY 1 LIMIT %s",
        [batch_id, limit],
    ).fetchall()


def counted(conn: Conn, batch_id: str) -> DictRow | None:
    """Count the slots of a batch beside what its row and its registration say."""
    return conn.execute(
        "SELECT batch_id, expected_count,"
        " (SELECT count(*) FROM essay_states e WHERE e.batch_id = t.batch_id) AS slots,"
        " (SELECT max((outcome->>'slots')::bigint) FROM idempotency_keys k"
        "  WHERE k.batch_id = t.batch_id AND outcome->>'outcome' = 'registered') AS registered"
        " FROM batch_essay_trackers t WHERE batch_id = %s",
        [batch_id],
    ).fetchone()


def needed_letters(conn: Conn, batch_id: str, limit: int) -> list[DictRow]:
    """List the letters that a batch still needs, the oldest first."""
    query = among_needed("SELECT * FROM needed ORDER BY id LIMIT %(limit)s")
    return conn.execute(query, {"batch": batch_id, "limit": limit}).fetchall()


def letters_left(conn: Conn, batch_id: str, limit: int) -> list[DictRow]:
    """List the letters that wait although their batch no longer needs them."""
    return conn.execute(
        among_needed(
            "SELECT id, task, code FROM dead_letters WHERE batch_id = %(batch)s"
            " AND replayed_at IS NULL AND discarded_at IS NULL"
            " AND id NOT IN (SELECT id FROM needed) ORDER BY id LIMIT %(limit)s"
        ),
        {"batch": batch_id, "limit": limit},
    ).fetchall()


def missing_numbers(conn: Conn, batch_id: str, limit: int) -> list[int]:
    """List the first numbers of a batch's events that the outbox no longer has."""
    rows = conn.execute(
        "SELECT n FROM batch_essay_trackers t, generate_series(1, t.event_sequence) n"
        " WHERE t.batch_id = %(batch_id)s AND NOT EXISTS (SELECT FROM event_outbox o"
        " WHERE o.batch_id = %(batch_id)s AND o.sequence = n) ORDER BY n LIMIT %(limit)s",
        {"batch_id": batch_id, "limit": limit},
    )
    return [row["n"] for row in rows]


def newest_event(
    conn: Conn, batch_id: str, types: Collection[str], patience: timedelta
) -> DictRow | None:
    """Read type and moment of the batch's event that was published last, so long ago at least."""
    return conn.execute(
        "SELECT type, published_at FROM event_outbox"
        " WHERE batch_id = %(batch_id)s AND type = ANY(%(types)s)"
        " AND published_at < now() - %(patience)s::interval"
        " ORDER BY published_at DESC, sequence DESC LIMIT 1",
        {"batch_id": batch_id, "types": list(types), "patience": patience},
    ).fetchone()


def never_sent(conn: Conn, batch_id: str) -> list[DictRow]:
    """List the events that somebody has marked as published, and no relay has ever taken."""
    return conn.execute(
        "SELECT type, published_at FROM event_outbox WHERE batch_id = %s AND attempts = 0"
        " AND published_at IS NOT NULL AND first_published_at IS NULL ORDER BY sequence LIMIT 5",
        [batch_id],
    ).fetchall()


def was_cancelled(conn: Conn, batch_id: str) -> bool:
    """Tell whether a message or an operator has cancelled a batch, and not somebody by SQL."""
    row = conn.execute(
        "SELECT EXISTS (SELECT FROM idempotency_keys WHERE batch_id = %(batch)s"
        "  AND outcome->>'outcome' = 'cancelled')"
        " OR EXISTS (SELECT FROM operator_actions WHERE batch_id = %(batch)s"
        "  AND action = 'cancel') AS so",
        {"batch": batch_id},
    ).fetchone()
    return bool((row or {"so": False})["so"])


def last_amended(conn: Conn, batch_id: str) -> DictRow | None:
    """Read when a batch was amended last; by whom and why, where it was no message."""
    return conn.execute(
        "SELECT * FROM (SELECT acted_at AS at, actor, reason FROM operator_actions"
        " WHERE batch_id = %(batch)s AND action = 'amend' UNION ALL"
        " SELECT created_at, 'a message', NULL FROM idempotency_keys"
        " WHERE batch_id = %(batch)s AND outcome->>'outcome' = 'amended') amended"
        " ORDER BY at DESC LIMIT 1",
        {"batch": batch_id},
    ).fetchone()


def published_at(conn: Conn, event_id: UUID) -> datetime | None:
    row = conn.execute("SELECT published_at FROM event_outbox WHERE id = %s", [event_id]).fetchone()
    return row["published_at"] if row else None


def published_after(conn: Conn, moment: datetime, types: Collection[str], limit: int) -> int:
    """Count the events that were published later, up to a limit. Reads the outbox."""
    row = conn.execute(
        "SELECT count(*) AS n FROM (SELECT FROM event_outbox WHERE published_at > %(moment)s"
        " AND type = ANY(%(types)s) LIMIT %(limit)s) later",
        {"moment": moment, "types": list(types), "limit": limit},
    ).fetchone()
    return int((row or {})["n"])
