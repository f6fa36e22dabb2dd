"""The queues of the receivers: where events go, and what waits there."""

from collections.abc import Sequence
from dataclasses import dataclass

import redis

from core.settings import Settings
from ops.queues import UNANSWERED, EventQueue, brief_connection, event_queues
from ops.routing import read_routes, routed_as, types_by_queue, types_to_nobody


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
    routed = routed_as(settings, read_routes(client, settings.queue))
    nowhere = types_to_nobody(routed)
    try:
        with brief_connection(broker_url) as broker:
            return Receivers(event_queues(broker, types_by_queue(routed)), nowhere)
    except UNANSWERED:
        return Receivers((), nowhere, answered=False)
