"""The sweep: its lock, what the checks read, what the repairs write, and what failed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString, cast

from psycopg import Rollback
from psycopg.rows import DictRow

from core.db.connection import Conn, sql
from core.states import BatchStatus

HOPELESS = 2  # failed repairs in a row
RETRY_AFTER = timedelta(seconds=5)  # doubled with each failure from the second on
RETRY_AT_LATEST = timedelta(minutes=5)
TRUE_STATUS = sql("true_status")
RESTORE_STATUS = f"{TRUE_STATUS} {sql('restore_status')}"
RECOUNT = sql("recount")


@dataclass(frozen=True)
class Unmended:
    """What the sweep could not repair: how often it tried, its last error, since when.

    `waits`: the sweep does not try again for a while.
    """

    failures: int
    last_error: str | None
    since: datetime
    waits: bool

    @property
    def hopeless(self) -> bool:
        return self.failures >= HOPELESS


@contextmanager
def lock(conn: Conn) -> Iterator[bool]:
    """Take the lock of the sweep by a transaction; yield False when another session has it.

    The session is renamed meanwhile, so that people can tell a sweep from a lock left behind. The
    transaction holds no snapshot, so it keeps no row from vacuum, however long the sweep takes.
    """
    with conn.transaction():
        row = conn.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended('sweep', 0)) AS ours"
        ).fetchone()
        ours = bool(row and row["ours"])
        if ours:
            conn.execute(
                "SELECT set_config('application_name',"
                " left(current_setting('application_name'), 57) || ' sweep', true),"
                " set_config('idle_in_transaction_session_timeout', '0', true)"
            )
        yield ours


def keep(conn: Conn) -> None:
    """Show whoever looks that the sweep goes on. Raises psycopg.Error where the lock is lost."""
    conn.execute("SELECT")


def open_batches(conn: Conn, after: str, limit: int) -> list[tuple[str, int]]:
    """Page through batches that await contents, by id, with the counter of each."""
    rows = conn.execute(
        "SELECT batch_id, available_slots FROM batch_essay_trackers"
        " WHERE status = 'awaiting_content_validation' AND batch_id > %s"
        " ORDER BY batch_id LIMIT %s",
        [after, limit],
    )
    return [(row["batch_id"], row["available_slots"]) for row in rows]


def page_to_count(conn: Conn, after: str, batches: int, slots: int) -> list[str]:
    """Page through batches that await contents, by id, to count their slots.

    At least one batch, at most `batches`, and no further one once they have `slots` together.
    """
    rows = conn.execute(
        """
        WITH page AS (
            SELECT batch_id, expected_count FROM batch_essay_trackers
            WHERE status = 'awaiting_content_validation' AND batch_id > %(after)s
            ORDER BY batch_id LIMIT %(batches)s
        ), chosen AS (
            SELECT batch_id, sum(expected_count) OVER (ORDER BY batch_id) - expected_count AS before
            FROM page
        )
        SELECT batch_id FROM chosen WHERE before <= %(slots)s ORDER BY batch_id
        """,
        {"after": after, "batches": batches, "slots": slots},
    )
    return [row["batch_id"] for row in rows]


def page_of_all(conn: Conn, after: str, limit: int) -> list[str]:
    rows = conn.execute(
        "SELECT batch_id FROM batch_essay_trackers WHERE batch_id > %s ORDER BY batch_id LIMIT %s",
        [after, limit],
    )
    return [row["batch_id"] for row in rows]


def contradicted(conn: Conn, limit: int) -> list[str]:
    """List batches with a status that contradicts their row: an index holds only these."""
    rows = conn.execute(
        """
        SELECT batch_id FROM batch_essay_trackers
        WHERE completed_at IS NOT NULL AND status = 'awaiting_content_validation'
           OR (closed_at IS NOT NULL) <> (status IN ('timed_out', 'cancelled'))
           OR (completed_at IS NULL) <> (manifest_sha256 IS NULL)
           OR status = 'awaiting_student_validation' AND class_id IS NULL
        ORDER BY batch_id LIMIT %s
        """,
        [limit],
    )
    return [row["batch_id"] for row in rows]


def wrong_statuses(conn: Conn, batches: Sequence[str]) -> list[DictRow]:
    """Find those of these batches that have a wrong status, with the true one."""
    query: LiteralString = (
        " SELECT batch_id, status, true_status, available_slots FROM wrong ORDER BY batch_id"
    )
    return conn.execute(TRUE_STATUS + query, {"batches": list(batches)}).fetchall()


def restore_status(conn: Conn, batch_id: str) -> BatchStatus | None:
    """Restore the status from the events, the seal and the moments of a batch; None: it was right.

    The first statement locks the row. So the second one sees what others have just committed.
    """
    conn.execute("SELECT FROM batch_essay_trackers WHERE batch_id = %s FOR UPDATE", [batch_id])
    row = conn.execute(RESTORE_STATUS, {"batches": [batch_id]}).fetchone()
    return BatchStatus(row["status"]) if row else None


def reopen_cancelled_slots(conn: Conn, batch_id: str) -> bool:
    """Undo cancellations of single slots in an open batch; False: there is none.

    Slots before the tracker, as `place` locks them. A cancellation of the whole batch commits both
    at once: if one came in between, the second statement sees it, and the first is rolled back.
    """
    reopened = conn.execute(
        """
        UPDATE essay_states e
        SET current_status = CASE
            WHEN e.text_storage_id IS NOT NULL THEN 'ready_for_processing'
            WHEN e.validation_error_code IS NOT NULL OR t.completed_at IS NOT NULL
            THEN 'content_ingestion_failed' ELSE 'awaiting_content' END
        FROM batch_essay_trackers t
        WHERE t.batch_id = %s AND e.batch_id = t.batch_id AND e.current_status = 'cancelled'
        """,
        [batch_id],
    ).rowcount
    row = conn.execute(
        "SELECT FROM batch_essay_trackers WHERE batch_id = %s AND closed_at IS NULL"
        " AND status IN ('awaiting_content_validation', 'awaiting_student_validation') FOR UPDATE",
        [batch_id],
    ).fetchone()
    if row is None:
        raise Rollback
    return reopened > 0


def recount(conn: Conn, batch_id: str) -> bool:
    """Set the counter to the number of open slots; False: it was right, or the slots are wrong.

    The first statement locks the tracker. A submission that has its slot but waits for the tracker
    still counts as open in the second one, and then decrements the counter itself.
    """
    conn.execute("SELECT FROM batch_essay_trackers WHERE batch_id = %s FOR UPDATE", [batch_id])
    row = conn.execute(RECOUNT, {"batch_id": batch_id}).fetchone()
    return row is not None


def note_repair(conn: Conn, batch_id: str, rule: str) -> None:
    conn.execute("INSERT INTO repairs (batch_id, rule) VALUES (%s, %s)", [batch_id, rule])


def unmended(conn: Conn, batch_id: str | None, limit: int) -> dict[tuple[str, str], Unmended]:
    """Read what the sweep could not repair, of one batch or of all, by batch and rule."""
    rows = conn.execute(
        "SELECT batch_id, rule, failures, last_error, since,"
        " coalesce(retry_at > now(), false) AS waits FROM unmended"
        " WHERE %(batch_id)s::text IS NULL OR batch_id = %(batch_id)s"
        " ORDER BY since LIMIT %(limit)s",
        {"batch_id": batch_id, "limit": limit},
    )
    return {(row.pop("batch_id"), row.pop("rule")): Unmended(**row) for row in rows}


def unmended_by(conn: Conn, rule: str, limit: int) -> list[str]:
    """List the batches of one rule that the sweep could not repair, the oldest first."""
    rows = conn.execute(
        "SELECT batch_id FROM unmended WHERE rule = %s ORDER BY since LIMIT %s", [rule, limit]
    )
    return [row["batch_id"] for row in rows]


def note_failure(conn: Conn, batch_id: str, rule: str, error: str) -> int:
    """Count a repair that did not help; return how many did not by now.

    From the second time on the sweep tries less and less often, at least every `RETRY_AT_LATEST`.
    """
    row = conn.execute(
        """
        INSERT INTO unmended AS u (batch_id, rule, failures, last_error, tried_at)
        VALUES (%(batch_id)s, %(rule)s, 1, %(error)s, now())
        ON CONFLICT (batch_id, rule) DO UPDATE
        SET failures = u.failures + 1, last_error = %(error)s, tried_at = now(),
            retry_at = CASE WHEN u.failures + 1 >= %(hopeless)s
                            THEN now() + least(%(first)s * 2 ^ least(u.failures + 1, 20),
                                               %(latest)s) END
        RETURNING failures
        """,
        {
            "batch_id": batch_id,
            "rule": rule,
            "error": error[:1000],
            "hopeless": HOPELESS,
            "first": RETRY_AFTER,
            "latest": RETRY_AT_LATEST,
        },
    ).fetchone()
    assert row is not None
    return cast(int, row["failures"])


def note_alarm(conn: Conn, batch_id: str, rule: str) -> None:
    """Remember a batch that only a person can repair, so that each check of all finds it."""
    conn.execute(
        "INSERT INTO unmended (batch_id, rule) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [batch_id, rule],
    )


def forget_unmended(conn: Conn, batch_id: str, rule: str) -> None:
    conn.execute("DELETE FROM unmended WHERE batch_id = %s AND rule = %s", [batch_id, rule])
