"""What RabbitMQ shows without giving a message away: depth and consumers of queues, and alarms."""

from collections.abc import Iterator
from contextlib import suppress

from amqp import Message
from kombu import Connection

from core.signs.pauses import Outage
from ops.explain.clues import Clue
from ops.queues import UNANSWERED, brief_connection, look
from ops.wording import number

DEFAULT = "celery"  # where a message goes whose sender names no queue
NOBODY = "els.nobody"  # a queue that is not there: what is sent to it is dropped
ALARM_S = 0.3  # for RabbitMQ to say that it blocks senders


def look_around(broker_url: str, queue: str) -> tuple[list[Clue], Outage | None]:
    """Tell of messages that nobody takes, by queue, and of an alarm. Raises one of UNANSWERED.

    RabbitMQ does not show whose messages they are.
    """
    broker = brief_connection(broker_url)
    try:
        found = {name: look(broker, name) for name in (queue, DEFAULT)}
        return list(_clues(found, queue)), _alarm(broker)
    finally:
        broker.collect()  # a blocked connection does not answer when it is closed


def _clues(found: dict[str, tuple[int, int]], queue: str) -> Iterator[Clue]:
    messages, consumers = found.pop(queue)
    if messages and not consumers:
        yield Clue(f"{_wait(messages)} in the queue {queue}, and no worker has it open")
    for name, (messages, consumers) in found.items():
        if messages and not consumers:
            yield Clue(
                f"{_wait(messages)} in the queue {name}, which nobody takes from, and workers take"
                f" from {queue}: RabbitMQ does not show whose they are",
                "rabbitmqctl list_queues name messages consumers  # on a host of ELS_BROKER_URL",
            )


def _wait(messages: int) -> str:
    return number(messages, "message waits", "messages wait")


def _alarm(broker: Connection) -> Outage | None:
    """Tell whether an alarm for memory or disk keeps senders waiting.

    RabbitMQ says so only to those that send: so this sends a message that is dropped.
    """
    alarms: list[str] = []
    with suppress(*UNANSWERED):  # whatever is wrong then has another cause
        client = broker.connection
        client.on_blocked = alarms.append
        client.channel()._basic_publish(Message(b""), "", NOBODY)  # waits for no confirm
        broker.drain_events(timeout=ALARM_S)
    if not alarms:
        return None
    return Outage("broker", "it keeps senders waiting: an alarm for memory or disk is set")
