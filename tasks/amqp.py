"""RabbitMQ's transport: Kombu's, but what ends together is acknowledged together."""

from collections.abc import Sequence
from typing import Any

from kombu.transport import pyamqp


class Settled:
    """Which deliveries of a channel are settled. Their tags count from 1 without a gap."""

    def __init__(self) -> None:
        self._highest = 0
        self._open: set[int] = set()  # below it

    def add(self, tag: int) -> None:
        """Note that this one is."""
        if tag > self._highest:
            self._open.update(range(self._highest + 1, tag))
            self._highest = tag
        else:
            self._open.discard(tag)

    def all_up_to(self) -> int:
        """Return the highest tag until which all are; 0 for none."""
        return min(self._open, default=self._highest + 1) - 1


class Channel(pyamqp.Channel):
    """Acknowledges with one frame what it may."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as py-amqp calls it
        super().__init__(*args, **kwargs)
        self._settled = Settled()

    def basic_ack(self, delivery_tag: int, *args: Any, **kwargs: Any) -> None:  # Any: as py-amqp's
        """Acknowledge a message."""
        self._settled.add(delivery_tag)
        super().basic_ack(delivery_tag, *args, **kwargs)

    def basic_reject(self, delivery_tag: int, *args: Any, **kwargs: Any) -> None:  # Any: likewise
        """Refuse a message."""
        self._settled.add(delivery_tag)
        super().basic_reject(delivery_tag, *args, **kwargs)

    def acknowledge(self, tags: Sequence[int]) -> None:
        """Acknowledge messages: one frame for those before which none is open, one for each other.

        Raises amqp.AMQPError or OSError where the connection is lost.
        """
        tags = sorted(tags)
        for tag in tags:
            self._settled.add(tag)
        limit = self._settled.all_up_to()
        if through := [tag for tag in tags if tag <= limit]:
            super().basic_ack(through[-1], multiple=True)
        for tag in tags[len(through) :]:
            super().basic_ack(tag)


class Connection(pyamqp.Connection):
    """Kombu's connection with the channel above."""

    Channel = Channel


class Transport(pyamqp.Transport):
    """Kombu's transport with the channel above."""

    Connection = Connection


class SSLTransport(pyamqp.SSLTransport):
    """The same over TLS."""

    Connection = Connection
