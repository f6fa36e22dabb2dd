"""The six tasks that upstream services enqueue.

Each validates its message, calls one step of the lifecycle and returns its value. What cannot be
carried out is kept as a dead letter.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import structlog
from billiard.exceptions import WorkerLostError
from celery import Task, signals
from celery.exceptions import Reject
from structlog.contextvars import bind_contextvars, clear_contextvars

from core import metrics
from core.errors import InvalidEvent, Refusal
from core.faults import Fault, fault, safe_message, sqlstate, waited_s
from core.lifecycle import SubmittingEvent
from core.messages import (
    BULK_LIMIT,
    SINGLE_LIMIT,
    BatchCancelled,
    BatchContentsProvisioned,
    BatchEssaysRegistered,
    EssayContentProvisioned,
    EssayValidationFailed,
    Event,
    Idempotency,
    StudentAssociationsConfirmed,
    parse,
)
from core.outcomes import StepResult, Value
from tasks.app import DEATHS, app, settings, shown
from tasks.completion import after_commit, again
from tasks.dead_letters import KeptAsDeadLetter, body_of, keep, letter_of, names_event
from tasks.outages import persist
from tasks.resources import resources
from tasks.worker import deaths
from tasks.worker.request import QuietRequest

E = TypeVar("E", bound=Event)
Step = Callable[[E, Idempotency], StepResult]
AnyTask = Task[Any, Any]  # Any: as celery-types has it
TOLD = (signals.task_prerun, signals.task_success, signals.task_postrun)
log = structlog.get_logger(__name__)


class Call(NamedTuple):
    """A message as a process of the pool gets it."""

    task: str
    task_id: str
    request: dict[str, Any]  # Any: Celery's headers
    payload: tuple[Sequence[object], Mapping[str, object], object]  # args, kwargs, embed


class Settled(NamedTuple, Generic[E]):
    """An event whose step was taken with those of others, before its task."""

    event: E
    idem: Idempotency
    done: StepResult
    started: float  # by the monotonic clock


# By task id, of the job at hand: a pool of threads has several.
_settled: ContextVar[dict[str, Settled[Any]]] = ContextVar("settled")  # Any: as the task has it


@app.task(bind=True, name="els.register_batch", typing=False)
def register_batch(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce a batch and the essays that it expects."""
    step = resources().lifecycle.register_batch
    return execute(self, BatchEssaysRegistered, step, args, kwargs, BULK_LIMIT)


