"""Messages that RabbitMQ drops, expired or over a delivery limit, become dead letters.

A policy makes RabbitMQ publish these messages to the exchange `<queue>.dead` (`amqp_policy`). Each
worker consumes the queue bound to it.
"""

from collections.abc import Mapping
from typing import Any

import structlog
from celery import Celery
from kombu import Exchange, Message, Queue

from core.errors import NotExecuted
from tasks.worker.amqp import forward

DROPPED = "els-dropped"  # a header: why a worker dropped the message
CHECK = "els-check"  # a header of the message that checks the policy
CODES = {"expired": "EXPIRED", "delivery_limit": "POISON_MESSAGE", "rejected": "MALFORMED_MESSAGE"}
REASONS = (*CODES, "maxlen")  # RabbitMQ's words; a sender may write others into the header

log = structlog.get_logger(__name__)


def dead_name(queue: str) -> str:
    """Name the exchange and the queue of dropped messages."""
    return f"{queue}.dead"


def dead_queue(queue: str) -> Queue:
    """Describe the queue of dropped messages: it gets all that its exchange gets."""
    name = dead_name(queue)
    arguments = {"x-queue-type": "quorum"}
    return Queue(name, Exchange(name, type="topic"), routing_key="#", queue_arguments=arguments)


def drop(app: Celery, message: Message) -> None:
    """Hand over a message that this worker rejects. Raises OperationalError or OSError."""
    name = dead_name(str(app.conf.task_default_queue))
    exchange = Exchange(name, type="topic", no_declare=True)
    forward(app, message, exchange, name, {DROPPED: "rejected"})


class Keeper:
    """Writes a dead letter for each dropped message."""

    def __init__(self, worker: Any) -> None:  # Any: Celery's consumer, untyped
        self._worker = worker
        beat = worker.app.conf.beat_schedule.values()
        self._ticks = {entry["task"] for entry in beat}

    def keep(self, message: Message) -> None:
        """Keep a message; let go of one that nobody misses."""
        given = message.headers.get("task")
        task = given if isinstance(given, str) else ""  # a sender may write anything
        if CHECK in message.headers or task in self._ticks:
            message.ack_log_error(log, self._worker.connection_errors)
            return
        reason = why_dropped(message.headers)
        code = CODES.get(reason, "REVOKED")
        if code == "MALFORMED_MESSAGE" and task not in self._worker.app.tasks:
            code = "UNKNOWN_TASK"
        self._worker.undeliverable.keep(
            message, NotExecuted(f"RabbitMQ dropped it: {reason}"), code
        )


def why_dropped(headers: Mapping[str, Any]) -> str:  # Any: AMQP's
    """Return RabbitMQ's word for why a message was dropped.

    A message that was delayed has "expired" in each queue of the delays, which is no drop.
    """
    if DROPPED in headers:
        return "rejected"
    deaths = headers.get("x-death")
    reasons = [
        reason if (reason := death.get("reason")) in REASONS else "unknown"
        for death in (deaths if isinstance(deaths, list) else [])
        if isinstance(death, dict) and not str(death.get("queue")).startswith("celery_delayed_")
    ]
    return reasons[0] if reasons else "unknown"
