"""The job that every peer does: give each content a slot once, and say once that a batch is ready.

Each event is acted upon once, a content holds one slot, everything is committed to Postgres.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypedDict
from uuid import uuid4

import psycopg
from psycopg_pool import ConnectionPool

DATABASE_URL = os.environ.get("ELS_DATABASE_URL", "")
REDIS_URL = os.environ.get("ELS_REDIS_URL", "")
SCHEMA = Path(__file__).with_name("job.sql")


class Content(TypedDict):
    """The event: one text is stored."""

    event_id: str
    batch_id: str
    text_storage_id: str
    file_name: str


@cache
def pool() -> "ConnectionPool[psycopg.Connection]":
    """Open the connections of this process."""
    return ConnectionPool(DATABASE_URL, min_size=1, max_size=10, open=True)


def assign(conn: psycopg.Connection, content: Content) -> bool:
    """Put a content into a free slot, in one transaction; tell whether it took the last one."""
    batch_id = content["batch_id"]
    with conn.transaction():
        if not conn.execute(
            "INSERT INTO peers.seen (event_id, batch_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [content["event_id"], batch_id],
        ).rowcount:
            return False
        conn.execute(
            """
            UPDATE peers.slots SET text_storage_id = %(text_storage_id)s,
                                   file_name = %(file_name)s, assigned_at = now()
            WHERE batch_id = %(batch_id)s AND essay_id = (
                SELECT essay_id FROM peers.slots
                WHERE batch_id = %(batch_id)s AND text_storage_id IS NULL
                LIMIT 1 FOR UPDATE SKIP LOCKED)
            """,
            content,
        )
        row = conn.execute(
            "UPDATE peers.batches SET open_slots = open_slots - 1 WHERE batch_id = %s"
            " RETURNING open_slots",
            [batch_id],
        ).fetchone()
    return row == (0,)


def announce(conn: psycopg.Connection, batch_id: str) -> None:
    """Say that a batch is ready."""
    conn.execute("INSERT INTO peers.ready (batch_id) VALUES (%s)", [batch_id])
    conn.commit()


def uploads() -> Iterator[tuple[str, list[Content]]]:
    """List the batches that wait, each with the contents that its slots are for."""
    with psycopg.connect(DATABASE_URL) as conn:
        for batch_id, slots in conn.execute("SELECT batch_id, open_slots FROM peers.batches"):
            yield batch_id, [_content(batch_id, number) for number in range(slots)]


def _content(batch_id: str, number: int) -> Content:
    return Content(
        event_id=str(uuid4()),
        batch_id=batch_id,
        text_storage_id=f"text-{number:06d}",
        file_name=f"essay {number}.docx",
    )
