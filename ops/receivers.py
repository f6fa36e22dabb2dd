"""Reads what waits for receivers, for explanations."""

import redis

from core.heartbeat import read_routes
from core.receivers import Receivers
from core.settings import Settings
from ops.queues import UNANSWERED, brief_connection, event_queues


def read_receivers(settings: Settings, client: redis.Redis, broker_url: str) -> Receivers:
    """Look at each queue of a receiver; at none where the broker is away, which is a cause too.

    The routes are those of the workers, else those of the settings.
    """
    routed = settings.routed_as(read_routes(client, settings.queue))
    try:
        with brief_connection(broker_url) as broker:
            queues = event_queues(broker, routed.event_queues())
    except UNANSWERED:
        queues = []
    return Receivers(queues, routed.events_to_nobody())
