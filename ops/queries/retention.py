"""What a purge would delete, and until when a batch is kept."""

from datetime import datetime, timedelta

from core import db
from core.db.connection import Conn, Row
from core.db.retention import PURGEABLE, WITHOUT_BATCH


def count(conn: Conn, days: float) -> dict[str, int]:
    """Count what a purge would delete, by kind."""
    counts = {"batches": count_batches(conn, days)}
    for kind in WITHOUT_BATCH:
        counts[kind] = len(db.retention.without_batch(conn, kind, days))
    return {**counts, "keys": _count_keys(conn, days)}


def count_batches(conn: Conn, days: float) -> int:
    unlocked = PURGEABLE.replace("FOR UPDATE OF t SKIP LOCKED", "")
    rows = conn.execute(unlocked, {"days": days, "limit": None, "slots": None})
    return len(rows.fetchall())


def _count_keys(conn: Conn, days: float) -> int:
    row = conn.execute(
        """
        SELECT count(*) AS n FROM idempotency_keys k
        WHERE k.created_at < now() - make_interval(secs => %s * 86400)
          AND NOT EXISTS (SELECT FROM batch_essay_trackers t WHERE t.batch_id = k.batch_id)
          AND NOT EXISTS (SELECT FROM batch_pending_content p WHERE p.batch_id = k.batch_id)
        """,
        [days],
    ).fetchone()
    return int((row or {})["n"])


def kept_until(facts: Row, days: float | None) -> datetime | None:
    """Say when a closed batch may be deleted; None: it is open, or nothing is deleted by itself."""
    ended = [facts.get(name) for name in ("completed_at", "ready_at", "closed_at")]
    moments: list[datetime] = [each for each in ended if each is not None]
    status = str(facts.get("status", "awaiting"))
    if days is None or not moments or status.startswith("awaiting"):
        return None
    return max(moments) + timedelta(days=days)
