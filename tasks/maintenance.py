"""Beat's tasks: the sweep, which mends stuck batches, and the relay of events.

They send monitors nothing, as they run all the time: Flower would show little else.
"""

from collections import Counter
from contextlib import suppress

import structlog
from redis import RedisError

from core import heartbeat, metrics, outbox
from core.model import StepResult, outcome
from core.repairs import RepairContext
from core.sweep import sweep as run_sweep
from tasks.app import app, settings
from tasks.completion import after_commit
from tasks.outages import run_tick
from tasks.resources import resources, send_event
from tasks.worker.clients import brief_redis

log = structlog.get_logger(__name__)


@app.task(name="els.sweep", send_events=False)
def sweep(**_: object) -> dict[str, int]:
    """Find and mend stuck batches; return how many by rule."""
    _begin_tick("els.sweep")
    return run_tick(_sweep, {})


def _sweep() -> dict[str, int]:
    context = RepairContext(resources().lifecycle, send_event, settings.pending_alarm)
    found = run_sweep(context)
    if found is None:
        log.info("sweep_skipped", reason="another session holds its lock")
        return {}
    heartbeat.note_sweep(resources().slots.client)
    mended = [each for each in found if each.mended]
    for each in mended:
        metrics.REPAIRS.labels(each.rule).inc()
    after_commit([StepResult(outcome("mended", e.finding.batch_id), posted=True) for e in mended])
    return dict(Counter(each.rule for each in mended))


@app.task(name="els.relay", send_events=False)
def relay(**_: object) -> int:
    """Send each event that the relay right after its commit has not sent."""
    _begin_tick("els.relay")
    return run_tick(lambda: outbox.relay_all(resources().pool, send_event), 0)


def _begin_tick(task: str) -> None:
    """Let beat send the next tick. If Redis does not answer, beat sends it a little later."""
    if settings.redis_url:
        with suppress(RedisError):
            heartbeat.tick_begun(brief_redis(), settings.queue, task)
