"""How the service stands at this moment: what is in trouble, the counters, the throughput."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import cast

import redis
from psycopg_pool import ConnectionPool

from core import db, metrics
from core.checks import PAGE, CheckContext, Finding, Shared
from core.db.connection import Conn, Row
from core.explain import service_causes
from core.heartbeat import Heartbeat
from core.rules import RULES, Cause, Rule
from core.settings import Settings
from core.slots import Slots, connect_once
from ops import queries
from ops.heartbeat import read_signs

ASSIGNED = 'els_content_assignment_total{outcome="assigned"}'
PATIENCE_S = 3
NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass
class Sources:
    """What the pages read from."""

    settings: Settings
    pool: "ConnectionPool[Conn]"
    client: redis.Redis
    slots: Slots

    @classmethod
    def of(cls, settings: Settings, database_url: str, redis_url: str) -> "Sources":
        """Connect to the servers of these settings, when they are first asked."""
        client = connect_once(redis_url)
        return cls(settings, db.connect(database_url, checked=True), client, Slots(client))

    def connection(self) -> AbstractContextManager[Conn]:
        """Lend a connection; somebody waits for the page, so a missing one is told soon."""
        return self.pool.connection(timeout=PATIENCE_S)

    def pulse(self) -> Heartbeat:
        """Read the signs of life."""
        broker_url = self.settings.broker_url or self.settings.redis_url or ""
        return read_signs(self.client, broker_url, self.settings.queue)


@dataclass(frozen=True)
class Trouble:
    """A rule that a batch breaks."""

    rule: Rule
    finding: Finding


@dataclass(frozen=True)
class Troubles:
    """What breaks which rule, and when that was found."""

    at: datetime
    by_batch: dict[str, list[Trouble]]  # the batch longest in trouble first
    states: dict[str, str]  # of those that are registered
    more: bool  # a rule has more findings than one look takes


@dataclass(frozen=True)
class Overview:
    """One look at everything; `outages` keep every batch waiting."""

    counters: Row
    workers: int
    outages: list[Cause]
    troubles: Troubles

    @property
    def away(self) -> bool:
        """Redis does not answer."""
        return any(cause.code == "redis_unreachable" for cause in self.outages)


def look(sources: Sources, troubles: Troubles) -> Overview:
    """Look at everything but the rules; these take longer, and are asked beforehand."""
    error = _error_of(sources.client.ping)
    pulse = sources.pulse()
    with sources.connection() as conn:
        holder = db.sweep.holder(conn) if pulse.beat_silent else None
        return Overview(
            counters=queries.counters(conn),
            workers=len(pulse.workers),
            outages=list(service_causes({"error": error} if error else {}, pulse, holder)),
            troubles=troubles,
        )


def find_troubles(sources: Sources) -> Troubles:
    """Ask every rule about all batches; without Redis, those that do not need it.

    Some 50 ms of work, and up to a second after a flush of Redis, when many batches break one.
    """
    with sources.connection() as conn:
        look = CheckContext(conn, sources.slots, shared=Shared())
        return _troubles(conn, [(rule, rule.find(look) or []) for rule in RULES])


def _troubles(conn: Conn, found: list[tuple[Rule, list[Finding]]]) -> Troubles:
    by_batch = _by_batch(found)
    return Troubles(
        at=datetime.now(UTC),
        by_batch=by_batch,
        states=queries.states(conn, list(by_batch)),
        more=any(len(those) >= PAGE for _, those in found),
    )


def _error_of(ask: Callable[[], object]) -> str | None:
    try:
        ask()
    except redis.RedisError as error:
        return str(error)
    return None


def _by_batch(found: list[tuple[Rule, list[Finding]]]) -> dict[str, list[Trouble]]:
    """Gather what each batch breaks; the batches by how long they have been in trouble."""
    troubles: dict[str, list[Trouble]] = {}
    for rule, those in found:
        for finding in those:
            troubles.setdefault(finding.batch_id, []).append(Trouble(rule, finding))

    def since(batch_id: str) -> tuple[datetime, str]:
        return min(each.finding.since or NEVER for each in troubles[batch_id]), batch_id

    return {batch_id: troubles[batch_id] for batch_id in sorted(troubles, key=since)}


@dataclass
class Throughput:
    """Contents assigned, sampled from what the workers count; the last minute is kept."""

    span: timedelta = timedelta(minutes=1)
    samples: deque[tuple[datetime, float]] = field(default_factory=deque)

    def sample(self, client: redis.Redis, at: datetime) -> None:
        """Read the workers' sum. Raises redis.RedisError."""
        told = cast("str | None", client.hget(metrics.HASH, ASSIGNED))
        self.samples.append((at, float(told or 0)))
        while at - self.samples[0][0] > self.span:
            self.samples.popleft()

    @property
    def per_minute(self) -> int:
        """Count what was assigned in the last minute."""
        return round(sum(self._grown()))

    def rates(self, points: int) -> list[float]:
        """Tell how much was assigned in each of so many equal parts of the last minute."""
        parts = [0.0] * points
        if not self.samples:
            return parts
        end = self.samples[-1][0]
        for (at, _), grown in zip(list(self.samples)[1:], self._grown(), strict=True):
            part = points - 1 - int((end - at) / self.span * points)
            parts[max(part, 0)] += grown
        return parts

    def _grown(self) -> Iterator[float]:
        """Tell what came between each two samples; a sum that shrank began anew."""
        for (_, before), (_, after) in pairwise(self.samples):
            yield after - before if after >= before else after
