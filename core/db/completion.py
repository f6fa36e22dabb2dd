"""Completion: the slots and counts of a full batch, and its announcement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from core.db import outbox, slots
from core.db.connection import Conn, sql
from core.events import Outgoing
from core.states import BatchStatus
from core.tracing import traceparent

Bounds = tuple[str, str | None]  # of slots: the first essay id, and the first one after them
ANNOUNCE = f"{sql('announce')} {sql('post')}"


@dataclass(frozen=True)
class Announcement:
    """The next status of a complete batch, and the events about it."""

    status: BatchStatus
    provisioned_count: int
    manifest_sha256: str
    amendments: int  # of the batch that the events tell of
    events: list[Outgoing]


def range_starts(conn: Conn, batch_id: str, size: int) -> list[str]:
    """List the essay id at which each range of `size` slots starts."""
    rows = conn.execute(
        "SELECT essay_id FROM (SELECT essay_id, row_number() OVER (ORDER BY essay_id) - 1 AS n"
        " FROM essay_states WHERE batch_id = %s) numbered WHERE n %% %s = 0 ORDER BY essay_id",
        [batch_id, size],
    )
    return [row["essay_id"] for row in rows]


def slot_ranges(conn: Conn, ranges: Mapping[str, Bounds]) -> dict[str, list[DictRow]]:
    """Read a range of the slots of some batches, each in order."""
    rows = conn.execute(
        """
        SELECT e.* FROM unnest(%s::text[], %s::text[], %s::text[]) AS r (batch_id, low, high),
        LATERAL (
            SELECT batch_id, essay_id, text_storage_id, current_status FROM essay_states
            WHERE batch_id = r.batch_id AND essay_id >= r.low
              AND (r.high IS NULL OR essay_id < r.high)
            ORDER BY essay_id OFFSET 0 -- not merged into the query around it: read by its key
        ) e
        """,
        [[*ranges], *map(list, zip(*ranges.values(), strict=True))],
    )
    return slots.by_batch(ranges, rows)


def accounts(conn: Conn, batches: Sequence[str]) -> dict[str, DictRow]:
    """Read the counter of some batches, and count their slots by status and what waits."""
    rows = conn.execute(
        """
        SELECT t.batch_id, t.status, t.available_slots, t.expected_count, e.*,
               (SELECT count(*) FROM batch_pending_content p WHERE p.batch_id = t.batch_id)
                   AS pending
        FROM batch_essay_trackers t, LATERAL (
            SELECT count(*) AS slots,
                   count(*) FILTER (WHERE current_status = 'awaiting_content') AS open,
                   count(*) FILTER (WHERE current_status = 'ready_for_processing') AS assigned,
                   count(*) FILTER (WHERE current_status = 'content_ingestion_failed') AS failed,
                   count(*) FILTER (WHERE current_status = 'cancelled') AS cancelled
            FROM essay_states WHERE batch_id = t.batch_id
        ) e
        WHERE t.batch_id = ANY(%s)
        """,
        [list(batches)],
    )
    return {row["batch_id"]: row for row in rows}


def announce(conn: Conn, announcements: Mapping[str, Announcement]) -> dict[str, float | None]:
    """Give full batches their next status and write their events, once, by one statement.

    Returns the seconds from registration to readiness (None: not ready), without the batches that
    are not full or that another call has announced.
    """
    batches = [
        {
            "batch_id": batch_id,
            "status": each.status,
            "provisioned_count": each.provisioned_count,
            "manifest_sha256": each.manifest_sha256,
            "amendments": each.amendments,
            "events": outbox.numbered(batch_id, each.events),
        }
        for batch_id, each in announcements.items()
    ]
    rows = conn.execute(ANNOUNCE, {"batches": Jsonb(batches), "traceparent": traceparent.get()})
    return {row["batch_id"]: row["seconds"] for row in rows}


def set_ready(conn: Conn, batch_id: str) -> float:
    """Make a regular batch ready; return the seconds since its registration."""
    row = conn.execute(
        "UPDATE batch_essay_trackers SET status = 'ready_for_pipeline_execution', ready_at = now()"
        " WHERE batch_id = %s"
        " RETURNING extract(epoch FROM ready_at"
        " - least(greatest(registered_at, '0001-01-01Z'), ready_at))::float8 AS seconds",
        [batch_id],
    ).fetchone()
    assert row is not None, f"batch {batch_id} was there a moment ago"
    return cast(float, row["seconds"])
