"""Batching: a worker that is behind sends many messages to a process of its pool as one job.

A task that has an `execute_batch` function gets its messages of a job together: the function takes
the calls and returns the value of each, or None for one that its task is to execute by itself, as
if it had come alone. The other tasks of the job run one by one. A redelivered message always comes
alone, so a message that kills its process takes others with it only once.

What is urgent gets a process before the contents that this worker holds.
"""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

import structlog
from billiard.exceptions import WorkerLostError
from celery import signals
from celery.app.task import Context
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.exceptions import TaskRevokedError

from core.crash import crashpoint
from core.faults import describe
from tasks.app import AT_ONCE, BYTES_AT_ONCE, CONTROL, INTERNAL, QUICK, app, settings
from tasks.worker.request import QuietRequest, ending
from tasks.worker.turns import UrgentFirst

URGENCY = {task: rank for rank, tasks in enumerate((CONTROL, INTERNAL)) for task in tasks}
TASK_SIGNALS = (signals.task_prerun, signals.task_success, signals.task_postrun)
log = structlog.get_logger(__name__)


class Call(NamedTuple):
    """A message as a process of the pool gets it."""

    task: str
    task_id: str
    request: dict[str, Any]  # Any: Celery's headers
    payload: tuple[Sequence[object], Mapping[str, object], Mapping[str, object] | None]


ExecuteBatch = Callable[[Sequence[Call]], Sequence[object]]


class Batcher:
    """The messages that this worker holds and no process has begun.

    To Celery this is a request: it asks for a process of the pool once, however many wait. So what
    is urgent need not wait behind what has asked before.
    """

    def __init__(self, hub: Any, process: Callable[[Any], object]) -> None:  # Any: untyped
        """Take the event loop (None: every request goes alone) and what executes a request."""
        self._hub = hub
        self._process = process
        self._waiting = UrgentFirst(URGENCY, AT_ONCE, BYTES_AT_ONCE)

    def add(self, request: QuietRequest) -> None:
        """Let a request run in its turn, with others if it is plain."""
        if self._hub is None:
            with ending(request):
                self._process(request)
            return
        if not self._waiting:
            self._hub.call_soon(self._ask)  # when all that were taken at once are here
        self._waiting.add(request, plain=_is_plain(request))

    def forget(self) -> None:
        """Drop what waits: the connection is lost, the broker delivers it again."""
        self._waiting = UrgentFirst(URGENCY, AT_ONCE, BYTES_AT_ONCE)

    def go_on(self) -> None:
        """Execute what waits all the same: its queue was deleted, nobody delivers it again."""
        if self._waiting:
            self._hub.call_soon(self._ask)

    def _ask(self) -> None:
        if self._waiting:
            self._process(self)

    def execute_using_pool(self, pool: Any) -> None:  # Any: one of Celery's pools
        """Hand what waits to a process that is free. Raises TaskRevokedError if it is nothing."""
        several = self._waiting.next()
        if self._waiting:
            self._hub.call_soon(self._ask)
        match [request for request in several if not request.revoked()]:
            case []:
                raise TaskRevokedError("there is nothing left to execute")
            case [request]:
                with ending(request):
                    request.execute_using_pool(pool)
            case requests:
                BatchJob(requests, self._hub).start(pool)


def _is_plain(request: QuietRequest) -> bool:
    """Tell whether a request may run with others; a traced one has a span to itself."""
    return request.task.name in QUICK and not (
        request.eta
        or request.expires
        or any(request.time_limits)
        or request.delivery_info["redelivered"]
        or settings.traces_endpoint
    )


class BatchJob:
    """Requests that one process of the pool executes."""

    def __init__(self, requests: Sequence[QuietRequest], hub: Any) -> None:  # Any: untyped
        self._requests = requests
        self._hub = hub

    def start(self, pool: Any) -> None:  # Any: one of Celery's pools
        calls = [Call(r.task.name, r.id, r.request_dict, r.message.payload) for r in self._requests]
        with ending(*self._requests):
            pool.apply_async(
                run_batch,
                args=(calls,),
                accept_callback=self.accepted,
                callback=self.succeeded,
                error_callback=self.failed,
                correlation_id=calls[0].task_id,
            )

    def accepted(self, pid: Any, at: float) -> None:  # Any: an int, where types want a string
        """Note which process has begun, and when by the monotonic clock."""
        for request in self._requests:
            request.on_accepted(pid, at)

    def succeeded(self, results: Sequence[Any]) -> None:  # Any: of its tracer
        """Acknowledge each message, or treat it by how its task ended, as Celery does."""
        tags: list[Any] = []  # Any: the broker's
        try:
            for request, result in zip(self._requests, results, strict=True):
                request.acknowledged_with = tags
                with ending(request):
                    request.on_success(result)
        finally:
            self._hub.call_soon(self._acknowledge, tags)

    def _acknowledge(self, tags: Sequence[Any]) -> None:
        request = self._requests[0]
        lost: tuple[type[Exception], ...] = tuple(request.connection_errors)
        try:
            for tag in tags:
                request.message.channel.basic_ack(tag)
        except lost as error:  # the broker delivers them again
            log.warning("not_acknowledged", messages=len(tags), error=describe(error))

    def failed(self, info: Any) -> None:  # Any: billiard's ExceptionInfo
        """Have each message delivered again: its process died, or failed outside of a task."""
        for request in self._requests:
            if isinstance(info.exception, WorkerLostError | SystemExit):
                request.on_failure(info)
            else:
                request.give_back()
        log.error("job_failed", messages=len(self._requests), error=describe(info.exception))


def run_batch(calls: Sequence[Call]) -> list[Any]:  # Any: of Celery's tracer
    """Execute several messages in a process of the pool; return what Celery's tracer does.

    The tracer takes longer than the statement that places a content. So it runs a task only where
    it has something to do: what the batch did not settle, what a signal or a link waits for.
    """
    started = monotonic()
    values: list[object] = [None] * len(calls)
    for execute_batch, indexes in _batches(calls).items():
        some = execute_batch([calls[index] for index in indexes])
        for index, value in zip(indexes, some, strict=True):
            values[index] = value
    fast: bool = app.use_fast_trace_task  # type: ignore[attr-defined] # absent from its types
    trace = fast_trace_task if fast else trace_task_ret
    return [
        trace(call.task, call.task_id, call.request, call.payload, None, None)
        if value is None
        else _succeeded(call, value, monotonic() - started)
        for call, value in zip(calls, values, strict=True)
    ]


def _batches(calls: Sequence[Call]) -> dict[ExecuteBatch, list[int]]:
    """Group the messages that one function executes together; each group has several."""
    batches: dict[ExecuteBatch, list[int]] = {}
    if any(signal.receivers for signal in TASK_SIGNALS):
        return batches
    for index, call in enumerate(calls):
        execute_batch = getattr(app.tasks[call.task], "execute_batch", None)
        if execute_batch and not any((call.payload[2] or {}).values()):  # nothing is linked to it
            batches.setdefault(execute_batch, []).append(index)
    return {execute: indexes for execute, indexes in batches.items() if len(indexes) > 1}


def _succeeded(call: Call, value: object, seconds: float) -> tuple[int, str, float]:
    if call.request.get("ignore_result") is False:
        app.backend.mark_as_done(call.task_id, value, Context(call.request))
    crashpoint("before_ack")
    # Celery writes any object token by token, which costs as much as the message did: 19 µs.
    return 0, repr(value)[: app.Task.resultrepr_maxsize], seconds
