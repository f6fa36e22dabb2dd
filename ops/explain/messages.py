"""Where the messages of a batch lie in a Redis broker. Each stays where it is.

Besides the queue of the service: in the hands of a worker, in lists that it takes nothing from, and
in the other databases of the server. Each part of the search ends after a moment.
"""

import base64
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import redis

from core.catalogue import TASKS
from core.signs.pauses import server_time
from ops.redis_queues import as_bytes, lists_of

PAGE = 10  # messages read at once: each may have megabytes
QUEUE_S = 0.5  # for the queue of the service
HELD_S = 0.2  # for what workers hold
LISTS_S = 0.5  # for all other lists
OLDEST = 50  # messages of another list, and a page of its newest ones
HELD = "unacked"  # as Kombu calls it
INDEX = "unacked_index"  # when each of them was taken, or renewed by its worker
RENEWED_S = 20.0  # a worker that lives does it every 5 s
AN_EVENT = b'"specversion"'  # in what goes to receivers
OURS = (b"els:", b"batch:{", b"celery-task-meta-", b"_kombu", b"unacked")  # how our keys begin
NEWEST: dict[str, tuple[str, *tuple[str | int, ...]]] = {  # of keys that are no list: some entries
    "stream": ("XREVRANGE", "+", "-", "COUNT", OLDEST),
    "zset": ("ZRANGE", 0, OLDEST - 1),
    "string": ("GETRANGE", 0, 256 * 1024),
    "hash": ("HSCAN", 0, "COUNT", OLDEST),
    "set": ("SSCAN", 0, "COUNT", OLDEST),
}


@dataclass(frozen=True)
class Lying:
    """Messages that name a batch in one place."""

    key: str | None  # of a list; None: a worker holds them
    messages: int
    looked: int  # at so many
    ours: bool = True  # all that was looked at are messages for this service, and that is the list
    database: str | None = None  # None: the broker's own
    until: datetime | None = None  # the first `eta` to come
    kind: str = "list"  # of the key
    tried: int = 0  # times at least one of them was tried, where a worker holds it
    left: datetime | None = None  # when its worker renewed one that nobody renews now


def messages_of(client: redis.Redis, queues: Sequence[str], batch_id: str) -> list[Lying]:
    """Find the messages that name a batch; the last of `queues` is that of the service.

    Raises redis.RedisError for that one alone.
    """
    name = f'"{batch_id}"'.encode()
    found = [_in_queue(client, queues[-1], name)]
    with suppress(redis.RedisError):
        found.append(_held(client, name))
    with suppress(redis.RedisError):
        found += _elsewhere(client, queues, name)
    return [each for each in found if each.messages]


def none_left(client: redis.Redis, queue: str) -> bool:
    """Tell whether no message waits or is with a worker: one may not say plainly what it is for."""
    return not client.exists(*lists_of(queue), HELD)


def _in_queue(client: redis.Redis, queue: str, name: bytes) -> Lying:
    until = time.monotonic() + QUEUE_S
    found = looked = 0
    for key in lists_of(queue):
        for message in _oldest(client, key, until):
            looked += 1
            found += name in _said(message)
    return Lying(queue, found, looked)


def _held(client: redis.Redis, name: bytes) -> Lying:
    """Look at what workers have taken and not finished, also what waits for its `eta` there."""
    until, found, looked, tried, moments, left = time.monotonic() + HELD_S, 0, 0, 0, [], []
    cursor: Any = None
    while cursor != 0 and time.monotonic() < until:
        cursor, page = cast("Any", as_bytes(client, "HSCAN", HELD, cursor or 0, "COUNT", PAGE))
        looked += len(page)
        for tag, message in page.items():
            if name in _said(message):
                found += 1
                left += _left(client, tag)
                moments += _eta(message)
                tried = max(tried, _retries(message))
    first, oldest = min(moments, default=None), min(left, default=None)
    return Lying(None, found, looked, until=first, tried=tried, left=oldest)


def _left(client: redis.Redis, tag: bytes) -> list[datetime]:
    """Return when a message was renewed last, if its worker does so no more."""
    at = client.zscore(INDEX, tag)
    silent_s = server_time(client) - at if at else 0.0
    return [datetime.now(UTC) - timedelta(seconds=silent_s)] if silent_s > RENEWED_S else []


