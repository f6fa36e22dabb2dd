"""The six tasks that upstream services enqueue.

Each validates its message, calls one step of the lifecycle and returns its value. What cannot be
carried out is kept as a dead letter; what may pass is tried again.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import structlog
from billiard.exceptions import WorkerLostError
from celery import Task, signals
from kombu.exceptions import OperationalError
from structlog.contextvars import bind_contextvars, clear_contextvars

from core import ledger, metrics
from core.errors import InvalidEvent, Refusal
from core.events import (
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
    canonical,
    parse,
)
from core.ledger import DeadLetter
from core.lifecycle import Arriving
from core.outcomes import Done, Value
from core.transient import may_pass, sqlstate, waited_s
from tasks.app import DELIVERIES, app, settings, shown, stores
from tasks.broker import lost_workers
from tasks.completion import LONGEST_RETRY, again, follow_up

E = TypeVar("E", bound=Event)
Step = Callable[[E, Idempotency], Done]
AnyTask = Task[Any, Any]  # Any: as celery-types has it
TOLD = (signals.task_prerun, signals.task_success, signals.task_postrun)
IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
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
    done: Done
    started: float  # by the monotonic clock


# By task id, of the job at hand: a pool of threads has several.
_settled: ContextVar[dict[str, Settled[Any]]] = ContextVar("settled")  # Any: as the task has it


@app.task(bind=True, name="els.register_batch", typing=False)
def register_batch(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce a batch and the essays that it expects."""
    step = stores().lifecycle.register_batch
    return carry_out(self, BatchEssaysRegistered, step, args, kwargs, BULK_LIMIT)


