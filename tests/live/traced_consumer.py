"""The reference consumer, traced as most services are: by OpenTelemetry's own instrumentation.

The names of the variables are its own as well: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME.
"""

from celery import signals
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from examples.consumer import app

__all__ = ["app"]

app.conf.task_create_missing_queue_type = "quorum"  # as docs/tasks.md has it, for `-Q`


@signals.worker_process_init.connect(weak=False)
def trace(**_):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
    CeleryInstrumentor().instrument(tracer_provider=provider)
