"""Traces: a span for each message, and in it one for each statement, Redis call and delivery.

By hand on OpenTelemetry's API, for the reasons in docs/adr/0007-spans-by-hand.md. Imported only
where `ELS_TRACES_ENDPOINT` is set. Spans hold names, ids and outcomes, no values; and the type of
an error, not its message, which may quote a row.
"""

import atexit
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import structlog
from celery import Task, signals
from celery.utils.dispatch import Signal
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from psycopg import Cursor
from psycopg.rows import DictRow
from psycopg_pool import ConnectionPool
from redis import Redis
from structlog.contextvars import clear_contextvars, get_contextvars

from core import db, redaction, tracing
from core.db.connection import Conn

SERVICE = "essay-lifecycle-service"  # where OTEL_SERVICE_NAME says nothing else
SEND_TIMEOUT_S = 2.0  # of a batch of spans; only the sending thread waits, and an exit
TRY_AGAIN_S = 5.0  # so that nothing waits for a collector that is away, not even an exit
DB = Path(db.__file__).parent
STATEMENTS = {path.read_text(): path.stem for path in DB.glob("sql/*.sql")}
STATEMENTS |= {db.completion.ANNOUNCE: "announce", db.outbox.POST: "post"}
SCRIPTS = {hashlib.sha1(p.read_bytes()).hexdigest(): p.stem for p in DB.parent.glob("lua/*.lua")}  # noqa: S324 - Redis' name
VERB = re.compile(r"\s*(?:--.*\n)*\s*(\w+)")
TABLE = re.compile(r"\b(?:FROM|INTO|UPDATE)\s+(\w+)|\b(pg_\w+)")
W3C = TraceContextTextMapPropagator()

AnyTask = Task[Any, Any]  # Any: as celery-types has it
log = structlog.get_logger(__name__)


class Traces:
    """The spans of a worker. Its tracer is made in each process when it is first needed."""

    def __init__(self, new_exporter: Callable[[], SpanExporter], unseen: frozenset[str]) -> None:
        """`unseen` names the tasks without a span: beat's, which mostly find nothing to do."""
        self._exporter = new_exporter
        self._unseen = unseen
        self._made: tuple[TracerProvider, trace.Tracer] | None = None
        self._making = Lock()
        self._signals: list[tuple[Signal, Any]] = [  # Any: as Celery types receivers
            (signals.task_prerun, self._begin),
            (signals.task_postrun, self._end),
            (signals.before_task_publish, self._pass_on),
            (signals.worker_process_shutdown, self.flush),
        ]

    def connect(self) -> None:
        """Trace what this process, and those forked from it, will do."""
        for signal, receiver in self._signals:
            signal.connect(receiver, weak=False)
        tracing.use(self._part)
        atexit.register(self.flush)  # which a forked child does not run

    def disconnect(self) -> None:
        for signal, receiver in self._signals:
            signal.disconnect(receiver)
        tracing.use()
        atexit.unregister(self.flush)
        self.flush()

    def watch(self, pool: "ConnectionPool[Conn]", client: "Redis") -> None:
        """Trace the statements of a pool that has not connected yet, and a client's commands."""
        assert isinstance(pool.kwargs, dict), "db.connect gives one"
        pool.kwargs = pool.kwargs | {"cursor_factory": self._cursor()}
        execute = client.execute_command

        def traced(*args: Any, **options: Any) -> Any:  # Any: as redis-py has it
            with self._call(SCRIPTS.get(args[1], args[0]) if args[1:] else args[0], "redis"):
                return execute(*args, **options)  # type: ignore[no-untyped-call] # redis-py's

        client.execute_command = traced  # type: ignore[method-assign] # of this client alone

    def flush(self, **_: object) -> None:
        """Send the remaining spans, and stop."""
        made, self._made = self._made, None
        if made:
            made[0].shutdown()

    def _tracer(self) -> trace.Tracer:
        with self._making:  # threads share it
            if self._made is None:
                named = Resource({"service.name": SERVICE, "process.pid": os.getpid()})
                resource = named.merge(OTELResourceDetector().detect())
                provider = TracerProvider(resource=resource, shutdown_on_exit=False)
                provider.add_span_processor(BatchSpanProcessor(self._exporter()))
                self._made = provider, provider.get_tracer("els")
            return self._made[1]

    # --- messages ------------------------------------------------------------------------------

    def _begin(self, task: AnyTask, task_id: str, **_: object) -> None:
        clear_contextvars()  # of the task before
        if task.name in self._unseen:
            return
        parent = W3C.extract(_trace_headers(task.request.headers), context.get_current())
        span = self._tracer().start_span(task.name, parent, SpanKind.CONSUMER)
        span.set_attributes(
            {"messaging.system": "celery", "messaging.message.id": redaction.task_id(task_id)}
        )
        request: Any = task.request  # Any: it takes any attribute
        request.span = ExitStack()
        request.span.enter_context(_within(span))

    def _end(self, task: AnyTask, retval: object, state: str, **_: object) -> None:
        stack: ExitStack | None = getattr(task.request, "span", None)
        if stack is None:
            return
        span = trace.get_current_span()
        about = {**get_contextvars(), **(retval if isinstance(retval, Mapping) else {})}
        for name in ("batch_id", "correlation_id", "essay_id", "outcome", "code"):
            if isinstance(about.get(name), str):
                span.set_attribute(f"els.{name}", about[name])
        span.set_attribute("celery.state", state)
        if isinstance(retval, Exception):
            span.set_attribute("error.type", type(retval).__name__)
        if state == "FAILURE":
            span.set_status(StatusCode.ERROR)
        stack.close()

    def _pass_on(self, headers: dict[str, Any] | None, **_: object) -> None:  # Any: JSON
        """Let a message that is sent within a span go on in its trace."""
        if headers is not None:
            W3C.inject(headers)

    # --- parts of the work ----------------------------------------------------------------------

    def _part(
        self, name: str, parent: str | None, sends: bool, about: dict[str, str]
    ) -> AbstractContextManager[object]:
        origin = W3C.extract(_trace_headers({"traceparent": parent}), context.Context())
        kind = SpanKind.PRODUCER if sends else SpanKind.INTERNAL
        attributes = {f"els.{key}": value for key, value in about.items()}
        return _within(self._tracer().start_span(name, origin, kind, attributes))

    def _call(self, name: str, system: str) -> AbstractContextManager[object]:
        """Trace a call to a server, within a span; alone it says nothing, such as the sweep's."""
        if not trace.get_current_span().is_recording():
            return nullcontext()
        attributes = {"db.system.name": system}
        return _within(self._tracer().start_span(name, None, SpanKind.CLIENT, attributes))

    def _cursor(self) -> type[Cursor[DictRow]]:
        """Make psycopg's cursor one that traces; rows and prepared statements are as before."""
        call = self._call

        class Traced(Cursor[DictRow]):
            def execute(self, query: Any, *args: Any, **options: Any) -> Any:  # Any: as psycopg's
                with call(statement_name(query), "postgresql"):
                    return super().execute(query, *args, **options)

        return Traced


