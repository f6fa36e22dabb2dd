"""What follows a commit: the completion chord, the relay, and the sweep that makes up for both.

The chord is Celery's; who announces is decided by Postgres. It may be dispatched again, run twice
or get lost: the first does nothing, the last is found by the sweep.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import structlog
from celery import Signature, Task, chord
from kombu.exceptions import OperationalError
from redis import RedisError
from structlog.contextvars import bind_contextvars, clear_contextvars

from core import metrics, outbox, pulse
from core.crash import crashpoint
from core.outcomes import Done, Value
from core.seals import Seal
from core.sweep import Mender
from core.sweep import sweep as run_sweep
from core.transient import LONGEST_WAIT, may_pass, wait_s
from tasks.app import app, send_event, settings, stores

AnyTask = Task[Any, Any]  # Any: as celery-types has it
T = TypeVar("T")

# A message waits unacknowledged for its retry, so it must be back before it is redelivered.
LONGEST_RETRY = min(LONGEST_WAIT, timedelta(seconds=settings.visibility_timeout / 4))

log = structlog.get_logger(__name__)


def follow_up(done: Done, batch_id: str) -> None:
    """Dispatch the completion of a full batch, and relay its events.

    A broker that does not answer fails nothing: the sweep and the relay of beat come after.
    """
    crashpoint("committed")
    try:
        if done.full:
            dispatch_completion(batch_id, done.slots)
        if done.posted:
            outbox.relay(stores().pool, batch_id, send_event)
    except (OperationalError, RedisError):
        log.warning("left_to_the_sweep", batch_id=batch_id, exc_info=True)


def dispatch_completion(batch_id: str, slots: int | None = None) -> None:
    """Send the completion chord: headers that seal, and a callback that announces."""
    ranges = stores().lifecycle.seal_ranges(batch_id, slots)
    headers = [_call(seal_slots, batch_id, low=low, high=high) for low, high in ranges]
    headers.append(_call(seal_books, batch_id))
    announce = _call(announce_ready, batch_id).on_error(seal_failed.s(batch_id))
    chord(headers, announce).apply_async()
    log.info("completion_dispatched", batch_id=batch_id, headers=len(headers))


def _call(task: AnyTask, batch_id: str, **more: object) -> Signature:
    """Call a task of the chord; described by us, since Celery takes its time over that."""
    said = {"argsrepr": "()", "kwargsrepr": f"batch_id={batch_id}"}
    return task.signature(kwargs={"batch_id": batch_id, **more}, options=said)


@app.task(bind=True, name="els.seal_slots")
def seal_slots(self: AnyTask, /, batch_id: str, low: str, high: str | None) -> Seal:
    """Check and digest one range of a batch's slots."""
    crashpoint("sealing")
    seal = _tried_again(self, lambda: stores().lifecycle.seal_slots(batch_id, low, high))
    crashpoint("sealed")
    return seal


@app.task(bind=True, name="els.seal_books")
def seal_books(self: AnyTask, /, batch_id: str) -> bool:
    """Check a batch's accounts."""
    return _tried_again(self, lambda: stores().lifecycle.seal_books(batch_id))


@app.task(bind=True, name="els.announce_ready")
def announce_ready(self: AnyTask, /, seals: Sequence[object], batch_id: str) -> Value:
    """Announce a sealed batch, once."""
    *ranges, books_sealed = seals
    crashpoint("before_announce")
    clear_contextvars()
    bind_contextvars(task=self.name, task_id=self.request.id, batch_id=batch_id)

    def announce() -> Done:
        lifecycle = stores().lifecycle
        return lifecycle.announce_ready(batch_id, cast(list[Seal], ranges), books_sealed is True)

    done = _tried_again(self, announce)
    follow_up(done, batch_id)
    return done.value


@app.task(name="els.seal_failed")
def seal_failed(request: object, error: object, traceback: object, batch_id: str) -> None:
    """Say that a completion chord failed. The sweep seals and announces the batch."""
    log.error("completion_failed", batch_id=batch_id, error=repr(error))


@app.task(name="els.sweep")
def sweep() -> dict[str, int]:
    """Find what must not stay as it is, and mend it; return how many batches by rule."""
    found = run_sweep(Mender(stores().lifecycle, send_event)) or []
    pulse.swept(stores().slots.client)
    mended = [each for each in found if each.mended]
    for each in mended:
        metrics.REPAIRS.labels(each.rule).inc()
    for batch_id in {each.finding.batch_id for each in mended}:
        follow_up(Done({}, posted=True), batch_id)
    return dict(Counter(each.rule for each in mended))


@app.task(name="els.relay")
def relay() -> int:
    """Send every event that the relay right after a commit did not."""
    return outbox.relay_all(stores().pool, send_event)


def again(task: AnyTask, error: Exception, max_retries: int | None = None) -> Exception:
    """Send a task's message anew, to be run after a while; return what is to be raised.

    `max_retries` None: as many as a message may kill workers.
    """
    stores().pool.check()  # a server that ended one connection has often ended them all
    wait = wait_s(task.request.retries, LONGEST_RETRY)
    return task.retry(exc=error, countdown=wait, max_retries=max_retries, throw=False)


def _tried_again(task: AnyTask, step: Callable[[], T]) -> T:
    """Run a step of the chord, again where that can help. The last error is the sweep's to mend."""
    try:
        return step()
    except Exception as error:
        if not may_pass(error):
            raise
        raise again(task, error) from error
