"""Slots, and the submissions that take them, wait for them or find none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from core.db.connection import Conn, Row, sql
from core.events import Idempotency, outgoing_id
from core.states import EssayStatus, ExcessReason
from core.tracing import traceparent

PLACE = sql("place")
RECORD_EXCESS = sql("record_excess")
PARK_PENDING = sql("park_pending")
WHEREABOUTS = sql("whereabouts")


@dataclass(frozen=True)
class Submission:
    """A stored text (without `validation_error_code`) or a rejected file (with it)."""

    file_upload_id: str
    original_file_name: str
    text_storage_id: str | None = None
    raw_file_storage_id: str | None = None
    file_size_bytes: int | None = None
    content_md5_hash: str | None = None
    validation_error_code: str | None = None
    validation_error_detail: Mapping[str, Any] | None = None  # Any: the sender's JSON

    @property
    def claimant(self) -> str:
        """Name who claims a slot: the content, or the rejected file (no storage id has a blank)."""
        return self.text_storage_id or f"rejected {self.file_upload_id}"


class Location(NamedTuple):  # as `Claim`
    """Where a claimant is already: in a slot, or in excess for a reason."""

    essay_id: str | None
    excess_reason: ExcessReason | None


class Placing(NamedTuple):  # as `Claim`
    """A submission, the slot it is to get, and the event that this settles, with its outcome."""

    submission: Submission
    essay_id: str
    idem: Idempotency | None = None
    outcome: Row | None = None


@dataclass(frozen=True)
class Placed:
    """How many slots a statement took, how many the batch has left, and has in all."""

    taken: int
    left: int
    slots: int


def park_pending(conn: Conn, batch_id: str, submissions: Sequence[Submission]) -> None:
    """Keep submissions until their batch is registered; one that waits already stays as it is."""
    conn.execute(PARK_PENDING, {"batch_id": batch_id, "submissions": _recordset(submissions)})


def place(
    conn: Conn, batches: Mapping[str, Sequence[Placing]], *, routed: bool
) -> dict[str, Placed]:
    """Put submissions of some batches into the slots named beside them; write their events' keys.

    A batch none of whose slots was open is left out. With keys it is all or nothing: fewer open
    slots than submissions raise NotNullViolation. Raises UniqueViolation when a key, or a slot of
    one of these contents, is there already. `routed` writes an `EssaySlotAssigned` for each.
    """
    told = [
        {"batch_id": batch_id, "submissions": [_placing_row(batch_id, p, routed) for p in placings]}
        for batch_id, placings in batches.items()
    ]
    rows = conn.execute(PLACE, {"batches": Jsonb(told), "traceparent": traceparent.get()})
    return {
        row["batch_id"]: Placed(row["slots"], row["available_slots"], row["expected_count"])
        for row in rows
    }


def _placing_row(batch_id: str, placing: Placing, routed: bool) -> Row:
    return {
        **vars(placing.submission),
        **_key_row(placing),
        "essay_id": placing.essay_id,
        "event_id": _content_event_id(batch_id, "EssaySlotAssigned", placing.submission, routed),
    }


def _key_row(placing: Placing) -> Row:
    if placing.idem is None:
        return {}
    return {
        "key": str(placing.idem.key),
        "task": placing.idem.task,
        "fingerprint": f"\\x{placing.idem.fingerprint.hex()}",
        "outcome": placing.outcome,
    }


def record_excess(
    conn: Conn, batch_id: str, submissions: Sequence[Submission], reason: ExcessReason
) -> bool:
    """Write submissions down as excess, with their events; False when a slot is open after all."""
    told = reason is ExcessReason.NO_AVAILABLE_SLOT
    rows = [
        {
            **vars(submission),
            "event_id": _content_event_id(batch_id, "ExcessContentProvisioned", submission, told),
        }
        for submission in submissions
    ]
    row = conn.execute(
        RECORD_EXCESS,
        {
            "batch_id": batch_id,
            "submissions": Jsonb(rows),
            "reason": reason.value,
            "traceparent": traceparent.get(),
        },
    ).fetchone()
    return row is not None


def whereabouts(
    conn: Conn, batch_id: str, submissions: Sequence[Submission]
) -> dict[str, Location]:
    """Tell which of these claimants have a place in a registered batch already."""
    rows = conn.execute(WHEREABOUTS, {"batch_id": batch_id, "submissions": _recordset(submissions)})
    return {
        row["claimant"]: Location(
            row["essay_id"], row["excess_reason"] and ExcessReason(row["excess_reason"])
        )
        for row in rows
    }


def open_slots(conn: Conn, batch_id: str) -> list[str]:
    """List the essay ids that await content, in their order; none of a batch that takes none."""
    rows = conn.execute(
        "SELECT essay_id FROM essay_states"
        " WHERE batch_id = %(batch_id)s AND current_status = 'awaiting_content'"
        " AND (SELECT status FROM batch_essay_trackers WHERE batch_id = %(batch_id)s)"
        " = 'awaiting_content_validation' ORDER BY essay_id",
        {"batch_id": batch_id},
    )
    return [row["essay_id"] for row in rows]


def essays_in(conn: Conn, batch_id: str, *statuses: EssayStatus) -> list[DictRow]:
    """Read the essays of some states, in order, with what events and seals tell of them."""
    return essays_of(conn, [batch_id], *statuses)[batch_id]


def essays_of(
    conn: Conn, batches: Sequence[str], *statuses: EssayStatus
) -> dict[str, list[DictRow]]:
    """Do as `essays_in` for some batches."""
    rows = conn.execute(
        "SELECT batch_id, essay_id, current_status, text_storage_id, file_upload_id,"
        " original_file_name, student_id, validation_error_code FROM essay_states"
        " WHERE batch_id = ANY(%s) AND current_status = ANY(%s) ORDER BY batch_id, essay_id",
        [list(batches), list(statuses)],
    )
    return by_batch(batches, rows)


def by_batch(batches: Iterable[str], rows: Iterable[DictRow]) -> dict[str, list[DictRow]]:
    grouped: dict[str, list[DictRow]] = {batch_id: [] for batch_id in batches}
    for row in rows:
        grouped[row["batch_id"]].append(row)
    return grouped


def associate(conn: Conn, batch_id: str, associations: Sequence[Row]) -> set[str]:
    """Store on each essay whose it is; return the essay ids that the batch has."""
    rows = conn.execute(
        """
        UPDATE essay_states e
        SET student_id = a.student_id, confidence_score = a.confidence_score,
            validation_method = a.validation_method, validated_by = a.validated_by,
            validated_at = a.validated_at
        FROM jsonb_to_recordset(%s) AS a (
            essay_id text, student_id text, confidence_score double precision,
            validation_method text, validated_by text, validated_at timestamptz
        )
        WHERE e.batch_id = %s AND e.essay_id = a.essay_id
        RETURNING e.essay_id
        """,
        [Jsonb(associations), batch_id],
    )
    return {row["essay_id"] for row in rows}


def students(conn: Conn, batch_id: str) -> dict[str, str | None]:
    """Map every essay of a batch to its student."""
    rows = conn.execute(
        "SELECT essay_id, student_id FROM essay_states WHERE batch_id = %s", [batch_id]
    )
    return {row["essay_id"]: row["student_id"] for row in rows}


def pending(conn: Conn, batch_id: str) -> list[tuple[int, Submission]]:
    """Read what waits for a batch, in its order: the row's id and the submission."""
    rows = conn.execute(
        "SELECT id, essay_file_id AS file_upload_id, original_file_name, text_storage_id,"
        " raw_file_storage_id, file_size_bytes, content_md5_hash, validation_error_code,"
        " validation_error_detail FROM batch_pending_content WHERE batch_id = %s"
        " ORDER BY received_at, id",
        [batch_id],
    )
    return [(row.pop("id"), Submission(**row)) for row in rows]


def unpark(conn: Conn, row_id: int) -> None:
    """Drop what waited, once it has a place."""
    conn.execute("DELETE FROM batch_pending_content WHERE id = %s", [row_id])


def _recordset(submissions: Sequence[Submission]) -> Jsonb:
    return Jsonb(
        [{**vars(submission), "claimant": submission.claimant} for submission in submissions]
    )


def _content_event_id(
    batch_id: str, event_type: str, submission: Submission, told: bool
) -> str | None:
    """Name the event of a content; None for a rejected file, or where nobody is told."""
    if not told or submission.text_storage_id is None:
        return None
    return str(outgoing_id(batch_id, event_type, submission.text_storage_id))
