"""Sends events to the broker, for the worker's relay and for the command line."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from amqp.exceptions import AMQPError
from celery import Celery
from kombu import Producer
from kombu.exceptions import KombuError
from redis import RedisError

from core.errors import NotSent
from core.faults import describe
from core.redaction import field
from core.routes import Route
from core.tracing import span, traceparent

BATCHES_SHOWN = 50  # of a message of the chord: enough to know it by

CloudEvent = dict[str, Any]  # Any: JSON
Routes = Callable[[str], Sequence[Route]]  # of a type of events


def deliver(app: Celery, events: Sequence[CloudEvent], routes: Routes) -> None:
    """Send CloudEvents in their order; Redis gets all of them in one call. Raises NotSent."""
    sent, at_once = 0, False
    try:
        with app.producer_or_acquire() as producer, producer.batch():
            at_once = producer.supports_batch_publish
            for sent, event in enumerate(events):  # noqa: B007 - the handler uses it
                _send(app, producer, event, routes(event["type"]))
    except (KombuError, AMQPError, RedisError, OSError) as error:
        reason = describe(error.__cause__ or error)
        raise NotSent(
            f"the broker does not take events: {reason}", 0 if at_once else sent
        ) from error


def _send(app: Celery, producer: Producer, event: CloudEvent, routes: Sequence[Route]) -> None:
    """Send an event once for each of its routes, its id as task id.

    The message continues the trace of the task that wrote the event.
    """
    about = {"batch_id": event["subject"], "correlation_id": event["correlationid"]}
    origin = event.get("traceparent")
    for route in routes:
        with span(f"deliver {event['type']}", origin, sends=True, **about):
            trace = traceparent.get() or origin
            app.send_task(
                route.task,
                kwargs={"event": event},
                queue=route.queue,
                task_id=event["id"],
                producer=producer,
                ignore_result=True,
                argsrepr="()",
                kwargsrepr=redacted_kwargs({"event": event}),
                headers={"traceparent": trace} if trace else None,
            )


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
