"""The policy by which RabbitMQ hands over what it drops; only an administrator can set it.

A worker checks it at its start, and logs the commands that set it.
"""

import json
from time import monotonic
from uuid import uuid4

import structlog
from amqp.exceptions import AMQPError
from celery import Celery
from kombu import Connection, Consumer, Exchange, Message, Producer, Queue
from kombu.exceptions import KombuError

from core.faults import describe
from tasks.worker.amqp_dropped import CHECK, dead_name, dead_queue

ANSWER_S = 5  # that RabbitMQ gets to drop the message by which the policy is checked
CHECK_EXPIRES_MS = 60_000  # of a queue that a check left behind

log = structlog.get_logger(__name__)


def pattern_of(queue: str) -> str:
    """Write the pattern of the policy: a queue and those named after it, with two exceptions.

    The queue of dropped messages would drop into itself. Events belong to their receivers, and the
    outbox keeps them.
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


def warn_without_policy(app: Celery, queue: str) -> None:
    """Log a warning with the commands to run where RabbitMQ drops messages for good."""
    try:
        with app.connection_for_write() as connection:
            found = has_policy(connection, queue)
    except (AMQPError, KombuError, OSError) as error:
        log.warning("dead_letter_policy_not_checked", error=describe(error))
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
            deadline = monotonic() + ANSWER_S
            while not arrived and monotonic() < deadline:
                try:
                    connection.drain_events(timeout=max(deadline - monotonic(), 0.01))
                except TimeoutError:
                    break
        return bool(arrived)
    finally:
        checked.delete()
