"""The signs of life of the running service, read for explanations and the board."""

from dataclasses import replace
from datetime import UTC, datetime

import redis

from core.db.connection import Conn
from core.heartbeat import NO_HEARTBEAT, Heartbeat, read_heartbeat
from core.pauses import Pause
from core.probe import probe_postgres, probe_redis
from core.slots import Slots, connect_once

NO_RIGHT = "42501"


def read_signs(client: redis.Redis, broker_url: str, queue: str) -> Heartbeat:
    """Read the signs of life; none where Redis does not answer, which has a cause of its own."""
    waiting: int | None = 0
    if broker_url.startswith("redis"):
        try:
            with connect_once(broker_url) as broker:
                waiting = int(str(broker.llen(queue)))
        except redis.RedisError:
            waiting = None  # the broker does not answer, which is told
    try:
        return read_heartbeat(client, waiting)
    except redis.RedisError:
        return NO_HEARTBEAT


def with_own_probe(pulse: Heartbeat, conn: Conn, slots: Slots) -> Heartbeat:
    """Add what a probe from here finds: it may be that no worker has met the refusal yet.

    Without the right to write, the probe knows nothing.
    """
    outage = probe_postgres(conn) or probe_redis(slots)
    if outage is None or outage.sqlstate == NO_RIGHT:
        return pulse
    pause = Pause("this command", outage, datetime.now(UTC))
    return replace(pulse, pauses=[*pulse.pauses, pause])
