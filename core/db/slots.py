"""Slots, and the submissions that take them, wait for them or find none."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from core.catalogue import ESSAY_SLOT_ASSIGNED, EXCESS_CONTENT_PROVISIONED
from core.db.connection import Conn, Row, sql
from core.events import outgoing_id
from core.messages import Idempotency
from core.model import Location, Message, Submission
from core.states import EssayStatus, ExcessReason
from core.tracing import traceparent

PLACE = sql("place")
RECORD_EXCESS = sql("record_excess")
PARK_PENDING = sql("park_pending")
LOCATIONS = sql("locations")


def park_pending(conn: Conn, batch_id: str, submissions: Sequence[Submission]) -> None:
    """Keep submissions until their batch is registered; one that waits already stays."""
    conn.execute(PARK_PENDING, {"batch_id": batch_id, "submissions": _recordset(submissions)})


def place(
    conn: Conn,
    slots: Mapping[Message, Mapping[str, str]],
    *,
    with_keys: bool,
    slot_events: bool,
) -> dict[str, DictRow]:
    """Put submissions of some messages into slots, by claimant; write the messages' keys.

    Returns for each batch the `slots` taken, the `available_slots` left and the `expected_count`;
    a batch none of whose slots was open is left out. With keys it is all or nothing: fewer open
    slots than submissions raise NotNullViolation. Raises UniqueViolation when a key, or a slot of
    one of these contents, is there already. `slot_events` posts an `EssaySlotAssigned` for each.
    """
    batches: dict[str, list[Row]] = {}
    for message, slot_of in slots.items():
        slot_rows = _slot_rows(message, slot_of, slot_events)
        if with_keys:
            first = Location(slot_rows[0]["essay_id"])
            slot_rows[0] |= _key_row(message.idem, message.value(first))
        batches.setdefault(message.batch_id, []).extend(slot_rows)
    recordset = [{"batch_id": batch_id, "submissions": rows} for batch_id, rows in batches.items()]
    rows = conn.execute(PLACE, {"batches": Jsonb(recordset), "traceparent": traceparent.get()})
    return {row["batch_id"]: row for row in rows}


def _slot_rows(
    message: Message, slot_of: Mapping[str, str], slot_events: bool
) -> list[dict[str, Any]]:
    event = ESSAY_SLOT_ASSIGNED.name if slot_events else None
    return [
        {
            **vars(submission),
            "essay_id": slot_of[submission.claimant],
            "event_id": _content_event_id(message.batch_id, event, submission),
        }
        for submission in message.submissions
        if submission.claimant in slot_of
    ]


def _key_row(idem: Idempotency, outcome: Row) -> Row:
    return {
        "key": str(idem.key),
        "task": idem.task,
        "fingerprint": f"\\x{idem.fingerprint.hex()}",
        "outcome": outcome,
    }


def record_excess(
    conn: Conn, batch_id: str, submissions: Sequence[Submission], reason: ExcessReason
) -> bool:
    """Write submissions down as excess, with their events; False when a slot is open after all."""
    event = EXCESS_CONTENT_PROVISIONED.name if reason is ExcessReason.NO_AVAILABLE_SLOT else None
    rows = [
        {**vars(each), "event_id": _content_event_id(batch_id, event, each)} for each in submissions
    ]
    values = {
        "batch_id": batch_id,
        "submissions": Jsonb(rows),
        "reason": reason.value,
        "traceparent": traceparent.get(),
    }
    return conn.execute(RECORD_EXCESS, values).fetchone() is not None


def locations(conn: Conn, batch_id: str, submissions: Sequence[Submission]) -> dict[str, Location]:
    """Find which of these claimants have a place in a registered batch already."""
    rows = conn.execute(LOCATIONS, {"batch_id": batch_id, "submissions": _recordset(submissions)})
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
    """Read the essays in these states, in order, with the columns of events and seals."""
    return essays_of(conn, [batch_id], *statuses)[batch_id]


def essays_of(
    conn: Conn, batches: Sequence[str], *statuses: EssayStatus
) -> dict[str, list[DictRow]]:
    """Do as `essays_in` for some batches."""
    rows = conn.execute(
        "SELECT batch_id, essay_id, current_status, text_storage_id, file_upload_id,"
        " original_file_name, student_id, validation_error_code, validation_error_detail,"
        " CASE current_status WHEN 'content_ingestion_failed' THEN to_char(assigned_at"
        """ AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') END AS failed_at"""
        " FROM essay_states"
        " WHERE batch_id = ANY(%s) AND current_status = ANY(%s) ORDER BY batch_id, essay_id",
        [list(batches), list(statuses)],
    )
    return by_batch(batches, rows)


def by_batch(batches: Iterable[str], rows: Iterable[DictRow]) -> dict[str, list[DictRow]]:
    grouped: dict[str, list[DictRow]] = {batch_id: [] for batch_id in batches}
    for row in rows:
        grouped[row["batch_id"]].append(row)
    return grouped


def associate(conn: Conn, batch_id: str, associations: Sequence[Row]) -> None:
    """Store the student of each essay."""
    conn.execute(
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
        """,
        [Jsonb(associations), batch_id],
    )


def students(conn: Conn, batch_id: str) -> dict[str, str | None]:
    """Map every essay of a batch to its student."""
    rows = conn.execute(
        "SELECT essay_id, student_id FROM essay_states WHERE batch_id = %s", [batch_id]
    )
    return {row["essay_id"]: row["student_id"] for row in rows}


def pending(conn: Conn, batch_id: str) -> list[tuple[int, Submission]]:
    """Read what waits for a batch, in order: the row's id and the submission."""
    rows = conn.execute(
        "SELECT id, essay_file_id AS file_upload_id, original_file_name, text_storage_id,"
        " raw_file_storage_id, file_size_bytes, content_md5_hash, validation_error_code,"
        " validation_error_detail FROM batch_pending_content WHERE batch_id = %s"
        " ORDER BY received_at, id",
        [batch_id],
    )
    return [(row.pop("id"), Submission(**row)) for row in rows]


def unpark(conn: Conn, row_id: int) -> None:
    conn.execute("DELETE FROM batch_pending_content WHERE id = %s", [row_id])


def _recordset(submissions: Sequence[Submission]) -> Jsonb:
    return Jsonb(
        [{**vars(submission), "claimant": submission.claimant} for submission in submissions]
    )


def _content_event_id(batch_id: str, event: str | None, submission: Submission) -> str | None:
    """Name the event of a content; None for a rejected file, or where no event is written."""
    if event is None or submission.text_storage_id is None:
        return None
    return str(outgoing_id(batch_id, event, submission.text_storage_id))
