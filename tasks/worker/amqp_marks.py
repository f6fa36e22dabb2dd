"""Marks by which a worker learns that one of its queues is not the one that it consumes from.

Where somebody deletes a queue and declares it again at once, RabbitMQ counts the old consumers for
the new queue, hands them its messages, and sends them nothing: these wait as long as the connection
does. RabbitMQ names no queue's age. But an exchange that deletes itself goes with the last queue
that is bound to it, and nobody else declares one of such a name.
"""

from contextlib import suppress
from typing import Any

import redis
from amqp.exceptions import NotFound

from tasks.worker.amqp_dropped import check_name
from tasks.worker.clients import brief_redis

MARKS = "els:marks"  # hash: queue -> its mark, so that one serves all workers, and none is left


def mark(channel: Any, work_queue: str, queue: str) -> str:  # Any: Kombu's
    """Return the mark of a queue, which is new where the queue is. Raises AMQPError or OSError."""
    if (known := _known(queue)) and marked(channel, known):
        return known
    new = check_name(work_queue)
    channel.exchange_declare(new, "direct", durable=True, auto_delete=True)
    channel.queue_bind(queue, new, new)
    with suppress(redis.RedisError):  # then this worker has a mark of its own
        brief_redis().hset(MARKS, queue, new)
    return new


def marked(channel: Any, name: str) -> bool:  # Any: as above
    """Tell whether a queue is still the one that has this mark. Raises AMQPError or OSError."""
    try:
        channel.exchange_declare(name, "direct", passive=True)
    except NotFound:
        return False
    return True


def _known(queue: str) -> str:
    with suppress(redis.RedisError):
        return str(brief_redis().hget(MARKS, queue) or "")
    return ""
