"""Heartbeats in Redis: which workers run, what they execute, when the sweep ran last.

All times are by Redis' clock, so that nobody compares the clocks of two hosts.
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, cast

from redis import Redis

from core.signs.pauses import server_time

WORKERS = "els:workers"  # sorted set: worker -> time of its last heartbeat, s
SIGN = "els:sign:{worker}"  # JSON of `Sign` in `ops/signs.py`; moments are seconds
SIGN_TTL = timedelta(days=1)  # after its worker, for explanations: who was here, how it ran
SINCE = "els:since"  # time since when Redis keeps its keys, s
SWEPT = "els:swept_at"  # time of the last sweep, s
ROUTES = "els:routes:{queue}"  # JSON: where the workers of a queue send events
ROUTES_TTL_S = 24 * 3600  # after the last worker
FRESH = timedelta(seconds=15)  # a worker sends a heartbeat every 2 s
FORGOTTEN = timedelta(hours=1)
GONE = timedelta(seconds=60)  # a worker that has stopped is dated back so far: it counts no more
STARTS = "els:starts"  # sorted set: "time worker" of each start, without those that were stopped
REMEMBERED = timedelta(minutes=20)  # Kubernetes starts it again within 5; three starts must fit
TICK = "els:tick:{queue}:{task}"  # exists: beat has sent a tick that no worker has begun
TICK_TTL = timedelta(days=1)  # so the key of an abandoned queue goes; beat does not wait for it


def note_worker(client: Redis, name: str) -> None:
    """Note that a worker is alive; forget those that are long gone."""
    now = server_time(client)
    client.zadd(WORKERS, {name: now})
    client.set(SINCE, now, nx=True)
    client.zremrangebyscore(WORKERS, 0, now - FORGOTTEN.total_seconds())


def note_gone(client: Redis, name: str) -> None:
    """Note that a worker takes no messages, but keep its name: it has stopped, or has not begun."""
    client.zadd(WORKERS, {name: server_time(client) - GONE.total_seconds()})


def note_start(client: Redis, worker: str) -> str:
    """Note a start; return what `forget_start` takes. One that starts often is killed, or fails."""
    now = server_time(client)
    start = f"{now} {worker}"
    with client.pipeline() as pipe:
        pipe.zadd(STARTS, {start: now})
        pipe.zremrangebyscore(STARTS, 0, now - REMEMBERED.total_seconds())
        pipe.expire(STARTS, REMEMBERED)
        pipe.execute()
    return start


def forget_start(client: Redis, start: str) -> None:
    client.zrem(STARTS, start)


def write_sign(client: Redis, worker: str, sign: Mapping[str, Any]) -> None:  # Any: JSON
    """Write what a worker serves, holds and executes. Raises redis.RedisError."""
    client.set(SIGN.format(worker=worker), json.dumps(sign), ex=SIGN_TTL)


def note_routes(client: Redis, queue: str, routes: str) -> None:
    """Note where a worker sends events, for those who watch the queues of the receivers."""
    client.set(ROUTES.format(queue=queue), routes, ex=ROUTES_TTL_S)


def note_sweep(client: Redis) -> None:
    client.set(SWEPT, server_time(client))


def may_send_tick(client: Redis, queue: str, task: str) -> bool:
    """Note a tick of a task that beat will send; False: no worker has begun the one before."""
    key, ttl_s = TICK.format(queue=queue, task=task), int(TICK_TTL.total_seconds())
    return bool(client.set(key, 1, nx=True, ex=ttl_s))


def tick_begun(client: Redis, queue: str, task: str) -> None:
    client.delete(TICK.format(queue=queue, task=task))


def live_workers(client: Redis, now: float) -> list[str]:
    """List the workers with a fresh heartbeat; `now` is Redis' time. Raises redis.RedisError.

    A time far in the future is from before somebody set Redis' clock back. It counts as old.
    """
    fresh_s = FRESH.total_seconds()
    return cast("list[str]", client.zrangebyscore(WORKERS, now - fresh_s, now + fresh_s))
