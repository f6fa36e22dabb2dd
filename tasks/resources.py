"""What each worker process opens once: Postgres, Redis, the lifecycle, the counts, spans."""

import atexit
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from celery import signals
from psycopg_pool import ConnectionPool

from core import db
from core.db.connection import Conn
from core.errors import BadSettings
from core.lifecycle import Lifecycle
from core.metrics import Pusher
from core.servers.redis_client import connect
from core.slots import Slots
from tasks import eager
from tasks.app import app, settings
from tasks.delivery import CloudEvent, deliver
from tasks.worker import starting

if TYPE_CHECKING:
    from tasks.tracing import Traces


@dataclass(frozen=True)
class Resources:
    """What this process has open."""

    pool: "ConnectionPool[Conn]"
    slots: Slots
    lifecycle: Lifecycle
    pusher: Pusher


@cache
def traces() -> "Traces | None":
    """Make spans if a setting asks for them; import OpenTelemetry only then. Raises BadSettings."""
    if settings.traces_endpoint is None:
        return None
    try:
        from tasks.tracing import Collector, Traces  # noqa: PLC0415 - 0.3 s, for those who ask
    except ModuleNotFoundError as error:
        raise BadSettings(
            f"ELS_TRACES_ENDPOINT is set, but {error.name} is not installed;"
            " run: pip install 'essay-lifecycle-service[tracing]'"
        ) from error
    ticks = frozenset(entry["task"] for entry in app.conf.beat_schedule.values())
    return Traces(partial(Collector, settings.traces_endpoint), ticks)


@cache
def resources() -> Resources:
    """Open Postgres and Redis, once a process and after the fork. Raises BadSettings."""
    database_url, redis_url = settings.server_urls("a task")
    pool = db.connect(
        database_url,
        size=settings.concurrency + 2,
        by_key=True,
        prepare=settings.database_prepare,
    )
    slots = Slots(connect(redis_url))
    if spans := traces():
        spans.watch(pool, slots.client)
    pusher = Pusher(connect(redis_url, timeout_s=1))  # ending waits for it
    if not app.conf.task_always_eager:
        pusher.start()
        atexit.register(pusher.stop)  # a child of prefork skips this, but sends a signal
    return Resources(pool, slots, Lifecycle(pool, slots, settings.opt_in_events()), pusher)


def publish_events(events: Sequence[CloudEvent]) -> None:
    """Hand events to the broker, each once for each of its routes. Raises NotSent."""
    with eager.not_for_events() if app.conf.task_always_eager else nullcontext():
        deliver(app, events, settings.routes)


@signals.worker_init.connect
def _start(sender: Any, **_: object) -> None:  # Any: Celery's worker
    if sender.app is not app:
        return
    try:
        starting.start(sender.hostname)
        spans = traces()
    except BadSettings as error:
        raise SystemExit(f"els: {error}") from error
    if spans:
        spans.connect()


@signals.worker_process_init.connect
def _forget_the_parents_connections(**_: object) -> None:
    resources.cache_clear()


@signals.worker_process_shutdown.connect
def _push_the_last_counts(**_: object) -> None:
    if resources.cache_info().currsize:
        resources().pusher.stop()
