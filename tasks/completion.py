"""What follows a commit: the completion chord, the relay, and the sweep that makes up for both.

The chord is Celery's; who announces is decided by Postgres. It may be dispatched again, run twice
or get lost: the first does nothing, the last is found by the sweep.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import structlog
from celery import Signature, Task, chord
from kombu.exceptions import OperationalError
from redis import RedisError
from structlog.contextvars import bind_contextvars, clear_contextvars

from core import metrics, outbox, pulse
from core.crash import crashpoint
from core.outcomes import Done, Value
from core.seals import Seal, Sealed
from core.sweep import Mender
from core.sweep import sweep as run_sweep
from core.transient import LONGEST_WAIT, may_pass, wait_s
from tasks.app import app, send_event, settings, stores
from tasks.delivery import describe

AnyTask = Task[Any, Any]  # Any: as celery-types has it
T = TypeVar("T")

# A message waits unacknowledged for its retry, so it must be back before it is redelivered.
LONGEST_RETRY = min(LONGEST_WAIT, timedelta(seconds=settings.visibility_timeout / 4))

log = structlog.get_logger(__name__)


def follow_up(batches: Mapping[str, Done]) -> None:
    """Dispatch the completion of those batches that are full, and relay the events of all.

    A broker that does not answer fails nothing: the sweep and the relay of beat come after.
    """
    crashpoint("committed")
    try:
        if full := {batch_id: done.slots for batch_id, done in batches.items() if done.full}:
            dispatch_completion(full)
        if posted := [batch_id for batch_id, done in batches.items() if done.posted]:
            outbox.relay(stores().pool, posted, send_event)
    except (OperationalError, RedisError):
        log.warning("left_to_the_sweep", batches=list(batches), exc_info=True)


def dispatch_completion(batches: Mapping[str, int | None]) -> None:
    """Send completion chords for full batches: headers that seal, a callback that announces.

    `batches` has the number of slots of each, where that is known.
    """
    for ranges in stores().lifecycle.headers(batches):
        names = list(dict.fromkeys(batch_id for each in ranges for batch_id in each))
        headers = [*(_call(seal_slots, each) for each in ranges), _call(seal_books, names)]
        announce = _call(announce_ready, names).on_error(seal_failed.s(names))
        chord(headers, announce).apply_async()
        log.info("completion_dispatched", batches=names, headers=len(headers))


def _call(task: AnyTask, batches: Collection[str]) -> Signature:
    """Call a task of the chord; described by us, since Celery takes its time over that."""
    kwargs = {"batches": batches}
    said = {"argsrepr": "()", "kwargsrepr": describe(kwargs)}
    return task.signature(kwargs=kwargs, options=said)


@app.task(bind=True, name="els.seal_slots")
def seal_slots(self: AnyTask, /, batches: Mapping[str, tuple[str, str | None]]) -> dict[str, Seal]:
    """Check and digest one range of the slots of each batch."""
    crashpoint("sealing")
    seal = stores().lifecycle.seal_slots
    seals = _of_all(self, list(batches), lambda those: seal({b: batches[b] for b in those}))
    crashpoint("sealed")
    return seals


@app.task(bind=True, name="els.seal_books")
def seal_books(self: AnyTask, /, batches: Sequence[str]) -> dict[str, bool]:
    """Check the accounts of each batch."""
    return _of_all(self, batches, stores().lifecycle.seal_books)


@app.task(bind=True, name="els.announce_ready")
def announce_ready(
    self: AnyTask, /, results: Sequence[Mapping[str, Any]], batches: Sequence[str]
) -> dict[str, Value]:
    """Announce each sealed batch, once."""
    *headers, books = results
    crashpoint("before_announce")

    def announce(those: Sequence[str]) -> dict[str, Value]:
        sealed = {b: Sealed([h[b] for h in headers if b in h], books.get(b) is True) for b in those}
        done = stores().lifecycle.announce_ready(sealed)
        follow_up(done)
        return {batch_id: each.value for batch_id, each in done.items()}

    return _of_all(self, batches, announce)


@app.task(name="els.seal_failed")
def seal_failed(request: object, error: object, traceback: object, batches: object) -> None:
    """Say that a completion chord failed. The sweep seals and announces its batches."""
    log.error("completion_failed", batches=batches, error=repr(error))


@app.task(name="els.sweep")
def sweep() -> dict[str, int]:
    """Find what must not stay as it is, and mend it; return how many batches by rule."""
    found = run_sweep(Mender(stores().lifecycle, send_event)) or []
    pulse.swept(stores().slots.client)
    mended = [each for each in found if each.mended]
    for each in mended:
        metrics.REPAIRS.labels(each.rule).inc()
    follow_up({each.finding.batch_id: Done({}, posted=True) for each in mended})
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


def _of_all(
    task: AnyTask, batches: Sequence[str], step: Callable[[Sequence[str]], dict[str, T]]
) -> dict[str, T]:
    """Take a step of the chord for all batches; return what came of each.

    Where that can help, the task is tried again. Otherwise the step is taken for each batch by
    itself; one that fails even so is left to the sweep, and hinders no other.
    """
    clear_contextvars()
    bind_contextvars(task=task.name, task_id=task.request.id)
    try:
        return step(batches)
    except Exception as error:
        if may_pass(error):
            raise again(task, error) from error
        if len(batches) == 1:
            log.exception("left_to_the_sweep", batch_id=batches[0])
            return {}
    return {b: taken for each in batches for b, taken in _of_all(task, [each], step).items()}
