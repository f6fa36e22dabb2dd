"""Delays on RabbitMQ. Celery sends a countdown through exchanges that delay by whole seconds.

A worker sends a message whose eta lies ahead there too. If it held the message, that would fill its
prefetch window, and RabbitMQ ends a channel that holds a message for half an hour.

The delays lead to no queue of ours behind a direct exchange (`amqp.queue`): senders may write to
the delays. There the worker holds a message until its eta, some seconds.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog
from celery import Celery
from celery.app import base
from celery.worker.consumer.delayed_delivery import DelayedDelivery
from kombu import Exchange, Message
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_LEVEL,
    MAX_NUMBER_OF_BITS_TO_USE,
    calculate_routing_key,
    level_name,
)

from core.crash import crashpoint
from core.faults import describe
from durable_redis.messages import LAST_YEAR
from tasks.worker.amqp import Channel, forward

HELD_S = 2  # until its eta, by the worker; a delayed message comes less than 1 s early
LONGEST_DELAY_S = 2**MAX_NUMBER_OF_BITS_TO_USE - 1  # 8.5 years; the rest is another delay
HELD = "Direct exchanges are not supported"  # Celery warns; so it is meant
DELAYS = Exchange(level_name(MAX_LEVEL), type="topic", no_declare=True)

log = structlog.get_logger(__name__)


def install() -> None:
    """Make this process's Celery delay by 1 s where it would by 0, which it refuses.

    A message keeps its exact eta. Celery rounds the delay down, so the worker waits for the rest.
    """
    base.calculate_routing_key = _routing_key  # type: ignore[attr-defined] # absent from its types
    DelayedDelivery._bind_queues = lambda *_: None  # type: ignore[attr-defined] # nor is this
    logging.getLogger(base.__name__).addFilter(lambda record: HELD not in str(record.msg))


def delayed_queues(app: Celery) -> list[str]:
    """Name the queues of this worker to which delays lead."""
    held = {queue.name for queue in app.conf.task_queues if queue.exchange.type == "direct"}
    return [name for name in app.amqp.queues.consume_from if name not in held]


def _routing_key(delay_s: int, routing_key: str) -> str:
    return calculate_routing_key(min(max(delay_s, 1), LONGEST_DELAY_S), routing_key)


def bind_to_delays(channel: Channel, queue: str) -> None:
    """Bind a queue straight to the exchange where delays end.

    Celery's own binding, left out, leads through the queue's exchange, and loses the message where
    a sender has declared that as a direct one.
    """
    key = f"#.{queue}"
    channel.queue_bind(queue, CELERY_DELAYED_DELIVERY_EXCHANGE, key)


def sending_back_far_etas(
    worker: Any,  # Any: Celery's consumer, untyped
    handler: Callable[[Message], None],
) -> Callable[[Message], None]:
    def on_message(message: Message) -> None:
        crashpoint("taken")
        wait_s = _seconds_ahead(message.headers.get("eta"))
        if not (wait_s > HELD_S and _delayed(worker, message, wait_s)):
            handler(message)

    return on_message


def _seconds_ahead(eta: object) -> float:
    if not isinstance(eta, str):
        return 0
    try:
        moment = datetime.fromisoformat(eta)
    except ValueError:  # Celery will say so
        return 0
    if moment.year > LAST_YEAR:  # it is malformed
        return 0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return float((moment - datetime.now(UTC)).total_seconds())


def _delayed(worker: Any, message: Message, wait_s: float) -> bool:  # Any: as above
    """Send a message through the delays, and acknowledge it; False if that fails."""
    queue = _queue_of(worker, message)
    if queue not in delayed_queues(worker.app):
        return False
    try:
        forward(worker.app, message, DELAYS, _routing_key(int(wait_s), queue), {})
    except Exception as error:  # noqa: BLE001 - the broker's, or of a header that a sender chose
        log.warning("eta_held_by_the_worker", error=describe(error))
        return False
    message.ack_log_error(log, worker.connection_errors)
    return True


def _queue_of(worker: Any, message: Message) -> str:  # Any: as above
    tag = message.delivery_info.get("consumer_tag")
    tags: Mapping[str, str] = worker.task_consumer._active_tags
    return next((name for name, each in tags.items() if each == tag), "")
