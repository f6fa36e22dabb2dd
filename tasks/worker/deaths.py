"""How many processes died while they executed a message.

A broker cannot know: it sees redeliveries, lost connections and waits alike. So a process that
executes a redelivered message adds a mark in Redis, and removes it at the end. A mark without its
process is a death. The first delivery, on the hot path, leaves no mark: the parent notes the death
of a child that it sees, and the first loss of a whole worker counts as one death.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from socket import gethostname
from typing import Any, cast
from uuid import uuid4

import psutil
import redis

from core import redaction
from core.signs import heartbeat
from core.signs.pauses import server_time
from durable_redis import lost_workers
from tasks.worker.clients import brief_redis

KEPT_S = 24 * 3600  # a mark, if its message never comes back
SEEN = "dead"  # of a mark: the parent saw this process die
BAR = "|"  # between the parts of a mark: worker, host, process id, its start


def count(request: Any) -> int:  # Any: Celery's context of a task
    """Count the processes that died with a message; 0 if Redis does not answer."""
    if not _delivered_before(request):
        return 0
    try:
        marks = cast("set[str]", brief_redis().smembers(_key(request.id)))
    except redis.RedisError:
        marks = set()
    dead = [mark for mark in marks if not _lives(mark)]
    unseen = not any(mark.startswith(SEEN + BAR) for mark in dead)
    return len(dead) + (min(lost_workers(request), 1) if unseen else 0)


@contextmanager
def marked(request: Any) -> Iterator[None]:  # Any: likewise
    """Mark that this process executes the message."""
    if not _delivered_before(request):
        yield
        return
    key, mark = _key(request.id), _mark(str(request.hostname))
    _add(key, mark)
    try:
        yield
    finally:
        with suppress(redis.RedisError):
            brief_redis().srem(key, mark)


def forget(request: Any) -> None:  # Any: likewise
    """Drop the marks of a message that is done."""
    if _delivered_before(request):
        with suppress(redis.RedisError):
            brief_redis().delete(_key(request.id))


def note(task_id: str) -> None:
    """Note in the parent that a child died with a message at its first delivery."""
    _add(_key(task_id), f"{SEEN}{BAR}{uuid4().hex}")


def _add(key: str, mark: str) -> None:
    with suppress(redis.RedisError), brief_redis().pipeline() as pipe:
        pipe.sadd(key, mark)
        pipe.expire(key, KEPT_S)
        pipe.execute()


def _delivered_before(request: Any) -> bool:  # Any: likewise
    info: Mapping[str, object] = request.delivery_info or {}
    return bool(info.get("redelivered"))


def _lives(mark: str) -> bool:
    """Look for the process, if it ran on this host; else for a heartbeat of its worker."""
    if mark.startswith(SEEN + BAR):
        return False
    worker, host, pid, start = (*mark.split(BAR), "", "", "")[:4]
    if not pid.isdecimal():
        return True  # none of ours
    if host == _host():
        with suppress(psutil.NoSuchProcess):
            return f"{psutil.Process(int(pid)).create_time():.2f}" == start
        return False
    try:
        client = brief_redis()
        return worker in heartbeat.live_workers(client, server_time(client))
    except redis.RedisError:
        return True


def _mark(worker: str) -> str:
    pid = os.getpid()
    start = f"{psutil.Process(pid).create_time():.2f}"
    return BAR.join([worker.replace(BAR, "_"), _host(), str(pid), start])


@cache
def _host() -> str:
    """Name the host, and the container on it: process ids count in there."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{gethostname()}/{namespace}".replace(BAR, "_")


def _key(task_id: str) -> str:
    return f"els:begun:{redaction.task_id(task_id)}"
