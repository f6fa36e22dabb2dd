"""Starts of workers. One that nobody stopped, and that starts again, was killed or fails."""

from datetime import timedelta

from redis import Redis

from core.signs.pauses import server_time

STARTS = "els:starts"  # sorted set: "time worker" of each start, without those that were stopped
REMEMBERED = timedelta(minutes=20)  # Kubernetes starts it again within 5; three starts must fit


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
