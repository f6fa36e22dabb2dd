"""What waits is carried out together: one hop for many messages, one claim and commit for contents.

A worker that is behind takes several messages of quick tasks at once and hands them to a process of
its pool as one job. The job gives all contents their slots, which ends most messages; then it runs
the other tasks as Celery would: a repeat, or what belongs to an unknown or full batch, goes its way
as if it had come alone. A message that was delivered before does come alone, so one that kills its
process takes others with it only once.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from billiard.exceptions import WorkerLostError
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.exceptions import TaskRevokedError
from celery.worker.state import task_ready

from tasks.app import AT_ONCE, BYTES_AT_ONCE, QUICK, app, settings
from tasks.intake import ARRIVALS, Call, ended, place_together
from tasks.request import QuietRequest

log = structlog.get_logger(__name__)


class Together:
    """The messages of quick tasks that this worker holds and no process has begun.

    To Celery this is a request: it asks for a process of the pool once, however many wait.
    """

    def __init__(self, hub: Any, process: Callable[[Any], object]) -> None:  # Any: untyped
        """Take the event loop (None: every request goes alone) and what carries out a request."""
        self._hub = hub
        self._process = process
        self._waiting: deque[QuietRequest] = deque()

    def add(self, request: QuietRequest) -> None:
        """Let a request run, with others if it is plain."""
        if self._hub is None or not _is_plain(request):
            self._process(request)
            return
        self._waiting.append(request)
        if len(self._waiting) == 1:
            self._hub.call_soon(self._ask)  # when all that were taken at once are here

    def forget(self) -> None:
        """Drop what waits: the connection is lost, the broker delivers it anew."""
        self._waiting.clear()

    def _ask(self) -> None:
        if self._waiting:
            self._process(self)

    def execute_using_pool(self, pool: Any) -> None:  # Any: one of Celery's pools
        """Hand what waits to a process that is free. Raises TaskRevokedError if it is nothing."""
        several = self._next()
        if self._waiting:
            self._hub.call_soon(self._ask)
        match [request for request in several if not request.revoked()]:
            case []:
                raise TaskRevokedError("there is nothing left to carry out")
            case [request]:
                request.execute_using_pool(pool)
            case requests:
                Job(requests, self._hub).start(pool)

    def _next(self) -> list[QuietRequest]:
        """Take the requests of one job out of those that wait: one, whatever its size, or more."""
        several: list[QuietRequest] = []
        size = 0
        while self._waiting and len(several) < AT_ONCE:
            size += len(self._waiting[0].message.body)
            if several and size > BYTES_AT_ONCE:
                break
            several.append(self._waiting.popleft())
        return several


def _is_plain(request: QuietRequest) -> bool:
    """Tell whether a request may run with others; a traced one has a span to itself."""
    return request.task.name in QUICK and not (
        request.eta
        or request.expires
        or any(request.time_limits)
        or request.delivery_info["redelivered"]
        or settings.traces_endpoint
    )


class Job:
    """Requests that one process of the pool carries out."""

    def __init__(self, requests: Sequence[QuietRequest], hub: Any) -> None:  # Any: untyped
        self._requests = requests
        self._hub = hub

    def start(self, pool: Any) -> None:  # Any: one of Celery's pools
        """Send the messages to the pool."""
        calls = [Call(r.task.name, r.id, r.request_dict, r.message.payload) for r in self._requests]
        pool.apply_async(
            run_together,
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
                _end(request, result)
        finally:
            self._hub.call_soon(self._acknowledge, tags)

    def _acknowledge(self, tags: Sequence[Any]) -> None:
        request = self._requests[0]
        lost: tuple[type[Exception], ...] = tuple(request.connection_errors)
        try:
            request.message.channel.acknowledge(tags)
        except lost as error:  # the broker delivers them anew
            log.warning("not_acknowledged", messages=len(tags), error=str(error))

    def failed(self, info: Any) -> None:  # Any: billiard's ExceptionInfo
        """Have each message delivered again: its process died, or failed outside of a task."""
        for request in self._requests:
            if isinstance(info.exception, WorkerLostError | SystemExit):
                request.on_failure(info)
            else:
                task_ready(request)
                request.reject()
        log.error("job_failed", messages=len(self._requests), error=repr(info.exception))


def _end(request: QuietRequest, result: Any) -> None:  # Any: of its tracer
    """End one message of a job, and no other where that fails, as on a Redis that is full.

    Without this the rest of the job would count as in work, and be renewed, for ever.
    """
    try:
        request.on_success(result)
    except Exception:
        log.exception("task_not_ended", task=request.name, task_id=request.id)
        task_ready(request)
        if not request.acknowledged:
            request.reject()


def run_together(calls: Sequence[Call]) -> list[Any]:  # Any: of Celery's tracer
    """Place the contents of all messages, run the other tasks; return what Celery's tracer does."""
    arrivals = [call for call in calls if call.task in ARRIVALS]
    if len(arrivals) > 1:
        place_together(arrivals)
    fast: bool = app.use_fast_trace_task  # type: ignore[attr-defined] # absent from its types
    trace = fast_trace_task if fast else trace_task_ret
    return [
        ended(call) or trace(call.task, call.task_id, call.request, call.payload, None, None)
        for call in calls
    ]
