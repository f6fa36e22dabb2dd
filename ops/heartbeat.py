"""The heartbeat of the running service, read for explanations and the board."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import redis
from kombu.exceptions import OperationalError

from core import heartbeat as core_heartbeat
from core.beats import read_beats
from core.db.connection import Conn
from core.heartbeat import NO_HEARTBEAT, Heartbeat
from core.pauses import Pause
from core.probe import probe_postgres, probe_redis
from core.slots import Slots
from ops.queues import brief_connection, queue_lengths

NO_RIGHT = "42501"


def read_heartbeat(client: redis.Redis, broker_url: str, queues: Sequence[str]) -> Heartbeat:
    """Read the heartbeat; an empty one where Redis does not answer, which has its own cause."""
    try:
        seen = core_heartbeat.read_heartbeat(client, _waiting(broker_url, queues))
        return replace(seen, beats=read_beats(client, queues[-1]))
    except redis.RedisError:
        return NO_HEARTBEAT


def _waiting(broker_url: str, queues: Sequence[str]) -> int | None:
    """Count the messages that wait; None if the broker does not answer."""
    try:
        with brief_connection(broker_url) as broker:
            return sum(queue_lengths(broker, queues).values())
    except (OperationalError, OSError, redis.RedisError):
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
