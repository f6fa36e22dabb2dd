"""Batches: their rows, their registration, their deadline and their end."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import LiteralString

from core.db.connection import Conn, Row, jsonb, sql
from core.model import Submission
from core.states import BatchStatus, OnDeadline
from core.tracker import Tracker

FURTHEST_DEADLINE = timedelta(days=10 * 366 + 1)  # `deadline_s` is ten years at most
REGISTER = sql("register")
CONTRADICTIONS = sql("contradictions")
OVERDUE = sql("overdue")


@dataclass(frozen=True)
class Overdue:
    """A batch whose deadline has passed, what it does then, and how long it has waited."""

    tracker: Tracker
    on_deadline: OnDeadline
    waited_s: float


def hold_registration_lock(conn: Conn, batch_id: str) -> None:
    """Let nobody else register this batch, or park for it, until the transaction ends."""
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('register/' || %s, 0))", [batch_id])


def share_registration_lock(conn: Conn, batch_id: str) -> None:
    """Let nobody register this batch until the transaction ends."""
    conn.execute(
        "SELECT pg_advisory_xact_lock_shared(hashtextextended('register/' || %s, 0))", [batch_id]
    )


def tracker(conn: Conn, batch_id: str, *, lock: bool = False) -> Tracker | None:
    """Read a batch; None: it is not registered. `lock` holds its row until the end."""
    return trackers(conn, [batch_id], lock=lock).get(batch_id)


def trackers(conn: Conn, batches: Sequence[str], *, lock: bool = False) -> dict[str, Tracker]:
    """Read the registered ones among these batches."""
    query: LiteralString = (
        "SELECT batch_id, status, class_id, org_id, user_id, course_code, correlation_id,"
        " expected_count, available_slots, essay_ids_sha256, completed_at, manifest_sha256,"
        " student_prompt_ref, metadata, course_language, amendments"
        " FROM batch_essay_trackers WHERE batch_id = ANY(%s) ORDER BY batch_id"
    )
    rows = conn.execute(query + " FOR UPDATE" if lock else query, [list(batches)])
    return {
        row["batch_id"]: Tracker(**{**row, "status": BatchStatus(row["status"])}) for row in rows
    }


def look_for_lock(conn: Conn, batch_id: str) -> None:
    """Raise LockNotAvailable if somebody keeps the row of a batch locked."""
    with conn.transaction():
        conn.execute("SELECT set_config('lock_timeout', '100ms', true)")
        trackers(conn, [batch_id], lock=True)


def register(conn: Conn, batch: Row, essay_ids: Sequence[str]) -> tuple[int, int, list[Submission]]:
    """Write tracker and slots, and give the first slots to what waited.

    Returns the number of open slots left, the number of assigned contents, and what found no slot.
    """
    slots = {"essay_ids": "\n".join(essay_ids), "expected_count": len(essay_ids)}
    row = conn.execute(REGISTER, {**batch, **slots}).fetchone()
    assert row is not None
    over = [Submission(**submission) for submission in row["over"]]
    return row["available_slots"], row["pending_assigned"], over


def contradictions(conn: Conn, batch: Row, given: Collection[str]) -> list[str]:
    """Name the given fields in which this registration differs from that of the batch."""
    return [row["name"] for row in conn.execute(CONTRADICTIONS, {**batch, "given": list(given)})]


def close_open_slots(conn: Conn, batch_id: str) -> None:
    """Mark every essay of a cancelled batch. Slots before the tracker, as `place` locks them."""
    conn.execute(
        "UPDATE essay_states SET current_status = 'cancelled' WHERE batch_id = %s", [batch_id]
    )


def amend(
    conn: Conn,
    batch_id: str,
    student_prompt_ref: Row | None,
    deadline_s: float | None,
    on_deadline: str | None,
) -> int | None:
    """Change what is given of a batch that is not sealed; return its number of open slots, or None.

    None: it is not registered, sealed or closed. The number of amendments makes an announcement
    that has read the batch before ineffective.
    """
    row = conn.execute(
        "UPDATE batch_essay_trackers"
        " SET student_prompt_ref = coalesce(%(student_prompt_ref)s, student_prompt_ref),"
        " deadline_at = coalesce(now() + make_interval(secs => %(deadline_s)s), deadline_at),"
        " on_deadline = coalesce(%(on_deadline)s, on_deadline), amendments = amendments + 1"
        " WHERE batch_id = %(batch_id)s AND status = 'awaiting_content_validation'"
        " AND completed_at IS NULL RETURNING available_slots",
        {
            "batch_id": batch_id,
            "student_prompt_ref": jsonb(student_prompt_ref),
            "deadline_s": deadline_s,
            "on_deadline": on_deadline,
        },
    ).fetchone()
    return row["available_slots"] if row else None


def cancel(conn: Conn, batch_id: str, reason: str) -> bool:
    """Mark an open batch as cancelled; False when it is not open."""
    cancelled = conn.execute(
        "UPDATE batch_essay_trackers SET status = 'cancelled', available_slots = 0,"
        " closed_at = now(), closed_reason = %s WHERE batch_id = %s AND status IN"
        " ('awaiting_content_validation', 'awaiting_student_validation')",
        [reason, batch_id],
    )
    return cancelled.rowcount > 0


def bring_deadline_near(conn: Conn, batch_id: str) -> bool:
    """Give a batch whose deadline never comes the usual one, a day from now."""
    changed = conn.execute(
        "UPDATE batch_essay_trackers SET deadline_at = now() + interval '1 day'"
        " WHERE batch_id = %s AND deadline_at > now() + %s AND status IN"
        " ('awaiting_content_validation', 'awaiting_student_validation')",
        [batch_id, FURTHEST_DEADLINE],
    )
    return changed.rowcount > 0


def overdue(conn: Conn, batch_id: str) -> Overdue | None:
    """Lock and read a batch whose deadline has passed, by the database's clock; else None.

    Wrong slots can never be sealed: a batch that has some and awaits contents fails, full or not.
    """
    row = conn.execute(OVERDUE, {"batch_id": batch_id}).fetchone()
    found = tracker(conn, batch_id) if row else None
    if row is None or found is None:
        return None
    return Overdue(found, OnDeadline(row["on_deadline"]), row["waited_s"])


def fail_open_slots(conn: Conn, batch_id: str) -> list[str]:
    """Mark open slots as failed; return their essay ids, in order."""
    rows = conn.execute(
        "UPDATE essay_states SET current_status = 'content_ingestion_failed'"
        " WHERE batch_id = %s AND current_status = 'awaiting_content' RETURNING essay_id",
        [batch_id],
    )
    return sorted(row["essay_id"] for row in rows)


def time_out(conn: Conn, batch_id: str) -> None:
    conn.execute(
        "UPDATE batch_essay_trackers SET status = 'timed_out', available_slots = 0,"
        " closed_at = now(), closed_reason = 'deadline' WHERE batch_id = %s",
        [batch_id],
    )


def fill_up(conn: Conn, batch_id: str) -> None:
    """Count the slots that failed at the deadline as accounted for."""
    conn.execute(
        "UPDATE batch_essay_trackers SET available_slots = 0, full_at = now() WHERE batch_id = %s",
        [batch_id],
    )
