"""What follows a commit: the completion chord, the relay, and the sweep that makes up for both.

The chord is Celery's; Postgres decides who announces. So a chord that is dispatched again, or runs
twice, changes nothing. If one is lost, the sweep announces its batches.
"""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import structlog
from amqp.exceptions import AMQPError
from celery import Signature, Task, chord
from celery.exceptions import Reject
from kombu.exceptions import OperationalError
from psycopg import Error as PostgresError
from redis import RedisError
from structlog.contextvars import bind_contextvars, clear_contextvars

from core import outbox
from core.backoff import wait_s, waited_s
from core.crash import crashpoint
from core.faults import Fault, describe, fault
from core.model import StepResult, Value
from core.seals import Seal, Sealed
from tasks import versions
from tasks.app import DEATHS, app, settings
from tasks.attempts import attempts
from tasks.dead_letters import keep, letter_of_call
from tasks.delivery import redacted_kwargs
from tasks.resources import publish_events, resources
from tasks.worker import deaths

AnyTask = Task[Any, Any]  # Any: as celery-types has it
T = TypeVar("T")

TRIES = 3  # of a step of the chord that fails; then the sweep takes the batch
RETRIES = 8  # of a step of the chord that meets others at the same rows; some 80 s

log = structlog.get_logger(__name__)


def after_commit(results: Collection[StepResult]) -> None:
    """Dispatch the completion of the batches that are full, and relay the events of all.

    A server that refuses is only logged: the messages are done, and beat's sweep and relay follow.
    """
    crashpoint("committed")
    batches = {result.value["batch_id"]: result.slots for result in results if result.full}
    posted = list(dict.fromkeys(result.value["batch_id"] for result in results if result.posted))
    try:
        if batches:
            dispatch_completion(batches)
        if posted:
            outbox.relay(resources().pool, posted, publish_events)
    except (OperationalError, AMQPError, RedisError, PostgresError):
        log.warning("left_to_the_sweep", batches=[*batches, *posted], exc_info=True)


def dispatch_completion(batches: Mapping[str, int | None]) -> None:
    """Send completion chords for full batches: headers that seal, a callback that announces.

    `batches` has the number of slots of each, where that is known.
    """
    for ranges in resources().lifecycle.headers(batches):
        names = list(dict.fromkeys(batch_id for each in ranges for batch_id in each))
        headers = [*(_call(seal_slots, each) for each in ranges), _call(seal_books, names)]
        announce = _call(announce_ready, names).on_error(seal_failed.s(names))
        chord(headers, announce).apply_async()
        log.info("completion_dispatched", batches=names, headers=len(headers))


def _call(task: AnyTask, batches: Collection[str]) -> Signature:
    """Make the signature of a step, with our description: Celery takes long to write one."""
    kwargs = {"batches": batches}
    said = {"argsrepr": "()", "kwargsrepr": redacted_kwargs(kwargs)}
    return task.signature(kwargs=kwargs, options={**said, "headers": versions.headers()})


@app.task(bind=True, name="els.seal_slots")
def seal_slots(
    self: AnyTask, /, batches: Mapping[str, Sequence[Any]], **_: object
) -> dict[str, Seal]:
    """Check and digest one range of the slots of each batch."""
    crashpoint("sealing")
    seal = resources().lifecycle.seal_slots
    bounds = {batch_id: (low, high) for batch_id, (low, high, *_) in batches.items()}
    seals = _of_all(self, list(bounds), lambda those: seal({b: bounds[b] for b in those}))
    crashpoint("sealed")
    return seals


@app.task(bind=True, name="els.seal_books")
def seal_books(self: AnyTask, /, batches: Sequence[str], **_: object) -> dict[str, bool]:
    """Check the accounts of each batch."""
    return _of_all(self, batches, resources().lifecycle.seal_books)


@app.task(bind=True, name="els.announce_ready")
def announce_ready(
    self: AnyTask, /, results: Sequence[Mapping[str, Any]], batches: Sequence[str], **_: object
) -> dict[str, Value]:
    """Announce each sealed batch, once."""
    *headers, agrees = results
    crashpoint("before_announce")

    def announce(those: Sequence[str]) -> dict[str, Value]:
        sealed = {
            b: Sealed([h[b] for h in headers if b in h], agrees.get(b) is True) for b in those
        }
        results = resources().lifecycle.announce_ready(sealed)
        after_commit(results.values())
        return {batch_id: result.value for batch_id, result in results.items()}

    return _of_all(self, batches, announce)


@app.task(name="els.seal_failed")
def seal_failed(request: object, error: object, traceback: object, batches: object) -> None:
    """Say that a completion chord failed. The sweep seals and announces its batches."""
    log.error(
        "completion_failed",
        batches=batches,
        error=describe(error) if isinstance(error, Exception) else None,
    )


def again(task: AnyTask, error: Exception) -> Exception:
    """Send a task's message again, to run after a while; return the exception to raise.

    Raises Reject where the broker does not take it.
    """
    wait = wait_s(task.request.retries)
    return task.retry(exc=error, countdown=wait, max_retries=sys.maxsize, throw=False)


def _hold(task: AnyTask, batches: Sequence[str], error: versions.UnknownVersion) -> None:
    """Give a step of another release back, until a worker of that release gets it.

    If none does, the step becomes a dead letter, and the sweep announces its batches.
    """
    if waited_s(task.request.retries) < settings.retry_for:
        log.warning("held_for_another_release", batches=list(batches), error=describe(error))
        raise again(task, error) from error
    keep(letter_of_call(task.name, task.request, error, error.code))


def _of_all(
    task: AnyTask, batches: Sequence[str], step: Callable[[Sequence[str]], dict[str, T]]
) -> dict[str, T]:
    """Take a step of the chord for all batches; return what came of each.

    Where a server refuses, it waits; where others hold the rows, the task is tried again. Otherwise
    the step is taken for each batch by itself; one that fails even so is left to the sweep, and
    hinders no other.
    """
    clear_contextvars()
    bind_contextvars(task=task.name, task_id=task.request.id)
    if deaths.count(task.request) >= DEATHS:
        log.error("left_to_the_sweep", batches=list(batches), reason="its worker died each time")
        return {}
    try:
        versions.check(task.request)
    except versions.UnknownVersion as error:
        _hold(task, batches, error)
        return {}

    try:
        for attempt in attempts(TRIES):
            with attempt, deaths.marked(task.request):
                result = step(batches)
    except Exception as error:
        if isinstance(error, Reject):
            raise
        if fault(error) is Fault.CONTENTION and task.request.retries < RETRIES:
            raise again(task, error) from error
        if len(batches) == 1:
            log.exception("left_to_the_sweep", batch_id=batches[0])
            return {}
    else:
        crashpoint("before_ack")
        return result
    return {b: taken for each in batches for b, taken in _of_all(task, [each], step).items()}
