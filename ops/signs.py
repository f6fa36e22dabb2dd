"""What workers, beats and processes say of themselves in Redis, read for those who watch them.

`core/signs` has the keys, and what writes them. Each function raises redis.RedisError.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from redis import Redis

from core.signs import beats
from core.signs.heartbeat import FRESH, REMEMBERED, SIGN, STARTS
from core.signs.installation import Kind
from core.signs.pauses import PAUSES, Outage, Pause, server_time
from ops.redis_queues import as_bytes

NOT_OURS = (ValueError, TypeError, LookupError)  # says what another program has written
STALLED_AFTER = timedelta(seconds=10)  # a message takes milliseconds; a lock is given up after 10 s
PAUSE_FRESH_S = 30.0  # three times the longest pause between two probes
OFTEN = 3  # starts in `REMEMBERED`: its worker has ended twice, at least, and nobody stopped it


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
    by_itself: bool = False  # it has ended, and nobody stopped it
    error: str | None = None  # that ended it
    cancelled: tuple[str, ...] = ()  # queues that remote control has taken from it
    limited: Mapping[str, str] = field(default_factory=dict)  # tasks, each with its rate limit
    ignored: tuple[str, ...] = ()  # what a message asked of Celery beside its task, lately
    ignored_at: datetime | None = None
    # Each with `wrong`, `why` and the `step`, and mostly with its `severity`.
    broker_lacks: tuple[Mapping[str, str], ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)  # some that are not as by default
    log_full: bool = False  # its log goes to a pipe that nobody empties
    failed: str | None = None  # why it, or beat, could not start
    waits: Mapping[str, str] | None = None  # to start: what is `wrong`, `why`, and the `step`
    waits_since: datetime | None = None

    @property
    def fresh(self) -> bool:
        """Its worker lives, and nobody has stopped it."""
        return not (self.stopped or self.failed) and abs(datetime.now(UTC) - self.at) <= FRESH

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


def read_signs(client: Redis, workers: Iterable[str], now: float) -> dict[str, Sign]:
    """Read the signs of these workers; `now` is Redis' time."""
    names = list(workers)
    if not names:
        return {}
    keys = [SIGN.format(worker=name) for name in names]
    stored = cast("list[bytes | None]", as_bytes(client, "MGET", *keys))
    here = datetime.now(UTC)
    said = {name: _said(text) for name, text in zip(names, stored, strict=True)}
    signs: dict[str, Sign] = {}
    for name, those in said.items():
        with suppress(*NOT_OURS):
            signs |= {name: _sign(those, now, here)} if those else {}
    return signs


def _said(text: bytes | None) -> dict[str, Any]:  # Any: JSON
    """Read what a process has said; nothing, where another program has written that key."""
    with suppress(ValueError, RecursionError):
        said = json.loads(text or b"null")
        return said if isinstance(said, dict) and "at" in said else {}
    return {}


def _sign(said: dict[str, Any], now: float, here: datetime) -> Sign:  # Any: JSON
    """Read a sign, also one of another release, which may say less or more."""
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


def read_restarts(client: Redis, now: float) -> Mapping[str, Sequence[datetime]]:
    """Return the starts of each worker that has started often; `now` is Redis' time."""
    oldest = now - REMEMBERED.total_seconds()
    starts = cast("list[str]", client.zrangebyscore(STARTS, oldest, "+inf"))
    here = datetime.now(UTC)
    found: dict[str, list[datetime]] = {}
    for start in starts:
        at, _, worker = start.partition(" ")
        with suppress(*NOT_OURS):
            found.setdefault(worker, []).append(here - timedelta(seconds=now - float(at)))
    return {worker: those for worker, those in found.items() if len(those) >= OFTEN}


def read_pauses(client: Redis) -> list[Pause]:
    """List the pauses, the longest first."""
    rows = cast("Mapping[bytes, bytes]", as_bytes(client, "HGETALL", PAUSES))
    now = server_time(client)
    pauses = []
    for process, text in rows.items():
        row = _said(text)
        with suppress(*NOT_OURS):
            if now - row["at"] <= PAUSE_FRESH_S:
                outage = Outage(row["server"], row["error"], row.get("sqlstate"))
                name, since = process.decode(), datetime.fromtimestamp(row["since"], UTC)
                pauses.append(Pause(name, outage, since))
    return sorted(pauses, key=lambda pause: pause.since)


@dataclass(frozen=True)
class Beats:
    """The beats of a queue that have shown themselves of late, by name."""

    leader: str | None = None
    standing_by: Sequence[str] = ()
    gone: bool = False  # one was there, and none is now
    never_ends: str | None = None  # the key of a lease that does not end by itself, as each should

    def __str__(self) -> str:
        if self.leader is None:
            return "no beat leads"
        others = len(self.standing_by)
        standing_by = f"{others or 'none'} stand{'' if others > 1 else 's'} by"
        return f"beat {self.leader} leads, {standing_by}"


NO_BEATS = Beats()


def read_beats(client: Redis, queue: str) -> Beats:
    leader_key, all_key = beats.keys(queue)
    oldest = server_time(client) - beats.FORGOTTEN.total_seconds()
    with client.pipeline(transaction=False) as pipe:
        pipe.get(leader_key)
        pipe.zrangebyscore(all_key, oldest, "+inf")
        pipe.exists(all_key)
        pipe.ttl(leader_key)
        leader, those, known, ttl_s = cast("tuple[str | None, list[str], int, int]", pipe.execute())
    standing_by = [_host(each) for each in those if each != leader]
    gone = bool(known and not leader and not those)
    return Beats(leader and _host(leader), standing_by, gone, leader_key if ttl_s == -1 else None)


def _host(beat: str) -> str:
    """Return the host and process id in a beat's name, without its random end."""
    return beat.partition("#")[0]
