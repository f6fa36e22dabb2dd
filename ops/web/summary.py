"""The service at one moment: the counters, the outages, and which batches are stuck."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
import redis

from core.checks import PAGE, CheckContext, Finding
from core.db.connection import Conn, Row
from core.rules import Rule
from core.servers.obstacles import hidden_rows
from ops.alarms import all_rules
from ops.explain.causes import CAUSES, Cause
from ops.explain.locks import locks, standby_awaited
from ops.explain.receiver_causes import PATIENCE
from ops.explain.service_causes import service_causes
from ops.heartbeat import Heartbeat, with_obstacle, with_outages
from ops.installation import command
from ops.queries import batches, numbers, sweep
from ops.queues import EventQueue
from ops.web.connections import Connections

NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Violation:
    """A rule that a batch violates."""

    rule: Rule
    finding: Finding

    @property
    def cause(self) -> Cause:
        return CAUSES[self.rule.code]


@dataclass(frozen=True)
class StuckBatches:
    at: datetime  # when the rules were checked
    violations: dict[str, list[Violation]]  # by batch; the one stuck longest comes first
    states: dict[str, str]  # by batch, of those that are registered
    more: bool  # a rule has more findings than one check returns


@dataclass(frozen=True)
class Summary:
    """What the top of every page shows; an outage keeps every batch waiting."""

    counters: Row
    workers: int
    outages: list[Cause]
    stuck: StuckBatches
    event_queues: Sequence[EventQueue] = ()

    @property
    def events_not_taken(self) -> int:
        """The events that wait in the queues of the receivers."""
        return sum(queue.messages for queue in self.event_queues)

    @property
    def late_receivers(self) -> list[str]:
        """The queues in which an event waits for longer than a receiver needs."""
        late_s = PATIENCE.total_seconds()
        return [each.name for each in self.event_queues if (each.oldest_s or 0) > late_s]

    @property
    def redis_unreachable(self) -> bool:
        return any(cause.code == "redis_unreachable" for cause in self.outages)


def read_summary(connections: Connections, stuck: StuckBatches) -> Summary:
    """Read everything except the rules, which take longer: see `find_stuck`."""
    heartbeat = connections.heartbeat()
    outages = _outages(connections, heartbeat)
    with connections.postgres() as conn:
        return Summary(
            counters=numbers.counters(conn),
            workers=len(heartbeat.workers),
            outages=outages,
            stuck=stuck,
            event_queues=connections.event_queues.receivers().queues,
        )


def service_causes_of(connections: Connections) -> list[Cause]:
    """Name what keeps every batch waiting just now."""
    return _outages(connections, connections.heartbeat())


def _outages(connections: Connections, heartbeat: Heartbeat) -> list[Cause]:
    error = _error_of(connections.client.ping)
    holder, held = None, []
    with suppress(psycopg.Error), connections.primary() as conn:  # it has its own error
        if hidden := hidden_rows(conn):
            return [CAUSES["cannot_read"].fill(error=hidden.wrong, step=command(hidden.step))]
        standby = standby_awaited(conn)
        heartbeat = with_obstacle(with_outages(heartbeat, [standby] if standby else []), conn)
        holder, held = sweep.holder(conn) if heartbeat.beat_silent else None, locks(conn)
    return list(service_causes({"error": error} if error else {}, heartbeat, holder, held))


def find_stuck(connections: Connections) -> StuckBatches:
    """Check every rule on all batches; without Redis, the rules that do not need it.

    Takes some 50 ms, and up to a second after a flush of Redis, when many batches violate one.
    """
    with connections.postgres() as conn:
        context = CheckContext(conn, connections.slots)
        rules = all_rules(connections.settings.pending_alarm_s)
        return _stuck(conn, [(rule, rule.find(context) or []) for rule in rules])


def _stuck(conn: Conn, found: list[tuple[Rule, list[Finding]]]) -> StuckBatches:
    violations = _by_batch(found)
    return StuckBatches(
        at=datetime.now(UTC),
        violations=violations,
        states=batches.states(conn, list(violations)),
        more=any(len(those) >= PAGE for _, those in found),
    )


def _error_of(ask: Callable[[], object]) -> str | None:
    try:
        ask()
    except redis.RedisError as error:
        return str(error)
    return None


def _by_batch(found: list[tuple[Rule, list[Finding]]]) -> dict[str, list[Violation]]:
    violations: dict[str, list[Violation]] = {}
    for rule, those in found:
        for finding in those:
            violations.setdefault(finding.batch_id, []).append(Violation(rule, finding))

    def since(batch_id: str) -> tuple[datetime, str]:
        return min(each.finding.since or NEVER for each in violations[batch_id]), batch_id

    return {batch_id: violations[batch_id] for batch_id in sorted(violations, key=since)}
