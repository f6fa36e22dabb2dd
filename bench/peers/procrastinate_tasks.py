"""procrastinate as its quickstart has it: the queue is in Postgres, tasks are coroutines."""

from functools import cache
from typing import Any

from procrastinate import App, PsycopgConnector
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from bench.peers.job import DATABASE_URL, Content, uploads

app = App(connector=PsycopgConnector(conninfo=DATABASE_URL))


@cache
def pool() -> "AsyncConnectionPool[AsyncConnection]":
    """Make the pool of this worker; it opens in the loop of the tasks."""
    return AsyncConnectionPool(DATABASE_URL, min_size=1, max_size=10, open=False)


@app.task
async def assign(content: Content) -> None:
    """Give a content a slot; whoever took the last one defers the announcement."""
    await pool().open()
    batch_id = content["batch_id"]
    async with pool().connection() as conn:
        seen = await conn.execute(
            "INSERT INTO peers.seen (event_id, batch_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [content["event_id"], batch_id],
        )
        if not seen.rowcount:
            return
        await conn.execute(
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
        counted = await conn.execute(
            "UPDATE peers.batches SET open_slots = open_slots - 1 WHERE batch_id = %s"
            " RETURNING open_slots",
            [batch_id],
        )
        left = await counted.fetchone()
    if left == (0,):
        await announce.defer_async(batch_id=batch_id)


@app.task
async def announce(batch_id: str) -> None:
    """Say that a batch is ready."""
    await pool().open()
    async with pool().connection() as conn:
        await conn.execute("INSERT INTO peers.ready (batch_id) VALUES (%s)", [batch_id])


def enqueue() -> None:
    """Enqueue the contents of every batch."""
    with app.open():
        if not app.check_connection():
            app.schema_manager.apply_schema()
        for _, contents in uploads():
            jobs: Any = [{"content": content} for content in contents]  # Any: JSON
            assign.batch_defer(*jobs)
