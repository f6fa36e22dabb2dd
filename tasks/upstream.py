"""The seven tasks that upstream services enqueue.

Each validates its message, takes one step of the lifecycle and returns its value. A message that
the service cannot execute becomes a dead letter.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import structlog
from celery import Task
from celery.exceptions import Reject
from structlog.contextvars import bind_contextvars, clear_contextvars

from core import metrics
from core.assignment import Result
from core.backoff import waited_s
from core.catalogue import (
    AMEND_BATCH,
    ASSIGN_CONTENT,
    ASSIGN_CONTENTS,
    CANCEL_BATCH,
    CONFIRM_STUDENTS,
    REGISTER_BATCH,
    REJECT_CONTENT,
    TASKS,
)
from core.catalogue import Task as Known
from core.crash import crashpoint
from core.errors import InvalidEvent, NotExecuted, Refusal
from core.faults import Fault, describe, fault, sqlstate
from core.messages import Event, Idempotency
from core.model import Message, StepResult, Value
from core.parsing import FIELD, parse
from tasks import locks
from tasks.app import DEATHS, app, settings
from tasks.attempts import attempts
from tasks.bodies import names_event
from tasks.completion import after_commit, again
from tasks.dead_letters import keep, letter_of_call, value_of
from tasks.resources import resources
from tasks.worker import deaths
from tasks.worker.batching import Call
from tasks.worker.request import KeptAsDeadLetter, QuietRequest

Parsed = tuple[Any, Idempotency]  # Any: an event of the task's model
Step = Callable[[Any, Idempotency], StepResult]  # Any: likewise
AnyTask = Task[Any, Any]  # Any: as celery-types has it
log = structlog.get_logger(__name__)


def execute(
    task: AnyTask,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    step: Step | None = None,
) -> Value:
    """Validate a message, take its step, do what follows the commit; return the task's value.

    `step` None: the message submits contents. `core.faults` decides what an error leads to: a dead
    letter (the value then has the outcome `dead_letter`), another delivery after a while, or a wait
    in place while a server refuses.
    """
    clear_contextvars()
    bind_contextvars(task=task.name, task_id=task.request.id)
    if (died := deaths.count(task.request)) >= DEATHS:
        error = NotExecuted("its worker died at each delivery")
        return _refuse(task, error, "POISON_MESSAGE", died)
    started = time.monotonic()
    try:
        event, idem = _parse(task.name, args, kwargs)
        bind_contextvars(batch_id=event.batch_id, correlation_id=str(event.correlation_id))
        for attempt in attempts(failed=partial(_count_retry, task)):
            with attempt, deaths.marked(task.request), locks.noted(event.batch_id):
                if step is None:
                    [assigned] = resources().lifecycle.assign([Message.of(event, idem)])
                    result = _raise_or_return(assigned)
                else:
                    result = step(event, idem)
                after_commit([result])
    except Exception as error:  # noqa: BLE001 - the edge of a task
        return _deal_with(task, error)
    deaths.forget(task.request)
    _report(task.name, str(task.request.id), event, result, started)
    crashpoint("before_ack")
    return result.value


def execute_batch(calls: Sequence[Call]) -> list[Value | None]:
    """Execute several messages that submit contents, by one claim and one commit.

    None: this message failed. Its own task is to execute it, and to deal with the error.
    """
    clear_contextvars()
    started = time.monotonic()
    parsed = {
        n: each
        for n, call in enumerate(calls)
        if (each := _parse_or_none(call)) and not locks.may_be_locked(each[0].batch_id)
    }
    values: list[Value | None] = [None] * len(calls)
    try:
        for attempt in attempts(tries=2):
            with attempt:
                messages = [Message.of(event, idem) for event, idem in parsed.values()]
                results = resources().lifecycle.assign(messages)
                after_commit([each for each in results if isinstance(each, StepResult)])
    except Exception as error:  # whatever it is, each task meets it again, and deals with it
        locks.note(error, {event.batch_id for event, _ in parsed.values()})
        log.warning("left_to_each_task", messages=len(calls), exc_info=True)
        return values
    for (n, (event, _)), result in zip(parsed.items(), results, strict=True):
        if isinstance(result, StepResult):
            _report(calls[n].task, calls[n].task_id, event, result, started)
            values[n] = result.value
    return values


def _task(known: Known) -> Callable[[Callable[..., Value]], AnyTask]:
    """Make a Celery task of one in the catalogue."""
    together = staticmethod(execute_batch) if known.batched else None
    return app.task(bind=True, name=known.name, typing=False, execute_batch=together)


@_task(REGISTER_BATCH)
def register_batch(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce a batch and the essays that it expects."""
    return execute(self, args, kwargs, resources().lifecycle.register_batch)


