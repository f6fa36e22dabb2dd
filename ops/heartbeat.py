"""The heartbeat of the running service, read for explanations and the board."""

from dataclasses import replace
from datetime import UTC, datetime

import redis

from core import heartbeat as core_heartbeat
from core.beats import read_beats
from core.db.connection import Conn
from core.heartbeat import NO_HEARTBEAT, Heartbeat
from core.pauses import Pause
from core.probe import probe_postgres, probe_redis
from core.slots import Slots, connect_once

NO_RIGHT = "42501"


def read_heartbeat(client: redis.Redis, broker_url: str, queue: str) -> Heartbeat:
    """Read the heartbeat; an empty one where Redis does not answer, which has its own cause."""
    try:
        seen = core_heartbeat.read_heartbeat(client, _queue_length(broker_url, queue))
        return replace(seen, beats=read_beats(client, queue))
    except redis.RedisError:
        return NO_HEARTBEAT


def _queue_length(broker_url: str, queue: str) -> int | None:
    """Count the waiting messages; None if the broker does not answer, 0 on RabbitMQ."""
    if not broker_url.startswith("redis"):
        return 0
    try:
        with connect_once(broker_url) as broker:
            return int(str(broker.llen(queue)))
    except redis.RedisError:
        return None


def with_own_probe(heartbeat: Heartbeat, conn: Conn, slots: Slots) -> Heartbeat:
    """Add the outage that a probe from here finds: perhaps no worker has met it yet.

    A probe without the right to write says nothing about the server.
    """
    outage = probe_postgres(conn) or probe_redis(slots)
    if outage is None or outage.sqlstate == NO_RIGHT:
        return heartbeat
    pause = Pause("this command", outage, datetime.now(UTC))
    return replace(heartbeat, pauses=[*heartbeat.pauses, pause])
