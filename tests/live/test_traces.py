"""Traces across processes: from an upstream service through real workers to a downstream one."""

import os
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from ops.stack.leash import leashed
from tests import factories as make
from tests.live.conftest import until

ELS, UPSTREAM, DOWNSTREAM = "essay-lifecycle-service", "file-service", "nlp-service"
NEVER_MS = str(3_600_000)  # what is not sent at its end is not sent at all
CHILDREN = "worker --pool prefork --concurrency 2"


@dataclass(frozen=True)
class Span:
    """A span as it came over the wire."""

    service: str
    pid: int | None
    trace: str
    id: str
    parent: str
    name: str
    about: dict


class Collector:
    """An OTLP collector on a loopback port."""

    def __init__(self):
        self.spans: list[Span] = []
        collector = self

        class Receive(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Receive)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever)
        self.thread.start()

    def take(self, request):
        for group in request.resource_spans:
            resource = attributes(group.resource)
            for scope in group.scope_spans:
                for span in scope.spans:
                    ids = [
                        each.hex() for each in (span.trace_id, span.span_id, span.parent_span_id)
                    ]
                    origin = resource["service.name"], resource.get("process.pid")
                    self.spans.append(Span(*origin, *ids, span.name, attributes(span)))

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def attributes(thing):
    kinds = {a.key: a.value.WhichOneof("value") for a in thing.attributes}
    return {a.key: getattr(a.value, kinds[a.key]) for a in thing.attributes if kinds[a.key]}


@pytest.fixture
def collector():
    opened = Collector()
    yield opened
    opened.close()


