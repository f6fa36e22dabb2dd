"""The queues of the receivers, as all pages of this process see them: one look a second at most."""

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock

import redis

from core import metrics
from core.settings import Settings
from ops.queues import EventQueue
from ops.receivers import Receivers, read_receivers

FRESH_S = 1.0
MARKS = 2_000  # of a queue; a longer history gets coarser, its oldest part first


class OldestEvent:
    """Estimates the age of the oldest event of a queue, where the broker does not show it.

    Receivers take events in the order of their publication. So if 100 were published and 3 wait,
    the oldest is the 98th: it came when the count reached 98.
    """

    def __init__(self) -> None:
        self._times: list[float] = []  # of the looks since the queue was seen empty
        self._counts: list[float] = []  # published until then

    def seconds(self, now: float, messages: int, published: float) -> float:
        """Return the age, at most since the queue was first seen not to be empty; 0: it is."""
        restarted = bool(self._counts) and published < self._counts[-1]  # Redis was flushed
        if not messages or restarted:
            self._times, self._counts = [], []
        if not messages:
            return 0.0
        self._times.append(now)
        self._counts.append(published)
        self._thin_out()
        return now - self._times[bisect_right(self._counts, published - messages)]

    def _thin_out(self) -> None:
        if len(self._times) > MARKS:
            half = MARKS // 2
            self._times = [*self._times[:half:2], *self._times[half:]]
            self._counts = [*self._counts[:half:2], *self._counts[half:]]


class EventQueues:
    """Looks at the queues of the receivers, and keeps what it saw for a second."""

    def __init__(
        self, settings: Settings, client: redis.Redis, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._client, self._clock = settings, client, clock
        self._nowhere: frozenset[str] = frozenset()
        self._oldest: defaultdict[str, OldestEvent] = defaultdict(OldestEvent)
        self._looking = Lock()
        self._looked_at = -FRESH_S
        self._seen: list[EventQueue] | None = None

    def look(self) -> Sequence[EventQueue]:
        """Return the queues as of a second ago. Raises OSError where the broker does not answer."""
        with self._looking:
            if self._clock() - self._looked_at >= FRESH_S:
                self._seen = self._look()
                self._looked_at = self._clock()
        if self._seen is None:
            raise ConnectionError("the broker does not answer for the queues of the receivers")
        return self._seen

    def receivers(self) -> Receivers:
        """Return what is known; no queues where the broker is away, which is a cause of its own."""
        try:
            queues = self.look()
        except OSError:
            queues = ()
        return Receivers(queues, self._nowhere)

    def _look(self) -> list[EventQueue] | None:
        url = self._settings.broker_or_redis_url
        seen = read_receivers(self._settings, self._client, url)
        self._nowhere = seen.nowhere
        return [self._with_age(queue) for queue in seen.queues] if seen.answered else None

    def _with_age(self, queue: EventQueue) -> EventQueue:
        if queue.oldest_s is not None:
            return queue
        fields = [f'els_events_published_total{{type="{each}"}}' for each in queue.types]
        counted = self._client.hmget(metrics.HASH, fields)
        published = sum(float(count or 0) for count in counted)
        age_s = self._oldest[queue.name].seconds(self._clock(), queue.messages, published)
        return replace(queue, oldest_s=age_s)
