"""Beat's tasks: the sweep, which mends stuck batches, the relay of events, and the purge.

They send monitors nothing, as they run all the time: Flower would show little else.
"""

from collections import Counter
from contextlib import suppress
from functools import partial

import structlog
from psycopg.errors import InsufficientPrivilege
from redis import RedisError

from core import metrics, outbox
from core.db.retention import FIRST_KEY
from core.model import StepResult, outcome
from core.repairs import RepairContext
from core.retention import RETENTION, Purge
from core.signs import heartbeat
from core.sweep import sweep as run_sweep
from tasks.app import app, settings
from tasks.completion import after_commit
from tasks.outages import run_tick
from tasks.resources import publish_events, resources
from tasks.worker.clients import brief_redis

PURGE_S = 3.0  # for the steps of one tick: a worker has other things to do
_keys_read = FIRST_KEY

log = structlog.get_logger(__name__)


@app.task(name="els.sweep", send_events=False)
def sweep(**_: object) -> dict[str, int]:
    """Find and mend stuck batches; return how many by rule."""
    _begin_tick("els.sweep")
    return run_tick(_sweep, {})


def _sweep() -> dict[str, int]:
    context = RepairContext(resources().lifecycle, publish_events)
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
    return run_tick(lambda: outbox.relay_all(resources().pool, publish_events), 0)


@app.task(name="els.purge", send_events=False)
def purge(**_: object) -> dict[str, int]:
    """Delete what is older than `ELS_RETENTION_DAYS`, for some seconds; return how many by kind."""
    _begin_tick("els.purge")
    if settings.retention_days is None:
        return {}
    return run_tick(partial(_purge, settings.retention_days), {})


def _purge(days: float) -> dict[str, int]:
    global _keys_read  # noqa: PLW0603 - where this process goes on, a minute later
    step = Purge(resources().pool, resources().slots, days, RETENTION)
    try:
        _keys_read = step.run(seconds=PURGE_S, after=_keys_read, each=lambda: None)
    except InsufficientPrivilege:
        log.exception("purge_refused", step="els migrate --roles, with ELS_RETENTION_DAYS set")
    purged = {kind: count for kind, count in step.done.items() if count}
    for kind, count in purged.items():
        metrics.PURGED.labels(kind).inc(count)
    if purged:
        log.info("purged", days=days, **{f"{kind}_purged": n for kind, n in purged.items()})
    return purged


def _begin_tick(task: str) -> None:
    """Let beat send the next tick. If Redis does not answer, beat sends it a little later."""
    with suppress(RedisError):
        heartbeat.tick_begun(brief_redis(), settings.queue, task)
