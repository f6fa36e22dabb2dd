"""What keeps every batch waiting: servers, workers, beat, queues, locks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.db.sweep import Holder
from core.heartbeat import Heartbeat
from core.pauses import Pause
from core.rules import CAUSES, Cause

BACKLOG = 1_000  # waiting messages that take the worker more than a second or two
SERVERS = {"postgres": "Postgres", "redis": "Redis", "broker": "The broker"}
Row = Mapping[str, Any]  # Any: a database row


def service_causes(
    redis_side: Row, heartbeat: Heartbeat, holder: Holder | None = None
) -> Iterator[Cause]:
    """Name what keeps every batch waiting; `redis_side` has an "error" if Redis is away.

    `holder` has the lock of the sweep, which has not run for a while.
    """
    if "error" in redis_side:
        yield CAUSES["redis_unreachable"].fill()
        return
    yield from _refusals(heartbeat.pauses)
    if heartbeat.waiting is None:
        yield CAUSES["broker_unreachable"].fill()
    if not heartbeat.workers:
        yield CAUSES["no_worker"].fill()
    if heartbeat.beat_silent and holder is not None and not holder.sweeping:
        yield CAUSES["sweep_lock_held"].fill(holder.since, holder=holder)
    if heartbeat.beat_silent:
        yield CAUSES["beat_silent"].fill(heartbeat.swept_at, beats=heartbeat.beats)
    if (heartbeat.waiting or 0) > BACKLOG:
        yield CAUSES["queue_backlog"].fill()


def _refusals(pauses: Sequence[Pause]) -> Iterator[Cause]:
    """Name each server that processes wait for, since the first of them does."""
    first = {pause.outage.server: pause for pause in reversed(pauses)}
    for server, pause in first.items():
        error = pause.outage.error
        yield CAUSES["server_refuses"].fill(pause.since, server=SERVERS[server], error=error)