@_task(ASSIGN_CONTENT)
def assign_content(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce one stored text."""
    return execute(self, args, kwargs)


@_task(ASSIGN_CONTENTS)
def assign_contents(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce the stored texts of one upload."""
    return execute(self, args, kwargs)


@_task(REJECT_CONTENT)
def reject_content(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce a file that failed validation."""
    return execute(self, args, kwargs)


@_task(CONFIRM_STUDENTS)
def confirm_students(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Announce whose essays they are."""
    return execute(self, args, kwargs, resources().lifecycle.confirm_students)


@_task(CANCEL_BATCH)
def cancel_batch(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Give a batch up."""
    return execute(self, args, kwargs, resources().lifecycle.cancel_batch)


@_task(AMEND_BATCH)
def amend_batch(self: AnyTask, /, *args: object, **kwargs: object) -> Value:
    """Change a batch that is not sealed yet."""
    return execute(self, args, kwargs, resources().lifecycle.amend_batch)


QuietRequest.upstream = frozenset(TASKS)


def _raise_or_return(result: Result) -> StepResult:
    if isinstance(result, Exception):
        raise result
    return result


def _parse(task: str, args: Sequence[object], kwargs: Mapping[str, object]) -> Parsed:
    known = TASKS[task]
    if not names_event(args, kwargs):
        raise InvalidEvent(f"{task}: {_what_is_wrong(args, kwargs)}; send kwargs={{'event': …}}")
    return parse(known.model, task, kwargs["event"], known.limit)


def _what_is_wrong(args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """Name what a call has beside the event, as far as it cannot be the name of a person."""
    others = [name if FIELD.fullmatch(name) else "…" for name in kwargs if name != "event"]
    said = [f"the keyword arguments {', '.join(others[:5])}"] if others else []
    said += ["positional arguments"] if args else []
    event = "beside the event" if "event" in kwargs else "and no event"
    return f"the call has {' and '.join(said)} {event}" if said else "the call has no event"


def _parse_or_none(call: Call) -> Parsed | None:
    args, kwargs, _ = call.payload
    try:
        return _parse(call.task, args, kwargs)
    except InvalidEvent:
        return None


def _deal_with(task: AnyTask, error: Exception) -> Value:
    """Turn the error that ended a step into a dead letter, a retry, or a delivery by the broker."""
    match error, fault(error):
        case Reject(), _:
            raise error
        case Refusal(), _:
            return _refuse(task, error, error.code)
        case _, Fault.CONTENTION:
            if waited_s(task.request.retries) >= settings.retry_for:
                return _refuse(task, error, "RETRIES_EXHAUSTED")
            _count_retry(task, error)
            log.warning("retried", error=describe(error), sqlstate=sqlstate(error))
            raise again(task, error) from error
    _refuse(task, error, "INTERNAL_ERROR")
    log.error("task_failed", exc_info=error)
    raise KeptAsDeadLetter(describe(error)) from error


def _count_retry(task: AnyTask, error: Exception) -> None:
    metrics.retried(task.name, sqlstate(error))


def _report(task: str, task_id: str, event: Event, result: StepResult, started: float) -> None:
    """Count and log what a message led to."""
    value = result.value
    metrics.executed(task, value["outcome"], result.became, time.monotonic() - started)
    log.info(
        value["outcome"],
        task=task,
        task_id=task_id,
        batch_id=event.batch_id,
        correlation_id=str(event.correlation_id),
        **{name: value[name] for name in ("essay_id",) if name in value},
    )


def _refuse(task: AnyTask, error: Exception, code: str, deliveries: int = 1) -> Value:
    """Keep a message as a dead letter; return the task's value. Raises Reject if that fails."""
    letter = letter_of_call(task.name, task.request, error, code, deliveries)
    try:
        number = keep(letter)
    except Exception as unkept:
        log.exception("message_goes_back", code=code)
        raise Reject(unkept, requeue=True) from unkept
    metrics.dead_lettered(task.name, letter.sqlstate)
    deaths.forget(task.request)
    return value_of(letter, number)
