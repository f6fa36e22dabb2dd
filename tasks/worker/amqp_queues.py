"""What a worker sets up on RabbitMQ before its first message: delays, and the queue of the dropped.

Delays. Celery sends a countdown through exchanges that delay by whole seconds. A message whose eta
lies ahead when a worker gets it goes there too: held, it would fill the worker's prefetch window,
and RabbitMQ ends a channel that holds a message for half an hour.

The dropped. RabbitMQ drops what has expired and what reached a delivery limit. A policy, which only
an administrator can set, makes it publish these to the exchange `<queue>.dead`; each worker
consumes the queue bound to it, and writes dead letters. The worker checks that policy at its start.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Thread
from time import monotonic
from typing import Any
from uuid import uuid4

import structlog
from amqp.exceptions import AMQPError, ChannelError
from celery import Celery, bootsteps
from celery.app import base
from celery.worker.consumer.delayed_delivery import DelayedDelivery
from celery.worker.consumer.tasks import Tasks
from kombu import Connection, Consumer, Exchange, Message, Producer, Queue
from kombu.exceptions import KombuError, OperationalError
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_LEVEL,
    MAX_NUMBER_OF_BITS_TO_USE,
    calculate_routing_key,
    level_name,
)

from tasks.worker.amqp import PERSISTENT, Channel

HELD_S = (
    2  # until its eta, a message is held by the worker; a delayed one comes less than 1 s early
)
LONGEST_DELAY_S = 2**MAX_NUMBER_OF_BITS_TO_USE - 1  # 8.5 years; the rest is another delay
DROPPED_AT_ONCE = 10  # dropped messages that a worker holds, each written in its event loop
POLICY_S = 5  # that RabbitMQ gets to drop the message by which the policy is checked
CHECK_EXPIRES_MS = 60_000  # of a queue that a check left behind
DROPPED = "els-dropped"  # the header of what a worker dropped: why
CHECK = "els-check"  # the header of the message by which the policy is checked
DELAYS = Exchange(level_name(MAX_LEVEL), type="topic", no_declare=True)
CARRIED_OVER = {"correlation_id", "reply_to", "priority", "message_id", "timestamp", "type"}
CODES = {"expired": "EXPIRED", "delivery_limit": "POISON_MESSAGE", "rejected": "MALFORMED_MESSAGE"}

log = structlog.get_logger(__name__)


def wait_at_least_a_second() -> None:
    """Make this process's Celery delay by 1 s where it would by 0, which it refuses.

    A message keeps its exact eta. Celery rounds the delay down, so the worker waits for the rest.
    """
    base.calculate_routing_key = _routing_key  # type: ignore[attr-defined] # absent from its types


def _routing_key(delay_s: int, routing_key: str) -> str:
    return calculate_routing_key(min(max(delay_s, 1), LONGEST_DELAY_S), routing_key)


def pattern_of(queue: str) -> str:
    """Write the pattern of the policy: a queue and those named after it, without two.

    That of the dropped would drop into itself; events belong to their receivers, and the outbox
    keeps them.
    """
    return f"^{queue.replace('.', '[.]')}([.](?!dead$|events).*)?$"


def policy_commands(queue: str) -> str:
    """Write the commands that attach the exchange of the dropped to our queues."""
    return " && ".join(
        f"rabbitmqctl set_policy {queue}-{name} '{pattern_of(queue)}'"
        f" '{json.dumps({'dead-letter-exchange': dead_name(queue), **more})}'"
        f" --apply-to queues --priority {priority}"
        for name, more, priority in (
            ("quorum", {"dead-letter-strategy": "at-least-once", "overflow": "reject-publish"}, 1),
            ("classic", {}, 0),  # for a classic queue the other policy is none
        )
    )


def dead_name(queue: str) -> str:
    """Name the exchange and the queue of what was dropped."""
    return f"{queue}.dead"


@contextmanager
def _or_without(event: str) -> Iterator[None]:
    try:
        yield
    except ChannelError as refused:  # py-amqp opens the channel again
        log.warning(event, error=str(refused))


class Queues(bootsteps.StartStopStep):
    """Sets up delays and the queue of the dropped, each time the worker connects."""

    requires = (Tasks, DelayedDelivery)

    def __init__(self, worker: Any, **kwargs: Any) -> None:  # Any: Celery's consumer, untyped
        self._dropped: Consumer | None = None
        self._policy_checked = False
        super().__init__(worker, **kwargs)

    def start(self, worker: Any) -> None:  # Any: as above
        """Prepare RabbitMQ, and consume what was dropped.

        Where RabbitMQ refuses a part, for want of a right, the worker works without it.
        """
        app: Celery = worker.app
        queue = str(app.conf.task_default_queue)
        Channel.on_drop = staticmethod(lambda message: drop(app, message))
        handler = type(worker).create_task_handler
        worker.create_task_handler = lambda: _sending_back_far_etas(worker, handler(worker))
        channel = worker.connection.channel()
        with _or_without("delays_not_bound"):
            for name in app.amqp.queues.consume_from:
                bind_to_delays(channel, name)
        with _or_without("dropped_messages_not_consumed"):
            self._dropped = Consumer(channel, [dead_queue(queue)], on_message=Keeper(worker).keep)
            self._dropped.qos(prefetch_count=DROPPED_AT_ONCE)
            self._dropped.consume()
        if not self._policy_checked:
            self._policy_checked = True
            Thread(target=warn_without_policy, args=(app, queue), daemon=True).start()

    def stop(self, worker: Any) -> None:  # Any: as above
        """Take no more of what was dropped."""
        dropped, self._dropped = self._dropped, None
        if dropped and worker.connection:
            try:
                dropped.cancel()
            except worker.connection_errors + worker.channel_errors as error:
                log.debug("not_cancelled", error=str(error))

    shutdown = stop


# --- delays ------------------------------------------------------------------------------------


def bind_to_delays(channel: Channel, queue: str) -> None:
    """Bind a queue straight to the exchange where delays end.

    Celery's own binding leads through the queue's exchange, and loses the message where that is
    direct. Through both, a message still arrives once.
    """
    key = f"#.{queue}"
    channel.queue_bind(queue, CELERY_DELAYED_DELIVERY_EXCHANGE, key)


def _sending_back_far_etas(
    worker: Any,  # Any: Celery's consumer, untyped
    handler: Callable[[Message], None],
) -> Callable[[Message], None]:
    def on_message(message: Message) -> None:
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
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return float((moment - datetime.now(UTC)).total_seconds())


def _delayed(worker: Any, message: Message, wait_s: float) -> bool:  # Any: as above
    """Send a message through the delays, and acknowledge it; False if that fails."""
    queue = _queue_of(worker, message)
    if not queue:
        return False
    try:
        publish(worker.app, message, DELAYS, _routing_key(int(wait_s), queue), {})
    except (AMQPError, KombuError, OSError) as error:
        log.warning("eta_held_by_the_worker", error=str(error))
        return False
    message.ack_log_error(log, worker.connection_errors)
    return True


def _queue_of(worker: Any, message: Message) -> str:  # Any: as above
    tag = message.delivery_info.get("consumer_tag")
    tags: Mapping[str, str] = worker.task_consumer._active_tags
    return next((name for name, each in tags.items() if each == tag), "")


def publish(
    app: Celery,
    message: Message,
    exchange: Exchange,
    routing_key: str,
    headers: Mapping[str, str],
) -> None:
    """Publish a message that was received, and wait for the confirm.

    Raises OperationalError or OSError.
    """
    kept = {name: message.headers[name] for name in message.headers if name != "compression"}
    given = message.properties
    about: dict[str, Any] = {name: given[name] for name in CARRIED_OVER & given.keys()}
    with app.producer_pool.acquire(block=True) as producer:
        producer.publish(
            message.body,
            exchange=exchange,
            routing_key=routing_key,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers={**kept, **headers},
            delivery_mode=PERSISTENT,
            retry=True,
            retry_policy={"max_retries": 1},
            **about,
        )


# --- the dropped -------------------------------------------------------------------------------


def dead_queue(queue: str) -> Queue:
    """Describe the queue of what was dropped: it gets whatever its exchange gets."""
    name = dead_name(queue)
    arguments = {"x-queue-type": "quorum"}
    return Queue(name, Exchange(name, type="topic"), routing_key="#", queue_arguments=arguments)


def drop(app: Celery, message: Message) -> None:
    """Hand over what this worker would drop. Raises OperationalError or OSError."""
    name = dead_name(str(app.conf.task_default_queue))
    exchange = Exchange(name, type="topic", no_declare=True)
    publish(app, message, exchange, name, {DROPPED: "rejected"})


class Keeper:
    """Writes a dead letter for each message that was dropped."""

    def __init__(self, worker: Any) -> None:  # Any: Celery's consumer, untyped
        self._worker = worker
        beat = worker.app.conf.beat_schedule.values()
        self._ticks = {entry["task"] for entry in beat}

    def keep(self, message: Message) -> None:
        """Keep a message, or drop it where nobody misses it."""
        if CHECK in message.headers or message.headers.get("task") in self._ticks:
            message.ack_log_error(log, self._worker.connection_errors)
            return
        reason = why_dropped(message.headers)
        code = CODES.get(reason, "REVOKED")
        known = message.headers.get("task") in self._worker.app.tasks
        if code == "MALFORMED_MESSAGE" and not known:
            code = "UNKNOWN_TASK"
        self._worker.undeliverable.keep(
            message, OperationalError(f"RabbitMQ dropped it: {reason}"), code
        )


def why_dropped(headers: Mapping[str, Any]) -> str:  # Any: AMQP's
    """Return RabbitMQ's word for why a message was dropped.

    A message that was delayed has "expired" in each queue of the delays, which is no drop.
    """
    if DROPPED in headers:
        return str(headers[DROPPED])
    deaths = headers.get("x-death") or []
    reasons = [
        str(death.get("reason"))
        for death in deaths
        if not str(death.get("queue")).startswith("celery_delayed_")
    ]
    return reasons[0] if reasons else "unknown"


# --- the policy --------------------------------------------------------------------------------


def warn_without_policy(app: Celery, queue: str) -> None:
    """Log a warning with the commands to run where RabbitMQ drops messages for good."""
    try:
        with app.connection_for_write() as connection:
            found = has_policy(connection, queue)
    except (AMQPError, KombuError, OSError) as error:
        log.warning("dead_letter_policy_not_checked", error=str(error))
        return
    if found:
        log.info("broker_hands_over_what_it_drops", to=dead_name(queue))
    else:
        log.warning(
            "broker_has_no_dead_letter_policy",
            queue=queue,
            lost="messages that expire, or reach RabbitMQ's delivery limit",
            run=policy_commands(queue),
        )


def has_policy(connection: Connection, queue: str) -> bool:
    """Tell whether RabbitMQ hands over what it drops: let it drop a message, and see."""
    channel = connection.channel()
    dead_queue(queue).bind(channel).declare()
    name = f"{queue}.check-{uuid4().hex}"
    arguments = {"x-queue-type": "quorum", "x-expires": CHECK_EXPIRES_MS}
    checked = Queue(name, Exchange(""), name, queue_arguments=arguments).bind(channel)
    arrived: list[Message] = []
    seen = Queue(f"{name}-seen", Exchange(dead_name(queue)), name, exclusive=True, durable=False)
    seen = seen.bind(channel)
    checked.queue_declare()
    seen.queue_declare()
    seen.queue_bind()
    try:
        with Consumer(channel, [seen], on_message=arrived.append, no_ack=True, auto_declare=False):
            Producer(channel).publish("", routing_key=name, expiration=0, headers={CHECK: name})
            deadline = monotonic() + POLICY_S
            while not arrived and monotonic() < deadline:
                try:
                    connection.drain_events(timeout=max(deadline - monotonic(), 0.01))
                except TimeoutError:
                    break
        return bool(arrived)
    finally:
        checked.delete()
