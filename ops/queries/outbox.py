"""Events: those that wait, and those to deliver again."""

from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString
from uuid import UUID

from psycopg.rows import DictRow

from core.db.connection import Conn
from ops.queries.statements import sql
from ops.sorting import Sort, Sortable

OF_BATCH: LiteralString = "coalesce(batch_id, data ->> 'batch_id', 'unknown')"  # of an event
EVENTS = Sortable(
    source="event_outbox",
    row="id",
    keys={
        "written": ["created_at", OF_BATCH, "sequence", "id"],
        "type": ["type", "created_at", "id"],
        "batch": [OF_BATCH, "sequence", "id"],
        "number": ["sequence", "created_at", "id"],
        "attempts": ["attempts", "created_at", "id"],
    },
)
OLDEST = Sort("written")


def undelivered(  # noqa: PLR0913 - a filter each
    conn: Conn,
    limit: int,
    *,
    batch_id: str | None = None,
    event_type: str | None = None,
    failing: bool = False,
    since: datetime | None = None,
    until: datetime | None = None,
    sort: Sort = OLDEST,
    after: UUID | None = None,
) -> list[DictRow]:
    """List undelivered events; `failing`: only those with an error.

    They were written at `since` or later, before `until`, and come behind the event `after`.
    """
    part = EVENTS.part(conn, sort, after)
    query: LiteralString = "SELECT id, " + OF_BATCH + " AS batch_id, type, sequence,"
    query += (
        " created_at, attempts, last_error FROM event_outbox"
        " WHERE published_at IS NULL"
        " AND (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)"
        " AND (%(type)s::text IS NULL OR type = %(type)s)"
        " AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)"
        " AND (%(until)s::timestamptz IS NULL OR created_at < %(until)s)"
        " AND (NOT %(failing)s OR last_error IS NOT NULL) AND "
    )
    return conn.execute(
        query + part.condition + " ORDER BY " + part.order + " LIMIT %(limit)s",
        {
            **part.parameters,
            "batch_id": batch_id,
            "type": event_type,
            "failing": failing,
            "since": since,
            "until": until,
            "limit": limit,
        },
    ).fetchall()


@dataclass(frozen=True)
class Events:
    """Which delivered events an operator means: written since then, delivered before `until`."""

    since: datetime
    until: datetime
    batch_id: str | None = None
    event_type: str | None = None


def count_delivered(conn: Conn, meant: Events) -> int:
    row = conn.execute(
        "SELECT count(*) AS n FROM event_outbox"
        " WHERE published_at < %(until)s AND created_at >= %(since)s"
        " AND (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)"
        " AND (%(event_type)s::text IS NULL OR type = %(event_type)s)",
        vars(meant),
    ).fetchone()
    return int((row or {})["n"])


def republish(conn: Conn, meant: Events, limit: int) -> dict[str | None, int]:
    """Let the relay deliver the next events again; return their numbers by batch.

    The first delivery of each stays noted.
    """
    rows = conn.execute(sql("republish"), {**vars(meant), "limit": limit})
    return {row["batch_id"]: row["n"] for row in rows}


def events(conn: Conn, batch_id: str, limit: int) -> list[DictRow]:
    """List the events of a batch with their delivery, the newest first."""
    return conn.execute(
        "SELECT id, type, sequence, created_at, published_at, attempts, last_error"
        " FROM event_outbox WHERE batch_id = %s ORDER BY sequence DESC LIMIT %s",
        [batch_id, limit],
    ).fetchall()
