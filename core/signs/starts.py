"""Starts of workers. One that nobody stopped, and that starts again, was killed or fails."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

from redis import Redis

from core.signs.pauses import server_time

STARTS = "els:starts"  # sorted set: "time worker" of each start, without those that were stopped
REMEMBERED = timedelta(minutes=10)
OFTEN = 3  # starts in that time: its worker has ended twice, at least, and nobody stopped it


def note_start(client: Redis, worker: str) -> str:
    """Note a start; return what `forget_start` takes. Raises redis.RedisError."""
    now = server_time(client)
    start = f"{now} {worker}"
    with client.pipeline() as pipe:
        pipe.zadd(STARTS, {start: now})
        pipe.zremrangebyscore(STARTS, 0, now - REMEMBERED.total_seconds())
        pipe.expire(STARTS, REMEMBERED)
        pipe.execute()
    return start


def forget_start(client: Redis, start: str) -> None:
    """Note that somebody has stopped the worker. Raises redis.RedisError."""
    client.zrem(STARTS, start)


def read_restarts(client: Redis, now: float) -> Mapping[str, Sequence[datetime]]:
    """Return the starts of each worker that has started often; `now` is Redis' time.

    Raises redis.RedisError.
    """
    oldest = now - REMEMBERED.total_seconds()
    starts = cast("list[str]", client.zrangebyscore(STARTS, oldest, "+inf"))
    here = datetime.now(UTC)
    found: dict[str, list[datetime]] = {}
    for start in starts:
        at, _, worker = start.partition(" ")
        found.setdefault(worker, []).append(here - timedelta(seconds=now - float(at)))
    return {worker: those for worker, those in found.items() if len(those) >= OFTEN}
