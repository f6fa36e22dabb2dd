"""Signs of life, in Redis: which workers run, when the sweep ran last, how much waits.

Their times are Redis' own, so no two hosts' clocks are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from redis import Redis

from core.pauses import Pause, read_pauses, server_time

WORKERS = "els:workers"  # sorted set: worker -> time of its last sign of life, s
SWEPT = "els:swept_at"  # time of the last sweep, s
FRESH = timedelta(seconds=15)  # workers give a sign every 2 s
SWEEP_LATE = timedelta(seconds=60)  # the sweep runs every few seconds
FORGOTTEN = timedelta(hours=1)
TICK = "els:tick:{queue}:{task}"  # there: beat has sent a tick that no worker has begun
TICK_TTL = timedelta(days=1)  # of a queue that is no longer used; beat does not wait for it


@dataclass(frozen=True)
class Pulse:
    """What was seen of the running service."""

    workers: list[str]
    swept_at: datetime | None  # by the clock of this host
    waiting: int | None  # messages in the queue; None: the broker does not answer
    pauses: Sequence[Pause] = ()  # processes that wait for a server which refuses

    @property
    def silent(self) -> bool:
        """No sign of life at all: nothing runs, or Redis was flushed a moment ago."""
        return not self.workers and self.swept_at is None

    @property
    def beat_silent(self) -> bool:
        """No sweep for so long that beat, or every worker, must be away."""
        return self.swept_at is None or abs(datetime.now(UTC) - self.swept_at) > SWEEP_LATE


NO_PULSE = Pulse([], None, 0)


def worker_lives(client: Redis, name: str) -> None:
    """Note that a worker is alive; forget those that have long been gone."""
    now = server_time(client)
    client.zadd(WORKERS, {name: now})
    client.zremrangebyscore(WORKERS, 0, now - FORGOTTEN.total_seconds())


def swept(client: Redis) -> None:
    """Note that the sweep has run."""
    client.set(SWEPT, server_time(client))


def may_send_tick(client: Redis, queue: str, task: str) -> bool:
    """Note that a tick of a task is to be sent; False if no worker has begun the one before."""
    key, ttl_s = TICK.format(queue=queue, task=task), int(TICK_TTL.total_seconds())
    return bool(client.set(key, 1, nx=True, ex=ttl_s))


def tick_begun(client: Redis, queue: str, task: str) -> None:
    """Note that a worker has begun a tick of a task."""
    client.delete(TICK.format(queue=queue, task=task))


def read_pulse(client: Redis, waiting: int | None) -> Pulse:
    """Read the signs of life; `waiting` counts the messages in the queue, as far as is known.

    A time far in the future was written before Redis' clock was set back. It counts as old.
    """
    now, fresh_s = server_time(client), FRESH.total_seconds()
    workers = cast("list[str]", client.zrangebyscore(WORKERS, now - fresh_s, now + fresh_s))
    last = cast("str | None", client.get(SWEPT))
    swept_at = datetime.now(UTC) - timedelta(seconds=now - float(last)) if last else None
    return Pulse(workers, swept_at, waiting, read_pauses(client))
