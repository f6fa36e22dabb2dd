"""What RabbitMQ has, asked without changing anything."""

from collections.abc import Callable, Iterator
from typing import Any

from amqp.exceptions import NotFound


def missing(channel: Any, queue: str, exchange: str) -> Iterator[str]:  # Any: Kombu has no types
    """Name what is not there, of an exchange and its queue: `exchange`, `queue`.

    RabbitMQ closes the channel for that, and py-amqp opens it again. Raises AMQPError or OSError.
    """
    looks: dict[str, Callable[[], object]] = {
        "exchange": lambda: channel.exchange_declare(exchange, "topic", passive=True),
        "queue": lambda: channel.queue_declare(queue, passive=True),
    }
    for kind, look in looks.items():
        try:
            look()
        except NotFound:
            yield kind
