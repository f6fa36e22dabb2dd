"""The heartbeat of a worker: a file for supervisors, and a time in Redis for everybody else."""

import atexit
import logging
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import redis
import structlog
from celery import signals

import durable_redis
from core.faults import describe
from core.signs import health_file, heartbeat, pauses
from tasks.app import app, settings
from tasks.worker import signs, stopping
from tasks.worker.clients import brief_redis

EVERY_S = 2.0  # as Celery's heartbeat
log = structlog.get_logger(__name__)

_worker: tuple[int, str] | None = None  # process id and name of the worker's main process
_sent_at = float("-inf")
_queues: set[str] = set()  # that this worker consumes from, unless somebody cancels one
_cancelled: set[str] = set()
_error: str | None = None  # that ends this worker
_refused = False  # by the broker, at the last heartbeat
_rabbitmq_refusal: durable_redis.Refusal | None = None  # until the event loop turns again


def send(worker: str) -> None:
    """Send a heartbeat of a worker's main process, as far as its file and Redis take it."""
    global _worker, _sent_at
    _worker, _sent_at = (os.getpid(), worker), time.monotonic()
    if _has_lost_a_queue():
        _send_sign(worker, cancelled=sorted(_cancelled))
        return
    health_file.touch(settings.home, worker)
    with suppress(redis.RedisError):
        heartbeat.note_worker(brief_redis(), worker)
        heartbeat.note_routes(brief_redis(), settings.queue, settings.routing())
        _send_refusal(worker)
    _send_sign(worker)


def _send_sign(worker: str, **more: object) -> None:
    """Write what this worker serves and executes, if Redis takes it."""
    with suppress(redis.RedisError):
        now = pauses.server_time(brief_redis())
        heartbeat.write_sign(brief_redis(), worker, signs.sign(now) | more)


def _has_lost_a_queue() -> bool:
    """Tell whether remote control has cancelled a queue of this worker.

    Such a worker sends no heartbeat: a supervisor starts it again, and then it consumes.
    """
    global _cancelled
    before, _cancelled = _cancelled, _queues - set(app.amqp.queues.consume_from)
    if _cancelled and not before:
        log.error("worker_consumes_no_more", queues=sorted(_cancelled), by="remote control")
    return bool(_cancelled)


def note_refusal(worker: str, error: Exception) -> float:
    """Note that RabbitMQ is there and refuses this worker; return for how long it does, in s."""
    global _rabbitmq_refusal  # noqa: PLW0603 - of the process
    now = datetime.now(UTC)
    since = _rabbitmq_refusal.since if _rabbitmq_refusal else now
    _rabbitmq_refusal = durable_redis.Refusal(describe(error), since)
    send(worker)
    return (now - since).total_seconds()


def _send_refusal(worker: str) -> None:
    """Say whether the broker refuses this worker; its processes say so of the other servers."""
    global _refused  # noqa: PLW0603 - of the process
    refusal = durable_redis.refusal() or _rabbitmq_refusal
    if refusal:
        outage = pauses.Outage("broker", refusal.error)
        pauses.write_pause(brief_redis(), pauses.Pause(worker, outage, refusal.since))
    elif _refused:
        pauses.delete_pause(brief_redis(), worker)
    _refused = refusal is not None


def send_if_solo() -> None:
    """Send one from a task that runs in the main process (pool `solo`) and keeps it waiting."""
    if _worker and _worker[0] == os.getpid() and time.monotonic() - _sent_at > EVERY_S:
        send(_worker[1])


@signals.celeryd_after_setup.connect
def _prepare(sender: str, **_: object) -> None:
    _queues.update(app.amqp.queues.consume_from)
    signs.prepare()
    logging.getLogger("celery.worker").addFilter(_note_error)
    atexit.register(_say_goodbye, os.getpid(), sender)  # Celery's own signal misses a quick stop


def _note_error(record: logging.LogRecord) -> bool:
    """Keep the error that ends this worker, which Celery logs."""
    global _error  # noqa: PLW0603 - of the process
    if record.levelno == logging.CRITICAL and record.exc_text:  # without values, as logs are
        _error = record.exc_text.splitlines()[-1][:500]
    return True


def _say_goodbye(pid: int, worker: str) -> None:
    """Let nobody wait 15 s to learn that this worker has stopped."""
    if os.getpid() == pid:
        with suppress(redis.RedisError):
            _send_sign(worker, stopped=True, by_itself=not stopping.by_somebody(), error=_error)
            heartbeat.note_gone(brief_redis(), worker)


@signals.heartbeat_sent.connect
def _with_celerys(sender: Any, **_: object) -> None:  # Any: Celery's heart, untyped
    global _rabbitmq_refusal  # noqa: PLW0603 - as above
    _rabbitmq_refusal = None
    send(sender.eventer.hostname)