def _elsewhere(client: redis.Redis, queues: Sequence[str], name: bytes) -> Iterator[Lying]:
    """Look at the lists of no queue of ours: in this database first, then in the others."""
    until = time.monotonic() + LISTS_S
    keys = [key for queue in queues for key in (*lists_of(queue), f"{queue}.malformed")]
    ours = {key.encode() for key in keys}
    yield from _in_lists(client, name, until, ours)
    here = str(client.connection_pool.connection_kwargs.get("db") or 0)
    others = [each.removeprefix("db") for each in client.info("keyspace")]
    for database in others:
        if database != here and time.monotonic() < until:
            with client.client() as there:  # type: ignore[no-untyped-call]
                there.execute_command("SELECT", database)
                for found in _in_lists(there, name, until, set()):
                    yield replace(found, database=database)


def _in_lists(
    client: redis.Redis, name: bytes, until: float, skipped: set[bytes]
) -> Iterator[Lying]:
    for key in _keys(client, "list", until):
        if key not in skipped:
            yield _in_list(client, key, name, until)
    for kind, newest in NEWEST.items():
        for key in _keys(client, kind, until):
            if key.startswith(OURS) or time.monotonic() > until:
                continue
            entries = as_bytes(client, newest[0], key, *newest[1:])
            yield Lying(_shown(key), _times(name, entries), 0, ours=False, kind=kind)


def _keys(client: redis.Redis, kind: str, until: float) -> Iterator[bytes]:
    cursor: Any = None
    while cursor != 0 and time.monotonic() < until:
        page = cast("Any", as_bytes(client, "SCAN", cursor or 0, "TYPE", kind, "COUNT", 1000))
        cursor = int(page[0])
        yield from page[1]


def _shown(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _times(name: bytes, entries: object) -> int:
    """Count the texts that name the batch in an answer of Redis, however deep they lie."""
    if isinstance(entries, bytes):
        said = _said(entries)
        return int(name in said and AN_EVENT not in said)
    inner = entries.values() if isinstance(entries, dict) else entries
    return sum(_times(name, each) for each in inner) if isinstance(inner, Iterable) else 0


def _in_list(client: redis.Redis, key: bytes, name: bytes, until: float) -> Lying:
    """Look at both ends of a list for messages that are for this service: no events."""
    length = client.llen(key)
    found = looked = 0
    ours = True
    for message in _both_ends(client, key, length, until):
        looked += 1
        said = _said(message)
        found += name in said and AN_EVENT not in said
        ours = ours and _task(message) in TASKS
    return Lying(_shown(key), found, looked, ours and looked == length)


def _both_ends(client: redis.Redis, key: bytes, length: int, until: float) -> Iterable[bytes]:
    """Read the oldest messages of a list, and the newest ones after them."""
    for n, message in enumerate(_oldest(client, key, until)):
        if n == OLDEST:
            break
        yield message
    if length > OLDEST and time.monotonic() < until:
        newest = min(PAGE, length - OLDEST)
        yield from cast("list[bytes]", as_bytes(client, "LRANGE", key, 0, newest - 1))


def _oldest(client: redis.Redis, key: str | bytes, until: float) -> Iterator[bytes]:
    """Read a list from the end that workers take from, until a moment."""
    last = 0
    while time.monotonic() < until:
        page = cast("list[bytes]", as_bytes(client, "LRANGE", key, last - PAGE, last - 1))
        yield from reversed(page)
        last -= PAGE
        if len(page) < PAGE:
            return


def _said(message: bytes) -> bytes:
    """Return a message with the JSON that it carries."""
    try:
        return message + base64.b64decode(_read(message)["body"])
    except (ValueError, TypeError, KeyError):
        return message


def _task(message: bytes) -> str:
    headers = _read(message).get("headers")
    return str(headers.get("task")) if isinstance(headers, dict) else ""


def _retries(message: bytes) -> int:
    headers: Any = _read(message).get("headers")
    retries = headers.get("retries") if isinstance(headers, dict) else 0
    return retries if isinstance(retries, int) else 0


def _eta(message: bytes) -> list[datetime]:
    """Return the moment before which a message is not executed, if it lies ahead."""
    headers: Any = _read(message).get("headers")
    try:
        at = datetime.fromisoformat(headers["eta"])
    except (ValueError, TypeError, KeyError):
        return []
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return [at] if at > datetime.now(UTC) else []


def _read(message: bytes) -> dict[str, Any]:
    """Read the envelope of a message; in what a worker holds it is the first of three parts."""
    try:
        said = json.loads(message)
    except (ValueError, RecursionError):
        return {}
    first = said[0] if isinstance(said, list) and said else said
    return first if isinstance(first, dict) else {}
