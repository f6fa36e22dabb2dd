"""How many messages wait in each queue, on any broker."""

from collections.abc import Sequence
from typing import Any

from kombu import Connection
from kombu.exceptions import ChannelError


def queue_lengths(broker: Connection, queues: Sequence[str]) -> dict[str, int]:
    """Count the messages of each queue that no worker has taken; 0 where it is not there yet.

    Raises OSError or OperationalError where the broker does not answer.
    """
    return {queue: _length(broker, queue) for queue in queues}


def _length(broker: Connection, queue: str) -> int:
    channel: Any = broker.default_channel  # Any: kombu's channels have no types
    try:
        return int(channel.queue_declare(queue, passive=True).message_count)
    except ChannelError as error:
        if "NOT_FOUND" not in str(error):  # both brokers use this word
            raise OSError(f"the broker does not answer for queue {queue}: {error}") from error
        return 0  # Redis has no empty queues