@app.task(bind=True, name="els.assign_content", typing=False)
def assign_content(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce one stored text."""
    step = resources().lifecycle.assign_content
    return execute(self, EssayContentProvisioned, step, args, kwargs)


@app.task(bind=True, name="els.assign_contents", typing=False)
def assign_contents(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce the stored texts of one upload."""
    step = resources().lifecycle.assign_contents
    return execute(self, BatchContentsProvisioned, step, args, kwargs, BULK_LIMIT)


@app.task(bind=True, name="els.reject_content", typing=False)
def reject_content(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce a file that failed validation."""
    step = resources().lifecycle.reject_content
    return execute(self, EssayValidationFailed, step, args, kwargs)


@app.task(bind=True, name="els.confirm_students", typing=False)
def confirm_students(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce whose essays they are."""
    step = resources().lifecycle.confirm_students
    return execute(self, StudentAssociationsConfirmed, step, args, kwargs, BULK_LIMIT)


@app.task(bind=True, name="els.cancel_batch", typing=False)
def cancel_batch(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Give a batch up."""
    return execute(self, BatchCancelled, resources().lifecycle.cancel_batch, args, kwargs)


INTAKE = frozenset(
    task.name
    for task in (
        register_batch,
        assign_content,
        assign_contents,
        reject_content,
        confirm_students,
        cancel_batch,
    )
)
QuietRequest.upstream = INTAKE


ARRIVALS: dict[str, tuple[type[SubmittingEvent], int]] = {  # the model and the limit of each
    assign_content.name: (EssayContentProvisioned, SINGLE_LIMIT),
    assign_contents.name: (BatchContentsProvisioned, BULK_LIMIT),
    reject_content.name: (EssayValidationFailed, SINGLE_LIMIT),
}


def place_together(calls: Iterable[Call]) -> None:
    """Give what several messages announce its slots before their tasks, of `ARRIVALS`, run.

    The batches that are full then are completed together. Whatever does not simply work is left to
    the task.
    """
    clear_contextvars()
    settled: dict[str, Settled[SubmittingEvent]] = {}
    _settled.set(settled)
    started = time.monotonic()
    parsed: dict[str, tuple[SubmittingEvent, Idempotency]] = {}
    for call in calls:
        model, limit = ARRIVALS[call.task]
        args, kwargs, _ = call.payload
        with suppress(InvalidEvent):
            raw = kwargs["event"] if names_event(args, kwargs) else None
            parsed[call.task_id] = parse(model, call.task, raw, limit)
    try:
        assign = resources().lifecycle.assign_together
        results = persist(lambda: assign([*parsed.values()]), tries=2)
        for (task_id, (event, idem)), done in zip(parsed.items(), results, strict=True):
            if done:
                settled[task_id] = Settled(event, idem, done, started)
        after_commit({each.event.batch_id: each.done for each in settled.values()})
        for task_id, each in settled.items():
            settled[task_id] = each._replace(done=replace(each.done, full=False, posted=False))
    except Exception:  # whatever it is, each task meets it again, and deals with it
        log.warning("left_to_each_task", messages=len(parsed), exc_info=True)


def ended(call: Call) -> tuple[int, str, float] | None:
    """End a task that was settled with others; return what Celery's tracer does, None to run it.

    The tracer takes longer than the statement that placed the content, and has nothing to do for a
    task whose result nobody keeps, which nothing follows, and of which no signal tells.
    """
    settled = _settled.get({})
    each = settled.get(call.task_id)
    if each is None or _has_more_to_come(call, each.done):
        return None
    del settled[call.task_id]  # a copy of the message is a repeat
    seconds = _tell(call.task, call.task_id, each.event, each.done, each.started)
    return 0, shown(each.done.value, app.Task.resultrepr_maxsize), seconds


def _has_more_to_come(call: Call, done: StepResult) -> bool:
    embed = call.payload[2]
    linked = isinstance(embed, Mapping) and any(embed.values())
    kept = call.request.get("ignore_result") is False
    left = done.full or done.posted  # what follows the commit failed for all together
    return left or linked or kept or any(signal.receivers for signal in TOLD)


def execute(
    task: AnyTask,
    model: type[E],
    step: Step[E],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    limit: int = SINGLE_LIMIT,
) -> Value:
    """Validate a message, take one step, do what follows its commit, return the step's value.

    The first two are done already where it was settled with other messages. What an error leads
    to, `core.faults` decides: a dead letter (its value is the outcome `dead_letter`), another
    delivery after a while, or a wait in place until the server that refuses is well.
    """
    clear_contextvars()
    bind_contextvars(task=task.name, task_id=task.request.id)
    body = body_of(args, kwargs)
    if (died := deaths.count(task.request)) >= DEATHS:
        error = WorkerLostError("its worker died at each delivery")
        return _refuse(task, body, error, "POISON_MESSAGE", died)
    settled: Settled[E] | None = _settled.get({}).pop(str(task.request.id), None)
    started = settled.started if settled else time.monotonic()
    try:
        event, idem = (
            settled[:2]
            if settled
            else parse(model, task.name, body if names_event(args, kwargs) else None, limit)
        )
        bind_contextvars(batch_id=event.batch_id, correlation_id=str(event.correlation_id))

        def attempt() -> StepResult:
            with deaths.marked(task.request):
                done = settled.done if settled else step(event, idem)
                after_commit({event.batch_id: done})
            return done

        done = persist(attempt, failed=partial(_count_retry, task))
    except Exception as error:  # noqa: BLE001 - the edge of a task
        return _deal_with(task, body, error)
    deaths.forget(task.request)
    _tell(task.name, str(task.request.id), event, done, started)
    return done.value


def _deal_with(task: AnyTask, body: object, error: Exception) -> Value:
    """Turn the error that ended a step into a dead letter, a retry, or a delivery by the broker."""
    match error, fault(error):
        case Reject(), _:
            raise error
        case Refusal(), _:
            return _refuse(task, body, error, error.code)
        case _, Fault.CONTENTION:
            if waited_s(task.request.retries) >= settings.retry_for:
                return _refuse(task, body, error, "RETRIES_EXHAUSTED")
            _count_retry(task, error)
            log.warning("retried", error=safe_message(error), sqlstate=sqlstate(error))
            raise again(task, error) from error
    _refuse(task, body, error, "INTERNAL_ERROR")
    log.error("task_failed", exc_info=error)
    raise KeptAsDeadLetter(f"{type(error).__name__}: {safe_message(error)}") from error


def _count_retry(task: AnyTask, error: Exception) -> None:
    metrics.retried(task.name, sqlstate(error))


def _tell(task: str, task_id: str, event: Event, done: StepResult, started: float) -> float:
    """Count and log what a message led to; return how many seconds that took."""
    seconds = time.monotonic() - started
    metrics.carried_out(task, done.value["outcome"], done.became, seconds)
    log.info(
        done.value["outcome"],
        task=task,
        task_id=task_id,
        batch_id=event.batch_id,
        correlation_id=str(event.correlation_id),
        **{name: value for name, value in done.value.items() if name == "essay_id"},
    )
    return seconds


def _refuse(task: AnyTask, body: object, error: Exception, code: str, deliveries: int = 1) -> Value:
    """Keep a message as a dead letter; return the task's value. Raises Reject if that fails."""
    letter = letter_of(task.name, str(task.request.id), body, error, code, deliveries)
    try:
        number = keep(letter)
    except Exception as unkept:
        log.exception("message_goes_back", code=code)
        raise Reject(unkept, requeue=True) from unkept
    metrics.parked(task.name, letter.sqlstate)
    deaths.forget(task.request)
    value = {"outcome": "dead_letter", "batch_id": letter.batch_id, "code": code}
    return {**value, "dead_letter": number, "message": letter.message}
