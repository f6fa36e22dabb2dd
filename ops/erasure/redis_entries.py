"""A person in Redis: results and notes are deleted, messages that wait are counted."""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import redis

from ops.erasure.scrub import Person


@dataclass
class InRedis:
    """What was, or would be, deleted, and the messages that wait and name the person, by queue."""

    entries: int = 0
    waiting: Counter[str] = field(default_factory=Counter)


def erase_redis(
    client: redis.Redis, person: Person, queues: Sequence[str], *, dry_run: bool = False
) -> InRedis:
    """Delete results and notes that name the person; count messages that wait and do so.

    A message that waits is not touched: it is its sender's, or its receiver's.
    """
    done = InRedis()
    for pattern in ("els:*", "{els:metrics}*", "celery-task-meta-*", "celery-taskset-meta-*"):
        for key in client.scan_iter(match=pattern, count=1_000):
            done.entries += _erase_key(client, str(key), person, dry_run=dry_run)
    for queue in queues:
        for name in (queue, f"{queue}.malformed"):
            for key in (name, *client.scan_iter(match=f"{name}\x06\x16*")):
                done.waiting[queue] += _naming(client, str(key), person)
    done.waiting["unacked"] += _naming(client, "unacked", person)
    done.waiting = +done.waiting
    return done


def _erase_key(client: redis.Redis, key: str, person: Person, *, dry_run: bool) -> int:
    kind = str(client.type(key))
    if kind == "string":
        found = [key] if person.within(key + str(client.get(key))) else []
        if found and not dry_run:
            client.delete(key)
        return len(found)
    if kind == "hash":
        pairs: Mapping[str, str] = client.hgetall(key)  # type: ignore[assignment] # not awaited
        fields = [name for name, value in pairs.items() if person.within(f"{name} {value}")]
        if fields and not dry_run:
            client.hdel(key, *fields)
        return len(fields)
    return 0


def _naming(client: redis.Redis, key: str, person: Person) -> int:
    """Count the messages of a list or hash that name the person."""
    return sum(any(map(person.within, _texts(each))) for each in _entries(client, key))


def _entries(client: redis.Redis, key: str) -> Iterator[str]:
    match str(client.type(key)):
        case "list":
            for start in range(0, int(client.llen(key)), 500):
                yield from map(str, client.lrange(key, start, start + 499))
        case "hash":
            for _, value in client.hscan_iter(key):
                yield str(value)


def _texts(entry: str) -> Iterator[str]:
    """Give a message and, after it, its decoded body."""
    yield entry
    try:
        message = json.loads(entry)
        body = (message[0] if isinstance(message, list) else message)["body"]
        yield base64.b64decode(body).decode("utf-8", "replace")
    except (ValueError, TypeError, LookupError):
        return
