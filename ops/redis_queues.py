"""The queues of a Redis broker without Kombu, whose import takes longer than the answer."""

import base64
import json
import time
from collections.abc import Sequence
from typing import cast

import redis

PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")  # ends of the names of a queue's lists
PAGE = 10  # messages read at once: each may have megabytes
LOOKED_S = 0.5


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


def count_of_batch(client: redis.Redis, queue: str, batch_id: str) -> tuple[int, int]:
    """Count the messages that name a batch among the first of a queue; return how many it read.

    They stay where they are. Reads the oldest ones for `LOOKED_S`. Raises redis.RedisError.
    """
    until, name = time.monotonic() + LOOKED_S, f'"{batch_id}"'.encode()
    found = looked = 0
    for key in lists_of(queue):
        last = 0
        while time.monotonic() < until:
            page = cast("list[str]", client.lrange(key, last - PAGE, last - 1))
            found += sum(name in _body(message) for message in page)
            looked += len(page)
            last -= PAGE
            if len(page) < PAGE:
                break
    return found, looked


def _body(message: str) -> bytes:
    """Return the JSON that a message carries; nothing of one that is malformed."""
    try:
        return base64.b64decode(json.loads(message)["body"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return b""
