"""The outbox: events, committed with what they announce and numbered in each batch."""

from collections.abc import Sequence
from operator import itemgetter
from uuid import UUID

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from core.db import slots
from core.db.connection import Conn, Row, sql
from core.events import NO_BATCH, Outgoing, outgoing_id, slot_assigned
from core.states import EssayStatus
from core.tracing import traceparent

POST = f"WITH numbered AS ({sql('number_events')}) {sql('post')}"
POST_WITHOUT_BATCH = sql("post_without_batch")
TAKE_UNPUBLISHED = sql("take_unpublished")
TAKE_WITHOUT_BATCH = TAKE_UNPUBLISHED.replace("batch_id = ANY(%(batches)s)", "batch_id IS NULL")
NO_CORRELATION = UUID(int=0)
POST_AGAIN = sql("post_again")


def missing_events(conn: Conn, batches: Sequence[str]) -> list[DictRow]:
    """Find those of these batches that are sealed, or ready, without the event about it."""
    return conn.execute(
        """
        SELECT t.batch_id, coalesce(t.ready_at, t.completed_at) AS since,
               array_agg(due.type ORDER BY due.type) AS types
        FROM batch_essay_trackers t, LATERAL (VALUES
            ('BatchContentProvisioningCompleted', t.completed_at), ('BatchEssaysReady', t.ready_at)
        ) AS due (type, at)
        WHERE t.batch_id = ANY(%s) AND t.completed_at IS NOT NULL AND due.at IS NOT NULL
          AND (SELECT true FROM event_outbox o -- no join: looked up by its key
               WHERE o.batch_id = t.batch_id AND o.type = due.type LIMIT 1) IS NULL
        GROUP BY t.batch_id ORDER BY t.batch_id
        """,
        [list(batches)],
    ).fetchall()


def post_slot_events(conn: Conn, batch_id: str) -> None:
    """Post `EssaySlotAssigned` for every content of a batch."""
    essays = slots.essays_in(conn, batch_id, EssayStatus.READY_FOR_PROCESSING)
    post(conn, batch_id, [slot_assigned(batch_id, essay) for essay in essays])


def post(conn: Conn, batch_id: str, events: Sequence[Outgoing]) -> None:
    """Write events to the outbox, numbered after the batch's earlier ones."""
    assert _post(conn, batch_id, events), f"batch {batch_id} has an event but is not registered"


def post_refusal(conn: Conn, refused: Outgoing) -> None:
    """Write the event of a dead letter, whether or not its batch is registered."""
    batch_id = refused.data.get("batch_id")
    if batch_id and _post(conn, batch_id, [refused]):
        return
    conn.execute(
        POST_WITHOUT_BATCH,
        {
            "id": outgoing_id(batch_id or NO_BATCH, refused.type, refused.generation),
            "type": refused.type,
            "generation": refused.generation,
            "letter": refused.data["dead_letter"],
            "correlation_id": refused.data.get("correlation_id", NO_CORRELATION),
            "traceparent": traceparent.get(),
            "data": Jsonb(refused.data),
        },
    )


def _post(conn: Conn, batch_id: str, events: Sequence[Outgoing]) -> bool:
    """Write the events of a batch; False: it is not registered."""
    posted = conn.execute(
        POST,
        {
            "batch_id": batch_id,
            "events": Jsonb(numbered(batch_id, events)),
            "traceparent": traceparent.get(),
        },
    )
    return posted.rowcount > 0


def post_again(conn: Conn, batch_id: str, events: Sequence[Outgoing]) -> None:
    """Write missing events again, with the same ids and numbers as before."""
    conn.execute(POST_AGAIN, {"batch_id": batch_id, "events": Jsonb(numbered(batch_id, events))})


def numbered(batch_id: str, events: Sequence[Outgoing]) -> list[Row]:
    return [
        {
            "n": n,
            "id": str(outgoing_id(batch_id, event.type, event.generation)),
            "type": event.type,
            "generation": event.generation,
            "data": event.data,
        }
        for n, event in enumerate(events, start=1)
    ]


def was_posted(conn: Conn, batch_id: str, event_type: str) -> bool:
    row = conn.execute(
        "SELECT FROM event_outbox WHERE batch_id = %s AND type = %s LIMIT 1", [batch_id, event_type]
    ).fetchone()
    return row is not None


def take_unpublished(conn: Conn, batches: Sequence[str] | None, limit: int) -> list[DictRow]:
    """Mark the next events of some batches as published; return them, in the order of each.

    None: those without a registered batch. Another relay of one of these batches waits for our
    commit, so events leave in their order.
    """
    statement = TAKE_WITHOUT_BATCH if batches is None else TAKE_UNPUBLISHED
    rows = conn.execute(statement, {"batches": list(batches or ()), "limit": limit})
    return sorted(rows, key=itemgetter("sequence"))


def untake(conn: Conn, events: Sequence[Row], error: str) -> None:
    """Mark events as unpublished: the broker did not take the first, so none was sent."""
    ids = [event["id"] for event in events]
    conn.execute(
        "UPDATE event_outbox SET published_at = NULL, attempts = attempts - (id <> %(first)s)::int,"
        " last_error = CASE WHEN id = %(first)s THEN %(error)s END WHERE id = ANY(%(ids)s)",
        {"first": ids[0], "ids": ids, "error": error[:1000]},
    )


def batches_with_unpublished(conn: Conn, limit: int) -> list[str | None]:
    """List batches that have undelivered events; a batch whose events fail comes last.

    None stands for events without a registered batch.
    """
    rows = conn.execute(
        "SELECT batch_id FROM event_outbox WHERE published_at IS NULL"
        " GROUP BY batch_id ORDER BY max(attempts), min(created_at) LIMIT %s",
        [limit],
    )
    return [row["batch_id"] for row in rows]
