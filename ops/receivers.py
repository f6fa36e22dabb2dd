"""The queues of the receivers: where events go, and what waits there."""

from collections.abc import Sequence
from dataclasses import dataclass

import redis

from core.settings import Settings
from core.signs.heartbeat import read_routes
from ops.queues import UNANSWERED, EventQueue, brief_connection, event_queues


@dataclass(frozen=True)
class Receivers:
    """Where events go: the queues that they are routed to, and the types that no route leads on."""

    queues: Sequence[EventQueue] = ()
    nowhere: frozenset[str] = frozenset()
    answered: bool = True  # False: the broker did not


NO_RECEIVERS = Receivers()


def read_receivers(settings: Settings, client: redis.Redis, broker_url: str) -> Receivers:
    """Look at each queue that events are routed to; at none where the broker does not answer.

    The routes are those of the workers, else those of the settings.
    """
    routed = settings.routed_as(read_routes(client, settings.queue))
    nowhere = routed.events_to_nobody()
    try:
        with brief_connection(broker_url) as broker:
            return Receivers(event_queues(broker, routed.event_queues()), nowhere)
    except UNANSWERED:
        return Receivers((), nowhere, answered=False)
