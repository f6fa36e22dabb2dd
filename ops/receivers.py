"""Reads what waits for receivers, for explanations."""

import redis
from kombu.exceptions import OperationalError

from core.receivers import Receivers
from core.settings import Settings
from ops.queues import brief_connection, event_queues


def read_receivers(settings: Settings, broker_url: str) -> Receivers:
    """Look at each queue of a receiver; at none where the broker is away, which is a cause too."""
    try:
        with brief_connection(broker_url) as broker:
            queues = event_queues(broker, settings.event_queues())
    except (OperationalError, OSError, redis.RedisError):
        queues = []
    return Receivers(queues, settings.events_to_nobody())
