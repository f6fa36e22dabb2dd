"""Sends events to the broker, for the worker's relay and for the command line."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import OperationalError
from redis import RedisError

from core.faults import describe
from core.redaction import field
from core.routes import Route
from core.tracing import span, traceparent

BATCHES_SHOWN = 50  # of a message of the chord: enough to know it by


def deliver(app: Celery, event: dict[str, Any], routes: Sequence[Route]) -> None:  # Any: JSON
    """Send a CloudEvent once for each of its routes, its id as task id. Raises OSError.

    The message continues the trace of the task that wrote the event.
    """
    about = {"batch_id": event["subject"], "correlation_id": event["correlationid"]}
    origin = event.get("traceparent")
    for route in routes:
        try:
            with span(f"deliver {event['type']}", origin, sends=True, **about):
                trace = traceparent.get() or origin
                app.send_task(
                    route.task,
                    kwargs={"event": event},
                    queue=route.queue,
                    task_id=event["id"],
                    ignore_result=True,
                    argsrepr="()",
                    kwargsrepr=redacted_kwargs({"event": event}),
                    headers={"traceparent": trace} if trace else None,
                )
        except (OperationalError, AMQPError, RedisError) as error:
            raise ConnectionError(f"the broker does not take events: {describe(error)}") from error


def redacted_kwargs(kwargs: object) -> str:
    """Write the ids in a message, as far as they have the form of ids, and nothing else."""
    given = kwargs if isinstance(kwargs, dict) else {}
    if isinstance(batches := given.get("batches"), list | dict):
        return f"batches={','.join(field('batch_id', b) for b in islice(batches, BATCHES_SHOWN))}"
    event = given.get("event", given)
    if not isinstance(event, dict):
        return "{…}"
    named = ("type", "batch_id", "subject", "event_id", "id", "correlation_id")
    return (
        " ".join(f"{name}={field(name, event[name])}" for name in named if name in event) or "{…}"
    )
