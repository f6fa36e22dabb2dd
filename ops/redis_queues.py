"""The queues of a Redis broker without Kombu, whose import takes longer than the answer."""

import json
import re
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import cast

import redis

PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")  # ends of the names of a queue's lists
SENT = re.compile(rb'"timestamp": ?"([^"]{1,40})"')  # of an event, by its sender's clock


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


def oldest_sent(client: redis.Redis, queue: str) -> datetime | None:
    """Tell when the oldest message of a queue was sent; None: there is none, or it does not say so.

    Raises redis.RedisError.
    """
    ends = [as_bytes(client, "LINDEX", key, -1) for key in lists_of(queue)]
    moments = [sent for end in ends if end and (sent := _sent(cast("bytes", end)))]
    return min(moments, default=None)


def as_bytes(client: redis.Redis, *command: str | bytes | int) -> object:
    """Ask for bytes: what lies in a list may be no text. Raises redis.RedisError."""
    answer: object = client.execute_command(*command, NEVER_DECODE=True)  # type: ignore[no-untyped-call]
    return answer


def _sent(message: bytes) -> datetime | None:
    with suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
        if found := SENT.search(b64decode(json.loads(message)["body"])):
            return datetime.fromisoformat(found[1].decode()).astimezone(UTC)
    return None
