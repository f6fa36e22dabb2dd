"""Heartbeats in Redis: which workers run, when the sweep ran last, how much waits.

All times are by Redis' clock, so that nobody compares the clocks of two hosts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from redis import Redis

from core.beats import NO_BEATS, Beats
from core.pauses import Pause, read_pauses, server_time

WORKERS = "els:workers"  # sorted set: worker -> time of its last heartbeat, s
SWEPT = "els:swept_at"  # time of the last sweep, s
FRESH = timedelta(seconds=15)  # a worker sends a heartbeat every 2 s
SWEEP_LATE = timedelta(seconds=60)  # the sweep runs every few seconds
FORGOTTEN = timedelta(hours=1)
IN_WORK = "els:in_work:{worker}"  # messages that a worker has taken and not ended
TICK = "els:tick:{queue}:{task}"  # exists: beat has sent a tick that no worker has begun
TICK_TTL = timedelta(days=1)  # so the key of an abandoned queue goes; beat does not wait for it


@dataclass(frozen=True)
class Heartbeat:
    """What the running service has shown of itself."""

    workers: list[str]
    swept_at: datetime | None  # by the clock of this host
    waiting: int | None  # messages in the queue; None: the broker does not answer
    pauses: Sequence[Pause] = ()  # processes that wait for a server which refuses
    beats: Beats = NO_BEATS
    in_work: int = 0  # messages that these workers have taken and not ended

    @property
    def silent(self) -> bool:
        """Nothing runs, or Redis was flushed a moment ago."""
        return not self.workers and self.swept_at is None

    @property
    def beat_silent(self) -> bool:
        """No sweep has run for so long that beat, or every worker, must be away."""
        return self.swept_at is None or abs(datetime.now(UTC) - self.swept_at) > SWEEP_LATE


NO_HEARTBEAT = Heartbeat([], None, 0)


def note_worker(client: Redis, name: str, in_work: int = 0) -> None:
    """Note that a worker is alive, and has so many messages; forget those that are long gone."""
    now = server_time(client)
    with client.pipeline(transaction=False) as pipe:
        pipe.zadd(WORKERS, {name: now})
        pipe.zremrangebyscore(WORKERS, 0, now - FORGOTTEN.total_seconds())
        pipe.set(IN_WORK.format(worker=name), in_work, ex=FRESH)
        pipe.execute()


def note_sweep(client: Redis) -> None:
    client.set(SWEPT, server_time(client))


def may_send_tick(client: Redis, queue: str, task: str) -> bool:
    """Note a tick of a task that beat will send; False: no worker has begun the one before."""
    key, ttl_s = TICK.format(queue=queue, task=task), int(TICK_TTL.total_seconds())
    return bool(client.set(key, 1, nx=True, ex=ttl_s))


def tick_begun(client: Redis, queue: str, task: str) -> None:
    client.delete(TICK.format(queue=queue, task=task))


def read_heartbeat(client: Redis, waiting: int | None) -> Heartbeat:
    """Read the heartbeats; `waiting` is the number of messages in the queue, None: unknown.

    A time far in the future is from before somebody set Redis' clock back. It counts as old.
    """
    now, fresh_s = server_time(client), FRESH.total_seconds()
    workers = cast("list[str]", client.zrangebyscore(WORKERS, now - fresh_s, now + fresh_s))
    last = cast("str | None", client.get(SWEPT))
    swept_at = datetime.now(UTC) - timedelta(seconds=now - float(last)) if last else None
    counts = client.mget(IN_WORK.format(worker=each) for each in workers) if workers else []
    in_work = sum(int(count) for count in cast("list[str | None]", counts) if count)
    return Heartbeat(workers, swept_at, waiting, read_pauses(client), in_work=in_work)
