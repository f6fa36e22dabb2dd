"""What may be deleted after a while: closed batches, and what belongs to no registered batch.

Each statement is bounded, and skips what others hold, so nobody waits for a purge.
"""

from typing import Any, LiteralString
from uuid import UUID

from core.db.connection import Conn, sql

PURGEABLE = sql("purgeable")
OF_A_BATCH: tuple[LiteralString, ...] = (
    *("idempotency_keys", "repairs", "unmended", "dead_letters", "operator_actions"),
    "batch_essay_trackers",  # slots, excess and events follow it
)
FIRST_KEY = UUID(int=0)
OF_NO_BATCH: LiteralString = (
    "NOT EXISTS (SELECT FROM batch_essay_trackers t WHERE t.batch_id = r.batch_id)"
)
# Rows that belong to no registered batch: their table, the column of their age, what else holds.
WITHOUT_BATCH: dict[str, tuple[LiteralString, LiteralString, LiteralString]] = {
    "pending": ("batch_pending_content", "received_at", OF_NO_BATCH),
    "refusals": ("event_outbox", "published_at", "r.batch_id IS NULL"),
    "letters": ("dead_letters", "parked_at", OF_NO_BATCH),
    "actions": (
        "operator_actions",
        "acted_at",
        f"r.action NOT IN ('erase', 'purge') AND {OF_NO_BATCH}",
    ),
}
OLD_ROWS: LiteralString = (
    "SELECT r.id FROM {} r WHERE r.{} < now() - make_interval(secs => %s * 86400) AND {} LIMIT %s"
)
DELETE: LiteralString = "DELETE FROM {} WHERE {} = ANY(%s)"


def purgeable(conn: Conn, days: float, limit: int, *, slots: int | None = None) -> list[str]:
    """Lock and list batches that ended so long ago and have nothing left to do.

    At least one, and no further one once they have `slots` together. What has an undelivered
    event, a waiting letter or a waiting content stays.
    """
    rows = conn.execute(PURGEABLE, {"days": days, "limit": limit, "slots": slots})
    return [row["batch_id"] for row in rows]


def purge(conn: Conn, batches: list[str], actor: str) -> None:
    """Delete batches with all that belongs to them; keep a tombstone of each."""
    conn.execute(
        """
        INSERT INTO purged_batches
            (batch_id, status, expected_count, registered_at, ended_at, purged_by)
        SELECT batch_id, status, expected_count, registered_at,
               greatest(completed_at, ready_at, closed_at), %(actor)s
        FROM batch_essay_trackers WHERE batch_id = ANY(%(batches)s)
        ON CONFLICT (batch_id) DO UPDATE
        SET status = EXCLUDED.status, expected_count = EXCLUDED.expected_count,
            registered_at = EXCLUDED.registered_at, ended_at = EXCLUDED.ended_at,
            purged_at = now(), purged_by = EXCLUDED.purged_by
        """,
        {"batches": batches, "actor": actor},
    )
    for table in OF_A_BATCH:
        conn.execute(DELETE.format(table, "batch_id"), [batches])


def without_batch(conn: Conn, kind: str, days: float, limit: int | None = None) -> list[Any]:
    """List the ids of rows of a kind that belong to no registered batch, and are so old."""
    rows = conn.execute(OLD_ROWS.format(*WITHOUT_BATCH[kind]), [days, limit])
    return [row["id"] for row in rows]


def purge_without_batch(conn: Conn, kind: str, days: float, limit: int) -> int:
    """Delete the next rows of a kind that belong to no registered batch; return their number."""
    table, _, _ = WITHOUT_BATCH[kind]
    with conn.transaction():
        found = without_batch(conn, kind, days, limit)
        return conn.execute(DELETE.format(table, "id"), [found]).rowcount


def purge_keys(conn: Conn, days: float, after: UUID, limit: int) -> tuple[int, UUID | None]:
    """Delete old keys of no registered batch among the next `limit` of all keys.

    Returns how many, and the last key of the page; None: there are no more. Pages by key: no index
    has their age. The key of a content that waits stays.
    """
    row = conn.execute(
        """
        WITH page AS MATERIALIZED (
            SELECT key, batch_id, created_at FROM idempotency_keys
            WHERE key > %(after)s ORDER BY key LIMIT %(limit)s
        ), gone AS (
            DELETE FROM idempotency_keys i USING page k
            WHERE i.key = k.key
              AND k.created_at < now() - make_interval(secs => %(days)s * 86400)
              AND NOT EXISTS (SELECT FROM batch_essay_trackers t WHERE t.batch_id = k.batch_id)
              AND NOT EXISTS (SELECT FROM batch_pending_content p WHERE p.batch_id = k.batch_id)
            RETURNING i.key
        )
        SELECT (SELECT count(*) FROM gone) AS n,
               (SELECT key FROM page ORDER BY key OFFSET %(limit)s - 1 LIMIT 1) AS last
        """,
        {"days": days, "after": after, "limit": limit},
    ).fetchone()
    assert row is not None
    return row["n"], row["last"]
