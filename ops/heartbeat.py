"""The heartbeat of the running service, read for explanations and the board."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import redis

from core.db.connection import Conn
from core.probe import probe_redis
from core.servers.finding import Finding
from core.servers.identity import location
from core.servers.obstacles import read_only
from core.servers.postgres import changed_by_hand, schema_lacks
from core.servers.redis_client import connect_once
from core.servers.urls import is_redis, kind_and_path
from core.settings import Settings
from core.signs import heartbeat as core_heartbeat
from core.signs.beats import read_beats
from core.signs.heartbeat import NO_HEARTBEAT, Asked, Heartbeat
from core.signs.installation import Installation, Kind, detect
from core.signs.pauses import Outage, Pause, Server
from core.slots import Slots
from ops.queues import UNANSWERED, brief_connection, queue_lengths
from ops.redis_queues import lengths_on_redis, oldest_sent
from ops.wording import words_of

BROKER_S = 0.8  # for Redis as the broker
LOCK_S = 0.3  # for a lock that the probe meets; whoever holds it is found otherwise
ASKER = "this command"
HOLDS_BACK = "CLIENT PAUSE, as tools for a failover do"
NO_RIGHT, READ_ONLY = "42501", "25006"
NO_SCHEMA = {"42P01", "42703", "3F000"}  # no such table, column, schema
NO_RIGHT_IN_REDIS = "NoPermissionError"


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
        seen = read_heartbeat(client, broker_url, queues, waiting)
    except redis.RedisError:
        return NO_HEARTBEAT
    return replace(seen, oldest_sent=oldest, broker_error=error)


def read_heartbeat(
    client: redis.Redis, broker_url: str, queues: Sequence[str], waiting: int | None
) -> Heartbeat:
    """Read the signs of life of workers and beat. Raises redis.RedisError."""
    seen = core_heartbeat.read_heartbeat(client, waiting)
    broker = kind_and_path(broker_url)
    asked = Asked(queue=queues[-1], broker=broker, inner_queues=queues[:-1])
    return replace(seen, beats=read_beats(client, queues[-1]), asked=asked)


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
        found = schema_lacks(conn) or changed_by_hand()
    return replace(heartbeat, asked=replace(heartbeat.asked, obstacle=found))


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
