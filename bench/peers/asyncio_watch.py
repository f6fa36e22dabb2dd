"""Asyncio consumers of a stream, claims by WATCH, and two transactions a content.

The shape that the system before this one had, with its faults mended: the slot is chosen before
MULTI, and whoever loses tries again. A stream of Redis stands for its Kafka topic.
"""

import asyncio
import json
import os
from contextlib import suppress
from typing import Any

import redis.asyncio as redis
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from redis.exceptions import ResponseError, WatchError

from bench.peers.job import DATABASE_URL, REDIS_URL, Content, uploads

STREAM, GROUP = "peers.contents", "peers"
CONSUMERS = 5  # of one process
Pool = AsyncConnectionPool[AsyncConnection]


async def claim(client: redis.Redis, batch_id: str, content_id: str) -> str:
    """Take a free slot, until nobody was faster."""
    free, held = f"peers:{batch_id}:free", f"peers:{batch_id}:held"
    async with client.pipeline() as pipe:
        while True:
            try:
                await pipe.watch(free)
                essay_id = str(await pipe.srandmember(free))
                pipe.multi()
                pipe.srem(free, essay_id)
                pipe.hset(held, content_id, essay_id)
                await pipe.execute()
            except WatchError:
                continue
            return essay_id


async def assign(client: redis.Redis, pool: Pool, content: Content) -> None:
    """Give a content a slot, then look whether the batch is complete."""
    batch_id, content_id = content["batch_id"], content["text_storage_id"]
    async with pool.connection() as conn:
        seen = await conn.execute(
            "SELECT FROM peers.seen WHERE event_id = %s", [content["event_id"]]
        )
        if seen.rowcount:
            return
    essay_id = await claim(client, batch_id, content_id)
    async with pool.connection() as conn:
        await conn.execute(
            "INSERT INTO peers.seen (event_id, batch_id) VALUES (%s, %s)",
            [content["event_id"], batch_id],
        )
        await conn.execute(
            "UPDATE peers.slots SET text_storage_id = %s, file_name = %s, assigned_at = now()"
            " WHERE batch_id = %s AND essay_id = %s",
            [content_id, content["file_name"], batch_id, essay_id],
        )
    async with pool.connection() as conn:
        counted = await conn.execute(
            "UPDATE peers.batches SET open_slots = open_slots - 1 WHERE batch_id = %s"
            " RETURNING open_slots",
            [batch_id],
        )
        if await counted.fetchone() == (0,):
            await conn.execute("INSERT INTO peers.ready (batch_id) VALUES (%s)", [batch_id])


async def consume(client: redis.Redis, pool: Pool, name: str) -> None:
    """Take contents from the stream, one after the other."""
    while True:
        # Any: redis-py gives the types of every protocol at once
        taken: Any = await client.xreadgroup(GROUP, name, {STREAM: ">"}, 1, 1000)
        for _, entries in taken or []:
            for entry_id, fields in entries:
                await assign(client, pool, json.loads(fields["event"]))
                await client.xack(STREAM, GROUP, entry_id)


def work() -> None:
    """Work until killed."""
    asyncio.run(_work())


async def _work() -> None:
    client = redis.Redis.from_url(REDIS_URL, decode_responses=True, protocol=2)
    async with AsyncConnectionPool(DATABASE_URL, min_size=1, max_size=10) as pool:
        names = [f"{os.getpid()}-{number}" for number in range(CONSUMERS)]
        await asyncio.gather(*(consume(client, pool, name) for name in names))


def enqueue() -> None:
    """Offer the slots, and write every content to the stream."""
    asyncio.run(_enqueue())


async def _enqueue() -> None:
    client = redis.Redis.from_url(REDIS_URL)
    await client.delete(STREAM)
    with suppress(ResponseError):  # it is there
        await client.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    async with client.pipeline(transaction=False) as pipe:
        for batch_id, contents in uploads():
            essays = [f"essay-{number:06d}" for number in range(len(contents))]
            pipe.sadd(f"peers:{batch_id}:free", *essays)
            for content in contents:
                pipe.xadd(STREAM, {"event": json.dumps(content)})
        await pipe.execute()
    await client.aclose()
