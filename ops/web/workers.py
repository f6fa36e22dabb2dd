"""What the page of workers and queues shows."""

from dataclasses import dataclass
from typing import Any

from core.signs.pauses import Pause
from ops.heartbeat import Heartbeat
from ops.queues import UNANSWERED, brief_connection, queue_lengths
from ops.signs import Sign
from ops.web.connections import Connections


@dataclass(frozen=True)
class WorkerSeen:
    """A worker that is alive, its signs, and what its processes wait for.

    `sign` None: a worker of an older release tells nothing.
    """

    name: str
    sign: Sign | None
    pauses: list[Pause]


def workers(connections: Connections) -> dict[str, Any]:  # Any: what a template shows
    heartbeat = connections.heartbeat()
    return {
        "workers": _seen(heartbeat),
        "pauses": heartbeat.pauses,
        "beats": heartbeat.beats,
        "swept_at": heartbeat.swept_at,
        "queues": _lengths(connections),
        "upstream": connections.settings.queue,
        "oldest_sent": heartbeat.oldest_sent,
        "receivers": connections.event_queues.receivers().queues,
    }


def _seen(heartbeat: Heartbeat) -> list[WorkerSeen]:
    return [
        WorkerSeen(
            name,
            heartbeat.signs.get(name),
            [each for each in heartbeat.pauses if each.process.startswith(name)],
        )
        for name in sorted(heartbeat.workers)
    ]


def _lengths(connections: Connections) -> dict[str, int] | None:
    """Count what waits in the service's own queues; None: the broker does not answer."""
    settings = connections.settings
    try:
        with brief_connection(settings.broker_or_redis_url) as broker:
            return queue_lengths(broker, settings.queues)
    except UNANSWERED:
        return None