@app.task(bind=True, name="els.assign_content", typing=False)
def assign_content(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce one stored text."""
    step = stores().lifecycle.assign_content
    return carry_out(self, EssayContentProvisioned, step, args, kwargs)


@app.task(bind=True, name="els.assign_contents", typing=False)
def assign_contents(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce the stored texts of one upload."""
    step = stores().lifecycle.assign_contents
    return carry_out(self, BatchContentsProvisioned, step, args, kwargs, BULK_LIMIT)


@app.task(bind=True, name="els.reject_content", typing=False)
def reject_content(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce a file that failed validation."""
    step = stores().lifecycle.reject_content
    return carry_out(self, EssayValidationFailed, step, args, kwargs)


@app.task(bind=True, name="els.confirm_students", typing=False)
def confirm_students(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce whose essays they are."""
    step = stores().lifecycle.confirm_students
    return carry_out(self, StudentAssociationsConfirmed, step, args, kwargs, BULK_LIMIT)


@app.task(bind=True, name="els.cancel_batch", typing=False)
def cancel_batch(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Give a batch up."""
    return carry_out(self, BatchCancelled, stores().lifecycle.cancel_batch, args, kwargs)


INTAKE = {
    task.name
    for task in (
        register_batch,
        assign_content,
        assign_contents,
        reject_content,
        confirm_students,
        cancel_batch,
    )
}


ARRIVALS: dict[str, tuple[type[Arriving], int]] = {  # the model and the limit of each
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
    settled: dict[str, Settled[Arriving]] = {}
    _settled.set(settled)
    started = time.monotonic()
    parsed: dict[str, tuple[Arriving, Idempotency]] = {}
    for call in calls:
        model, limit = ARRIVALS[call.task]
        args, kwargs, _ = call.payload
        with suppress(InvalidEvent):
            raw = kwargs["event"] if names_event(args, kwargs) else None
            parsed[call.task_id] = parse(model, call.task, raw, limit)
    try:
        results = stores().lifecycle.assign_together([*parsed.values()])
        for (task_id, (event, idem)), done in zip(parsed.items(), results, strict=True):
            if done:
                settled[task_id] = Settled(event, idem, done, started)
        follow_up({each.event.batch_id: each.done for each in settled.values()})
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


def _has_more_to_come(call: Call, done: Done) -> bool:
    embed = call.payload[2]
    linked = isinstance(embed, Mapping) and any(embed.values())
    kept = call.request.get("ignore_result") is False
    left = done.full or done.posted  # what follows the commit failed for all together
    return left or linked or kept or any(signal.receivers for signal in TOLD)


def carry_out(
    task: AnyTask,
    model: type[E],
    step: Step[E],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    limit: int = SINGLE_LIMIT,
) -> Value:
    """Validate a message, take one step, do what follows its commit, return the step's value.

    The first two are done already where it was settled with other messages.

    A refused message returns the outcome `dead_letter` with its code. An error that may pass is
    retried with jittered backoff until `ELS_RETRY_FOR` is over. Anything else is a bug: the
    message is kept, and the error raised.
    """
    clear_contextvars()
    bind_contextvars(task=task.name, task_id=task.request.id)
    named = names_event(args, kwargs)
    body = kwargs["event"] if named else {"args": args, "kwargs": kwargs}
    if lost_workers(task.request) >= DELIVERIES:
        error = WorkerLostError("its worker died at each delivery")
        return park(task, body, error, "POISON_MESSAGE")
    settled: Settled[E] | None = _settled.get({}).pop(str(task.request.id), None)
    started = settled.started if settled else time.monotonic()
    try:
        event, idem = (
            settled[:2] if settled else parse(model, task.name, body if named else None, limit)
        )
        bind_contextvars(batch_id=event.batch_id, correlation_id=str(event.correlation_id))
        done = settled.done if settled else step(event, idem)
        follow_up({event.batch_id: done})
    except Refusal as error:
        return park(task, body, error, error.code)
    except Exception as error:
        if not (may_pass(error) or isinstance(error, OperationalError)):  # the broker's own
            park(task, body, error, "INTERNAL_ERROR")
            raise
        if waited_s(task.request.retries, LONGEST_RETRY) >= settings.retry_for:
            return park(task, body, error, "RETRIES_EXHAUSTED")
        metrics.retried(task.name, sqlstate(error))
        log.warning("retried", error=told(error), sqlstate=sqlstate(error))
        raise again(task, error, sys.maxsize) from error
    _tell(task.name, str(task.request.id), event, done, started)
    return done.value


def _tell(task: str, task_id: str, event: Event, done: Done, started: float) -> float:
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


def names_event(args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Tell whether a task was called as it is to be: with `event`, and nothing else."""
    return not args and kwargs.keys() == {"event"}


def park(task: AnyTask, body: object, error: Exception, code: str) -> Value:
    """Keep a message as a dead letter and say so; where even that fails for now, try again."""
    letter = _letter(task, str(task.request.id), body, error, code)
    try:
        with stores().pool.connection() as conn:
            number = ledger.park(conn, letter)
    except Exception as unkept:
        if not may_pass(unkept):
            raise
        raise again(task, unkept, sys.maxsize) from unkept
    metrics.parked(task.name, letter.sqlstate)
    log.error("dead_letter", code=code, dead_letter=number, sqlstate=letter.sqlstate)
    value = {"outcome": "dead_letter", "batch_id": letter.batch_id, "code": code}
    return {**value, "dead_letter": number, "message": letter.message}


@signals.task_failure.connect
def park_poison(
    sender: AnyTask, task_id: str, exception: Exception, kwargs: Mapping[str, object], **_: object
) -> None:
    """Keep a message that killed its worker at every delivery. Runs in the worker's parent."""
    if not isinstance(exception, WorkerLostError) or sender.name not in INTAKE:
        return
    letter = _letter(sender, task_id, kwargs.get("event", kwargs), exception, "POISON_MESSAGE")
    letter = replace(letter, deliveries=DELIVERIES)
    assert settings.database_url is not None, "a worker has taken this message"
    with ledger.connect_once(settings.database_url) as conn:
        number = ledger.park(conn, letter)
    log.error("dead_letter", code=letter.code, dead_letter=number, task_id=task_id)


def _letter(task: AnyTask, task_id: str, body: object, error: Exception, code: str) -> DeadLetter:
    named = body.get("batch_id") if isinstance(body, Mapping) else None
    return DeadLetter(
        task=task.name,
        task_id=task_id,
        batch_id=named if isinstance(named, str) and IDENTIFIER.fullmatch(named) else None,
        body=as_json(body),
        code=code,
        message=told(error),
        sqlstate=sqlstate(error),
        deliveries=max(lost_workers(task.request), 1),
    )


def as_json(body: object) -> str:
    """Write a body as JSON, whatever it is: to the letter where JSON can hold it."""
    try:
        return json.dumps(json.loads(canonical(body)), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return json.dumps({"not_json": _shown(body)})


def _shown(body: object) -> str:
    try:
        return repr(body)
    except RecursionError:
        return f"{type(body).__name__}, nested too deeply to be written"


def told(error: Exception) -> str:
    """Write an error as Postgres can keep it."""
    return str(error).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:2000]
