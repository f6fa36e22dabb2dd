"""How long the oldest message of each queue has waited, on a Redis broker.

Celery stamps no message. So a message counts from the `timestamp` of its event, which its sender
wrote; another one from the moment when it was first seen at the head of its queue. RabbitMQ shows
the head of a queue only to consumers.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from kombu import Connection

UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


class OldestMessages:
    """Looks at the head of each queue, and remembers since when it has been there."""

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = queues
        self._seen: dict[str, tuple[int, datetime]] = {}

    def seconds(self, broker: Connection) -> dict[str, float]:
        """Return the age by queue; 0: it is empty; nothing on another broker than Redis."""
        channel: Any = broker.default_channel  # Any: kombu's channels have no types
        if not hasattr(channel, "_q_for_pri"):
            return {}
        return {queue: max(self._ages(channel, queue), default=0.0) for queue in self._queues}

    def _ages(self, channel: Any, queue: str) -> Iterator[float]:  # Any: as above
        for priority in channel.priority_steps:
            key = str(channel._q_for_pri(queue, priority))
            message = cast("bytes | None", channel.client.lindex(key, -1))
            now, known = datetime.now(UTC), self._seen.pop(key, None)
            if message is None:
                continue
            since = known[1] if known and known[0] == hash(message) else now
            self._seen[key] = hash(message), since
            yield max(0.0, (now - min(since, sent_at(message) or since)).total_seconds())


def sent_at(message: bytes) -> datetime | None:
    """Read the `timestamp` of the event that a message carries; None: it has none."""
    try:
        _, kwargs, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
        return datetime.fromisoformat(kwargs["event"]["timestamp"]).astimezone(UTC)
    except (*UNREADABLE, OverflowError):
        return None
