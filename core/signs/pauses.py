"""Processes that wait for a server which refuses writes. Each notes its pause in Redis.

A process renews its note at each probe, every 10 s at most.
"""

import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Literal

from redis import Redis

from core.faults import clean, sqlstate

Server = Literal["postgres", "redis", "broker"]
PAUSES = "els:pauses"  # hash: process -> what it waits for, as JSON
EXPIRY = timedelta(minutes=5)


@dataclass(frozen=True)
class Outage:
    """A server that does not take writes, and its error in its own words."""

    server: Server
    error: str
    sqlstate: str | None = None

    @classmethod
    def of(cls, server: Server, error: Exception) -> "Outage":
        """Describe an error of a probe in one line; it can quote only the probe's own rows."""
        text = " ".join(clean(str(error)).split())
        return cls(server, f"{type(error).__name__}: {text}"[:500], sqlstate(error))


@dataclass(frozen=True)
class Pause:
    """A process of a worker that takes no messages until an outage ends."""

    process: str
    outage: Outage
    since: datetime

    def as_json(self) -> dict[str, str | None]:
        return {"process": self.process, **asdict(self.outage), "since": self.since.isoformat()}


def write_pause(client: Redis, pause: Pause) -> None:
    """Note or renew a pause. Raises redis.RedisError."""
    row = {**asdict(pause.outage), "since": pause.since.timestamp(), "at": server_time(client)}
    client.hset(PAUSES, pause.process, json.dumps(row))
    client.expire(PAUSES, EXPIRY)  # with the notes of processes that were killed


def delete_pause(client: Redis, process: str) -> None:
    """Note that a process takes messages again. Raises redis.RedisError."""
    client.hdel(PAUSES, process)


def server_time(client: Redis) -> float:
    """Return the time by Redis' clock, in seconds. Raises redis.RedisError."""
    seconds, microseconds = client.time()
    return seconds + microseconds / 1_000_000
