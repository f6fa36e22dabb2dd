"""Signs of a worker, written every 2 s: its queues, its database, and what it executes.

A sign stays for a day after its worker's last one, so that an explanation can say who was here and
how it ran. Workers of older releases give none: then nothing is known of them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from redis import Redis

from core.signs.installation import Kind

SIGN = "els:sign:{worker}"  # JSON of `Sign`; moments are seconds by Redis' clock
KEPT = timedelta(days=1)
STALLED_AFTER = timedelta(seconds=10)  # a message takes milliseconds; a lock is given up after 10 s


@dataclass(frozen=True)
class Sign:
    """One worker, as it has shown itself last. All moments are by the clock of this host."""

    at: datetime
    queues: tuple[str, ...] = ()
    database: str | None = None  # identity, to compare; None: unknown
    database_name: str | None = None  # for people
    broker: str | None = None  # its kind, and its database or virtual host
    host: str | None = None
    pid: int | None = None
    version: str | None = None
    installation: Kind = Kind.COMMAND
    home: str | None = None
    held: int = 0  # messages
    task: str | None = None  # of the message that it executes for longest
    task_pid: int | None = None
    began_at: datetime | None = None
    progress_at: datetime | None = None  # a process began or ended a message, or nothing was held
    stopped: bool = False  # in order
    cancelled: tuple[str, ...] = ()  # queues that remote control has taken from it
    limited: Mapping[str, str] = field(default_factory=dict)  # tasks, each with its rate limit
    ignored: tuple[str, ...] = ()  # what a message asked of Celery beside its task, lately
    ignored_at: datetime | None = None
    broker_lacks: tuple[Mapping[str, str], ...] = ()  # each with `wrong`, `why`, and the `step`
    waits: Mapping[str, str] | None = None  # to start: what is `wrong`, `why`, and the `step`
    waits_since: datetime | None = None

    @property
    def stalled_since(self) -> datetime | None:
        """Since when a process of this worker has not moved; None: they all do."""
        limit = self.at - STALLED_AFTER
        if self.began_at and self.began_at < limit:
            return self.began_at
        if self.held and self.progress_at and self.progress_at < limit:
            return self.progress_at
        return None


MOMENTS = ("at", "began_at", "progress_at", "waits_since", "ignored_at")
LISTS = ("queues", "cancelled", "ignored", "broker_lacks")
NAMES = {each.name for each in fields(Sign)}


def write_sign(client: Redis, worker: str, sign: Mapping[str, Any]) -> None:  # Any: JSON
    """Write a sign; its moments are seconds by Redis' clock. Raises redis.RedisError."""
    client.set(SIGN.format(worker=worker), json.dumps(sign), ex=KEPT)


def read_signs(client: Redis, workers: Iterable[str], now: float) -> dict[str, Sign]:
    """Read the signs of these workers; `now` is Redis' time. Raises redis.RedisError."""
    names = list(workers)
    if not names:
        return {}
    stored = cast("list[str | None]", client.mget([SIGN.format(worker=name) for name in names]))
    here = datetime.now(UTC)
    return {
        name: _sign(json.loads(text), now, here)
        for name, text in zip(names, stored, strict=True)
        if text
    }


def _sign(said: dict[str, Any], now: float, here: datetime) -> Sign:  # Any: JSON
    """Read a sign, also one of a newer release, which may say more."""
    known = {name: value for name, value in said.items() if name in NAMES}
    moments = {
        name: here - timedelta(seconds=now - known[name])
        for name in MOMENTS
        if known.get(name) is not None
    }
    kind = known.get("installation")
    installation = Kind(kind) if kind in set(Kind) else Kind.COMMAND
    lists = {name: tuple(known[name]) for name in LISTS if name in known}
    return Sign(**{**known, **moments, **lists, "installation": installation})
