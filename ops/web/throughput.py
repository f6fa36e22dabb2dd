"""How many contents the workers assigned in the last minute."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import cast

import redis

from core import metrics


@dataclass
class Throughput:
    """Samples of the workers' counter over the last minute."""

    span: timedelta = timedelta(minutes=1)
    samples: deque[tuple[datetime, float]] = field(default_factory=deque)

    def sample(self, client: redis.Redis, at: datetime) -> None:
        """Read the workers' counter. Raises redis.RedisError."""
        count = cast("str | None", client.hget(metrics.HASH, metrics.ASSIGNED))
        self.samples.append((at, float(count or 0)))
        while at - self.samples[0][0] > self.span:
            self.samples.popleft()

    @property
    def per_minute(self) -> int:
        return round(sum(self._increments()))

    def rates(self, points: int) -> list[float]:
        """Count the contents of the last minute in this many equal intervals, oldest first."""
        parts = [0.0] * points
        if not self.samples:
            return parts
        end = self.samples[-1][0]
        for (at, _), increment in zip(list(self.samples)[1:], self._increments(), strict=True):
            part = points - 1 - int((end - at) / self.span * points)
            parts[max(part, 0)] += increment
        return parts

    def _increments(self) -> Iterator[float]:
        """Return the growth between samples; a counter that shrank was reset to 0."""
        for (_, before), (_, after) in pairwise(self.samples):
            yield after - before if after >= before else after
