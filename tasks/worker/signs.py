"""Collects the signs of a worker's main process: `Sign` in `ops/signs.py` lists the fields."""

import os
import select
import time
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from socket import gethostname
from typing import Any

from celery.worker import state

from core.servers.identity import identity_of, location
from core.servers.urls import kind_and_path
from core.settings import PREFIX, Settings
from core.signs.installation import detect
from tasks.app import app, settings
from tasks.worker import amqp_policy, screening

# Settings that explain what becomes of messages, where somebody has changed them.
SHOWN = ("retry_for", "visibility_timeout", "crashpoint")
STDERR = 2  # for logs; Celery may have put something else into `sys.stderr`
_last: tuple[object, float] | None = None  # what had moved, and when that was seen first


def sign(now: float) -> dict[str, Any]:  # Any: JSON
    """Describe this worker; `now` is Redis' time, in seconds."""
    requests = list(state.active_requests)
    oldest = min(requests, key=lambda request: request.time_start, default=None)
    at_work: dict[str, Any] = {}
    if oldest is not None:
        began_at = now - (time.time() - oldest.time_start)
        at_work = {"task": oldest.name, "task_pid": oldest.worker_pid, "began_at": began_at}
    return {
        **_constant(),
        **at_work,
        "at": now,
        "queues": sorted(app.amqp.queues.consume_from),
        "held": len(state.reserved_requests),
        "progress_at": now - _still_for_s(),
        "limited": {task.name: task.rate_limit for task in app.tasks.values() if task.rate_limit},
        "broker_lacks": amqp_policy.lacks(settings.queue),
        "log_full": _log_full(),
        **_ignored(now),
    }


def _ignored(now: float) -> dict[str, Any]:  # Any: JSON
    """Tell what a message asked for last that no worker does."""
    if screening.ignored is None:
        return {}
    parts, at = screening.ignored
    return {"ignored": parts, "ignored_at": now - (time.monotonic() - at)}


def _log_full() -> bool:
    """Tell whether our log goes to a pipe that nobody empties: a write to it hangs."""
    with suppress(OSError):
        return not select.select([], [STDERR], [], 0)[1]
    return False


def _still_for_s() -> float:
    """Return for how long no process has begun or ended a message, although some are held."""
    global _last  # noqa: PLW0603 - of the process
    held = len(state.reserved_requests)
    moved = (state.all_total_count[0], held, len(state.active_requests))
    if not held or _last is None or _last[0] != moved:
        _last = moved, time.monotonic()
    return time.monotonic() - _last[1]


def process() -> dict[str, Any]:  # Any: JSON
    """Describe this process, as far as that needs no server."""
    return {
        "database_name": location(settings.database_url or ""),
        "broker": kind_and_path(settings.broker_or_redis_url),
        "host": gethostname(),
        "pid": os.getpid(),
        "version": version("essay-lifecycle-service"),
        "installation": detect(settings.home),
        "home": str(settings.home.absolute()),
        "settings": {
            f"{PREFIX}{name.upper()}": str(value)
            for name in SHOWN
            if (value := getattr(settings, name)) != Settings.model_fields[name].default
        },
    }


@cache
def _constant() -> dict[str, Any]:
    return {"database": identity_of(settings.database_url or ""), **process()}


def prepare() -> None:
    """Read what does not change, while this process may still wait for Postgres."""
    _constant()