@contextmanager
def _within(span: trace.Span) -> Iterator[trace.Span]:
    seen = span.get_span_context()
    parent = f"00-{seen.trace_id:032x}-{seen.span_id:016x}-{seen.trace_flags:02x}"
    now = context.attach(trace.set_span_in_context(span))
    before = tracing.traceparent.set(parent)
    try:
        yield span
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(StatusCode.ERROR)
        raise
    finally:
        tracing.traceparent.reset(before)
        context.detach(now)
        span.end()


def _trace_headers(headers: Mapping[str, Any] | None) -> dict[str, str]:  # Any: JSON
    """Return the header of a trace, without `tracestate`, in which a sender may write anything."""
    parent = (headers or {}).get("traceparent")
    return {"traceparent": parent} if isinstance(parent, str) else {}


@lru_cache(maxsize=500)
def statement_name(query: str) -> str:
    """Name a statement: by its file in `core/db/sql`, else by its verb and its table."""
    if query in STATEMENTS:
        return STATEMENTS[query]
    verb, table = VERB.match(query), TABLE.search(query)
    return " ".join([verb[1] if verb else "SQL", *filter(None, table.groups() if table else ())])


class Collector(SpanExporter):
    """Sends spans to a collector over OTLP; says once that it is away, and once that it is back.

    OpenTelemetry's own loggers would repeat it for every batch.
    """

    def __init__(self, endpoint: str) -> None:
        url = endpoint.rstrip("/") + "/v1/traces"
        self._endpoint = endpoint
        self._sender = OTLPSpanExporter(endpoint=url, timeout=SEND_TIMEOUT_S)
        self._answers = True
        self._tried_at = 0.0
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, or drop it: a collector that is away is tried every few seconds."""
        now = time.monotonic()
        if not self._answers and now - self._tried_at < TRY_AGAIN_S:
            return SpanExportResult.FAILURE
        self._tried_at = now
        result = self._sender.export(spans)
        answers = result is SpanExportResult.SUCCESS
        if answers != self._answers:
            self._answers = answers
            say = log.info if answers else log.warning
            say("traces_sent_again" if answers else "traces_not_sent", endpoint=self._endpoint)
        return result

    def shutdown(self) -> None:
        self._sender.shutdown()  # type: ignore[no-untyped-call] # theirs
