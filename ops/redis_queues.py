"""The queues of a Redis broker without Kombu, whose import takes longer than the answer."""

from collections.abc import Sequence
from typing import cast

import redis

PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")  # ends of the names of a queue's lists


def lists_of(queue: str) -> list[str]:
    """Name the lists of a queue on Redis, the most urgent first."""
    return [queue + end for end in PRIORITIES]


def lengths_on_redis(client: redis.Redis, queues: Sequence[str]) -> dict[str, int]:
    """Count the messages of each queue. Raises redis.RedisError."""
    with client.pipeline(transaction=False) as pipe:
        for queue in queues:
            for key in lists_of(queue):
                pipe.llen(key)
        numbers = cast("list[int]", pipe.execute())
    size = len(PRIORITIES)
    return {queue: sum(numbers[n * size :][:size]) for n, queue in enumerate(queues)}