@pytest.fixture
def upstream_tracer(collector):
    """What a file service has that uses OpenTelemetry's instrumentation of Celery."""
    provider = TracerProvider(resource=Resource.create({"service.name": UPSTREAM}))
    sender = OTLPSpanExporter(endpoint=f"{collector.url}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(sender))
    CeleryInstrumentor().instrument(tracer_provider=provider)
    yield provider.get_tracer("file-service")
    CeleryInstrumentor().uninstrument()
    provider.shutdown()


@contextmanager
def consumer(workers, collector, tmp_path):
    """Run the reference consumer on the events of these workers."""
    environ = {
        **os.environ,
        "DOWNSTREAM_BROKER_URL": workers.broker_url,
        "DOWNSTREAM_DB": str(tmp_path / "downstream.sqlite"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_SERVICE_NAME": DOWNSTREAM,
    }
    command = ["-m", "celery", "-A", "tests.live.traced_consumer", "worker", "--pool", "solo"]
    queue = ["-Q", f"{workers.queue}.events", "-n", f"{workers.queue}-consumer@test"]
    argv = leashed([sys.executable, *command, *queue], signal.SIGKILL)
    with (tmp_path / "consumer.log").open("wb") as log:
        process = subprocess.Popen(argv, env=environ, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def end(process):
    process.terminate()
    assert process.wait(20) == 0


def test_one_essay_is_followed_across_three_services(
    workers, collector, upstream_tracer, events_of, tmp_path
):
    worker = workers.start(
        command=CHILDREN, ELS_TRACES_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY=NEVER_MS
    )
    workers.ready(1)
    batch = make.new_batch()
    registered = make.registration(batch, 2)
    correlation = {"correlation_id": registered["correlation_id"]}
    workers.send("els.register_batch", registered).get(timeout=30)
    workers.send("els.assign_content", make.content(batch, "text-1", **correlation)).get(timeout=30)

    with consumer(workers, collector, tmp_path):
        with upstream_tracer.start_as_current_span("upload text-2") as upload:
            workers.send("els.assign_content", make.content(batch, "text-2", **correlation))
        trace = f"{upload.get_span_context().trace_id:032x}"
        seen = {"service": DOWNSTREAM, "name": "run/els.events.batch_essays_ready", "trace": trace}
        until(
            lambda: [s for s in collector.spans if seen.items() <= vars(s).items()],
            what="the consumer's span is in the trace of the upload",
        )
    assert not [span for span in collector.spans if span.service == ELS]
    end(worker)

    spans = {span.id: span for span in collector.spans}
    followed = defaultdict(set)
    for span in collector.spans:
        if span.trace == trace:
            followed[span.service].add(span.name)
    assert followed[UPSTREAM] == {"upload text-2", "apply_async/els.assign_content"}
    assert followed[ELS] >= {
        *("els.assign_content", "claim", "place"),
        *("els.seal_slots", "els.seal_books", "els.announce_ready", "announce"),
        *("take_unpublished", "deliver BatchEssaysReady"),
    }
    assert followed[DOWNSTREAM] == {
        "run/els.events.batch_content_provisioning_completed",
        "run/els.events.batch_essays_ready",
    }
    [received] = [s for s in spans.values() if seen.items() <= vars(s).items()]
    assert line(spans, received) == [
        "run/els.events.batch_essays_ready",
        "deliver BatchEssaysReady",
        "els.announce_ready",
        *line_of_last_header(spans, received),
        "els.assign_content",
        "apply_async/els.assign_content",
        "upload text-2",
    ]
    told = {
        s.name
        for s in spans.values()
        if s.about.get("els.correlation_id") == correlation["correlation_id"]
    }
    assert told >= {"els.register_batch", "els.assign_content", "deliver BatchEssaysReady"}
    children = {span.pid for span in spans.values() if span.service == ELS}
    assert worker.pid not in children
    [ready] = events_of(batch, "BatchEssaysReady")
    assert ready["traceparent"][3:35] == trace
    assert str(ready["correlation_id"]) == correlation["correlation_id"]


def line(spans, span):
    """Name a span and what it goes back to."""
    names = [span.name]
    while span.parent:
        span = spans[span.parent]
        names.append(span.name)
    return names


def line_of_last_header(spans, received):
    """Name the header of the chord that was done last: it is what calls back."""
    announced = spans[spans[received.parent].parent]
    return [spans[announced.parent].name]


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_no_span_is_lost_when_a_worker_of_one_process_ends(workers, collector, pool):
    worker = workers.start(
        command=f"worker --pool {pool}",
        ELS_TRACES_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY=NEVER_MS,
    )
    workers.ready(1)
    batch = make.new_batch()
    workers.send("els.register_batch", make.registration(batch, 1)).get(timeout=30)
    assert collector.spans == []

    end(worker)

    [task] = [span for span in collector.spans if span.name == "els.register_batch"]
    assert (task.about["els.batch_id"], task.pid) == (batch, worker.pid)


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_collector_that_is_away_is_said_once_and_stops_nothing(workers, pool):
    worker = workers.start(
        command=f"worker --pool {pool} --concurrency 1",
        ELS_TRACES_ENDPOINT="http://127.0.0.1:9",
        OTEL_BSP_SCHEDULE_DELAY="50",
    )
    workers.ready(1)
    batch = make.new_batch()
    log = workers.logs / "0.log"
    workers.send("els.register_batch", make.registration(batch, 40)).get(timeout=30)
    sent = [workers.send("els.assign_content", make.content(batch, f"t-{n}")) for n in range(40)]

    outcomes = {value["outcome"] for value in workers.values(sent)}
    until(lambda: "traces_not_sent" in log.read_text(), what="it is said")
    end(worker)

    assert outcomes == {"assigned"}
    assert log.read_text().count("traces_not_sent") == 1
    assert "opentelemetry" not in log.read_text()


def test_a_setting_without_its_packages_names_the_extra(workers, tmp_path):
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError(name='opentelemetry')")

    worker = workers.start(ELS_TRACES_ENDPOINT="http://127.0.0.1:9", PYTHONPATH=str(tmp_path))

    assert worker.wait(30) == 1
    log = (workers.logs / "0.log").read_text()
    assert "pip install 'essay-lifecycle-service[tracing]'" in log
    assert "Traceback" not in log
