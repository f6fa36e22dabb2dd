"""Signs of life, in Redis: which workers run, when the sweep ran last, how much waits."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from redis import Redis

WORKERS = "els:workers"  # sorted set: worker -> time of its last sign of life, s
SWEPT = "els:swept_at"  # time of the last sweep, s
FRESH = timedelta(seconds=15)  # workers give a sign every 2 s
SWEEP_LATE = timedelta(seconds=60)  # the sweep runs every few seconds
FORGOTTEN = timedelta(hours=1)


@dataclass(frozen=True)
class Pulse:
    """What was seen of the running service."""

    workers: list[str]
    swept_at: datetime | None
    waiting: int | None  # messages in the queue; None: the broker does not answer

    @property
    def silent(self) -> bool:
        """No sign of life at all: nothing runs, or Redis was flushed a moment ago."""
        return not self.workers and self.swept_at is None

    @property
    def beat_silent(self) -> bool:
        """No sweep for so long that beat, or every worker, must be away."""
        return self.swept_at is None or datetime.now(UTC) - self.swept_at > SWEEP_LATE


NO_PULSE = Pulse([], None, 0)


def worker_lives(client: Redis, name: str) -> None:
    """Note that a worker is alive; forget those that have long been gone."""
    now = time.time()
    client.zadd(WORKERS, {name: now})
    client.zremrangebyscore(WORKERS, 0, now - FORGOTTEN.total_seconds())


def swept(client: Redis) -> None:
    """Note that the sweep has run."""
    client.set(SWEPT, time.time())


def read_pulse(client: Redis, waiting: int | None) -> Pulse:
    """Read the signs of life; `waiting` counts the messages in the queue, as far as is known."""
    since = time.time() - FRESH.total_seconds()
    workers = cast("list[str]", client.zrangebyscore(WORKERS, since, "+inf"))
    last = cast("str | None", client.get(SWEPT))
    return Pulse(workers, datetime.fromtimestamp(float(last), UTC) if last else None, waiting)
