"""Signs of life of a worker: a file for supervisors, and a time in Redis for everybody else."""

import os
import time
from contextlib import suppress
from functools import cache

import redis

import durable_redis
from core import alive, heartbeat, pauses
from core.slots import connect_once
from tasks.app import settings

EVERY_S = 2.0  # as Celery's heartbeat

_worker: tuple[int, str] | None = None  # process id and name of the worker's main process
_shown_at = float("-inf")
_refused = False  # by the broker, as it was shown last


def show(worker: str) -> None:
    """Show that the main process of a worker is alive; what cannot be written now is left out."""
    global _worker, _shown_at
    _worker, _shown_at = (os.getpid(), worker), time.monotonic()
    with suppress(OSError):  # a home that nobody can write to: the check finds no sign
        alive.show(settings.home, worker)
    if settings.redis_url:
        with suppress(redis.RedisError):  # the sign is missed, which is what it is for
            client = brief_redis(settings.redis_url)
            heartbeat.worker_lives(client, worker)
            _show_refusal(client, worker)


def _show_refusal(client: redis.Redis, worker: str) -> None:
    """Say whether the broker refuses this worker; of the other servers its processes say so."""
    global _refused  # noqa: PLW0603 - of the process
    if refusal := durable_redis.refusal():
        outage = pauses.Outage("broker", refusal.error)
        pauses.say_paused(client, pauses.Pause(worker, outage, refusal.since))
    elif _refused:
        pauses.say_resumed(client, worker)
    _refused = refusal is not None


def show_if_alone() -> None:
    """Do so where a task runs in the main process itself (`--pool solo`), which waits for it."""
    if _worker and _worker[0] == os.getpid() and time.monotonic() - _shown_at > EVERY_S:
        show(_worker[1])


@cache
def brief_redis(url: str) -> redis.Redis:
    """Connect briefly and without repeats: a worker's main loop, or beat, waits meanwhile."""
    return connect_once(url, timeout_s=1)
