"""The heartbeat of the running service, read for explanations and the board."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import redis

from core.db.connection import Conn
from core.probe import probe_redis
from core.servers.finding import Finding, Severity
from core.servers.identity import location
from core.servers.obstacles import read_only
from core.servers.redis_client import connect_once
from core.servers.rights import NO_RIGHT
from core.servers.urls import is_redis, kind_and_path
from core.settings import Settings
from core.signs.heartbeat import SINCE, SWEPT, TICK, WORKERS, live_workers
from core.signs.installation import Kind, detect
from core.signs.pauses import Outage, Pause, Server, server_time
from core.slots import Slots
from ops.by_hand import lacking_rights, of_others, short_limits, trigger_raised, what_lacks
from ops.installation import Installation
from ops.queues import UNANSWERED, brief_connection, queue_lengths
from ops.redis_queues import as_bytes, lengths_on_redis, oldest_sent
from ops.signs import NO_BEATS, Beats, Sign, read_beats, read_pauses, read_restarts, read_signs
from ops.wording import words_of

SWEEP = "els.sweep"  # the task that beat sends
SWEEP_LATE = timedelta(seconds=60)  # the sweep runs every few seconds
BEAT_GONE = timedelta(seconds=10)  # the same without a beat, whose last tick may have run after it
BROKER_S = 0.8  # for Redis as the broker
LOCK_S = 0.3  # for a lock that the probe meets; whoever holds it is found otherwise
CALM = timedelta(minutes=1)  # a worker that runs for so long does not end again and again
ASKER = "this command"
HOLDS_BACK = "CLIENT PAUSE, as tools for a failover do"
READ_ONLY = "25006"
NO_SCHEMA = {"42P01", "42703", "3F000"}  # no such table, column, schema
CUT_SHORT = {"57014", "25P03", "25P04", "57P05"}  # a limit of time ended a statement or a session
OF_SERVER = ("53", "57P")  # it lacks resources, or somebody ended a session
NO_RIGHT_IN_REDIS = "NoPermissionError"


@dataclass(frozen=True)
class Asked:
    """Who asks: the queue, the servers and the way of running that it knows. None: unknown."""

    queue: str | None = None
    database: str | None = None  # identity, to compare with that of a sign
    database_name: str | None = None
    broker: str | None = None
    installation: Installation = field(default_factory=Installation)
    inner_queues: Sequence[str] = ()  # of the steps of the service itself
    took_writes: frozenset[Server] = frozenset()  # servers that took a write of his just now
    obstacle: Finding | None = None  # why Postgres is read-only, where a process waits for that


@dataclass(frozen=True)
class Heartbeat:
    """What the running service has shown of itself."""

    workers: list[str]
    swept_at: datetime | None  # by the clock of this host
    waiting: int | None  # messages in the queue; None: the broker does not answer
    pauses: Sequence[Pause] = ()  # processes that wait for a server which refuses
    beats: Beats = NO_BEATS
    tick_waits: bool = True  # beat has sent a tick of the sweep that no worker has begun
    signs: Mapping[str, Sign] = field(default_factory=dict)  # by worker, also of those gone
    asked: Asked = field(default_factory=Asked)
    oldest_sent: datetime | None = None  # the oldest message in the queue; None: unknown
    broker_error: str | None = None  # where the broker does not answer, if it is known
    consumers: int | None = None  # of the queue; on Redis of the broker. None: it does not say
    since: datetime | None = None  # when the first sign came to this Redis, since it was empty
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)  # Celery workers that remote
    # control has found to take from our queues: by name, those queues
    restarts: Mapping[str, Sequence[datetime]] = field(default_factory=dict)  # starts of workers
    # that have started often of late, and that nobody stopped

    @property
    def silent(self) -> bool:
        """Nothing runs, or Redis was flushed a moment ago."""
        return not self.workers and self.swept_at is None

    @property
    def beat_silent(self) -> bool:
        """No sweep has run for so long that beat, or every worker, must be away.

        Where a beat was there and gives no sign of life either, that is known sooner.
        """
        if self.swept_at is None:
            return True
        patience = BEAT_GONE if self.beats.gone else SWEEP_LATE
        return abs(datetime.now(UTC) - self.swept_at) > patience

    def restarting(self) -> Mapping[str, Sequence[datetime]]:
        """Return the starts of each worker that ends again and again, unless it runs by now."""
        last_calm = datetime.now(UTC) - CALM
        return {
            worker: starts
            for worker, starts in self.restarts.items()
            if starts[-1] > last_calm or not (sign := self.signs.get(worker)) or not sign.fresh
        }

    def broker_lacks(self, severity: Severity) -> list[Mapping[str, str]]:
        """Return what the workers have found to be wrong with RabbitMQ, each once."""
        signs = [self.signs[name] for name in self.workers if name in self.signs]
        found = {each["wrong"]: each for sign in signs for each in sign.broker_lacks}
        warning = Severity.WARNING  # older releases know no other
        return [each for each in found.values() if each.get("severity", warning) == severity]

    def in_work(self) -> tuple[int, float]:
        """Return how many messages the workers hold, and how long they execute the oldest, s."""
        signs = [self.signs[name] for name in self.workers if name in self.signs]
        began = [sign.began_at for sign in signs if sign.began_at]
        oldest_s = (datetime.now(UTC) - min(began)).total_seconds() if began else 0.0
        return sum(sign.held for sign in signs), max(0.0, oldest_s)


NO_HEARTBEAT = Heartbeat([], None, 0)


def heartbeat_or_none(client: redis.Redis, broker_url: str, queues: Sequence[str]) -> Heartbeat:
    """Read the heartbeat; an empty one where Redis does not answer, which has its own cause."""
    error: str | None = None
    waiting: int | None = None
    oldest: datetime | None = None
    try:
        waiting, oldest = ask_waiting(broker_url, queues)
    except UNANSWERED as raised:
        error = words_of(raised)
    try:
        seen = heartbeat_of_queues(client, broker_url, queues, waiting)
    except redis.RedisError:
        return NO_HEARTBEAT
    return replace(seen, oldest_sent=oldest, broker_error=error)


def read_heartbeat(client: redis.Redis, waiting: int | None) -> Heartbeat:
    """Read what workers and the sweep have noted. Raises redis.RedisError.

    `waiting` is the number of messages in the queue; None: unknown.
    """
    now = server_time(client)
    swept_at, since = (
        datetime.now(UTC) - timedelta(seconds=now - at) if at else None
        for at in map(_number, cast("list[bytes | None]", as_bytes(client, "MGET", SWEPT, SINCE)))
    )
    everybody = cast("list[str]", client.zrange(WORKERS, 0, -1))
    return Heartbeat(
        live_workers(client, now),
        swept_at,
        waiting,
        read_pauses(client),
        signs=read_signs(client, everybody, now),
        since=since,
        restarts=read_restarts(client, now),
    )


def _number(written: bytes | None) -> float | None:
    """Read a moment; None: it is not there, or another program has written its key."""
    with suppress(ValueError):
        return float(written) if written else None
    return None


def heartbeat_of_queues(
    client: redis.Redis, broker_url: str, queues: Sequence[str], waiting: int | None
) -> Heartbeat:
    """Read the heartbeats, and the beats of these queues. Raises redis.RedisError."""
    seen = read_heartbeat(client, waiting)
    broker = kind_and_path(broker_url)
    asked = Asked(queue=queues[-1], broker=broker, inner_queues=queues[:-1])
    tick = client.exists(TICK.format(queue=queues[-1], task=SWEEP))
    beats = read_beats(client, queues[-1])
    return replace(seen, beats=beats, tick_waits=bool(tick), asked=asked)


def ask_waiting(broker_url: str, queues: Sequence[str]) -> tuple[int, datetime | None]:
    """Count the messages that wait; tell when the oldest of the last queue was sent, if it shows.

    Raises one of UNANSWERED.
    """
    if not is_redis(broker_url):
        return _count_by_kombu(broker_url, queues), None
    with connect_once(broker_url, timeout_s=BROKER_S) as client:
        waiting = sum(lengths_on_redis(client, queues).values())
        return waiting, oldest_sent(client, queues[-1]) if waiting else None


def _count_by_kombu(broker_url: str, queues: Sequence[str]) -> int:
    with brief_connection(broker_url) as broker:
        return sum(queue_lengths(broker, queues).values())


def with_asker(
    heartbeat: Heartbeat,
    settings: Settings,
    database_url: str,
    database: str | None,
    *,
    up: bool = False,
) -> Heartbeat:
    """Add who asks, to be compared with what the workers tell.

    `database`: its identity. `up`: an `els run` of this home lives.
    """
    asked = replace(
        heartbeat.asked,
        database=database,
        database_name=location(database_url),
        installation=_installation(heartbeat, settings, up=up),
    )
    return replace(heartbeat, asked=asked)


def _installation(heartbeat: Heartbeat, settings: Settings, *, up: bool) -> Installation:
    """Tell how the service runs: as its last worker has said, else as we run ourselves."""
    home = str(settings.home.absolute())
    if up:
        return Installation(Kind.ELS_RUN, home, up=True)
    last = max(heartbeat.signs.values(), key=lambda sign: sign.at, default=None)
    if last is not None:
        return Installation(last.installation, last.home or home)
    kind = detect(Path(home))
    embedded = not settings.database_url and not settings.redis_url
    return Installation(Kind.ELS_RUN if kind is Kind.COMMAND and embedded else kind, home)


def with_obstacle(heartbeat: Heartbeat, conn: Conn) -> Heartbeat:
    """Add why Postgres is read-only, or what its schema lacks, where a process waits for that.

    Raises psycopg.Error.
    """
    states = {pause.outage.sqlstate for pause in heartbeat.pauses}
    found: Finding | None = None
    if READ_ONLY in states:
        found = read_only(conn, own=False)
        heartbeat = heartbeat if found else _without_ours(heartbeat)
    elif not states.isdisjoint(NO_SCHEMA) and "postgres" not in heartbeat.asked.took_writes:
        found = what_lacks(conn)
    elif NO_RIGHT in states:
        found = lacking_rights(conn)
    elif not states.isdisjoint(CUT_SHORT):
        found = short_limits(conn)
    found = _trigger(heartbeat, conn) or found or _of_others(heartbeat, conn)
    return replace(heartbeat, asked=replace(heartbeat.asked, obstacle=found))


def _trigger(heartbeat: Heartbeat, conn: Conn) -> Finding | None:
    outages = [each.outage for each in heartbeat.pauses if each.outage.server == "postgres"]
    found = (trigger_raised(conn, each.error) for each in outages if not _is_of_server(each))
    return next(filter(None, found), None)


def _of_others(heartbeat: Heartbeat, conn: Conn) -> Finding | None:
    found = (of_others(conn, each.outage.error) for each in heartbeat.pauses)
    return next(filter(None, found), None)


def _is_of_server(outage: Outage) -> bool:
    """Tell whether memory, a disk or a limit is the cause, wherever a statement has met it."""
    return (outage.sqlstate or "").startswith(OF_SERVER)


def with_outages(
    heartbeat: Heartbeat, outages: Sequence[Outage], *, tried: Server | None = None
) -> Heartbeat:
    """Add outages that somebody has met here, unless it is a right that only he lacks.

    `tried`: he has written to this server; then processes that wait for it will soon go on, or have
    an outage of their own.
    """
    own = [each for each in outages if not _is_a_right_of_ours(each)]
    pauses = [*heartbeat.pauses, *(Pause(ASKER, each, datetime.now(UTC)) for each in own)]
    asked = heartbeat.asked
    if tried and not outages:
        asked = replace(asked, took_writes=asked.took_writes | {tried})
    return replace(heartbeat, pauses=pauses, asked=asked)


def redis_outage(client: redis.Redis) -> Outage | None:
    """Write to Redis; None: all is well. Tell a server that holds writes back from a silent one."""
    outage = probe_redis(Slots(client))
    if outage is None or not outage.error.startswith(redis.TimeoutError.__name__):
        return outage
    try:
        client.ping()
    except redis.RedisError:
        return outage
    return replace(outage, error=f"it answers, and holds writes back: {HOLDS_BACK}")


def _without_ours(heartbeat: Heartbeat) -> Heartbeat:
    """Drop that the role of whoever asks is read-only: a role for readers is so on purpose."""
    others = [
        each
        for each in heartbeat.pauses
        if each.process != ASKER or each.outage.sqlstate != READ_ONLY
    ]
    return replace(heartbeat, pauses=others)


def _is_a_right_of_ours(outage: Outage) -> bool:
    return outage.sqlstate == NO_RIGHT or outage.error.startswith(NO_RIGHT_IN_REDIS)
