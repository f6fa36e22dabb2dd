"""A worker starts to work only when its servers are ready for it."""

import atexit
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis
import structlog
from celery.worker import state

from core import logs
from core.errors import ELSError
from core.servers.finding import Finding, Severity
from core.servers.postgres import missing_at
from core.servers.requirements import check_servers
from core.signs import health_file, heartbeat, pauses
from tasks.app import settings
from tasks.worker.clients import brief_redis
from tasks.worker.signs import process
from tasks.worker.stopping import STOPS, by_somebody

ASK_EVERY_S, BEAT_EVERY_S = 3.0, 1.0  # while a worker waits for its schema
GARBAGE = (10_000, 50, 50)  # allocations a collection; Python's 700 are those of two messages
log = structlog.get_logger(__name__)


def start(worker: str) -> None:
    """Prepare this worker to work, or exit. Raises BadSettings."""
    logs.configure(settings)  # Celery asks for that after its signal `worker_init`
    if settings.redis_url:
        _note_start(worker)
    settings.refuse_eager("a worker")
    settings.server_urls("a worker")
    _wait_for_servers(worker)
    gc.set_threshold(*GARBAGE)  # its processes inherit it


def _note_start(worker: str) -> None:
    """Note this start in Redis; forget it when somebody stops this worker, not when it fails."""
    own = os.getpid()

    def forget(start: str) -> None:
        if by_somebody() and os.getpid() == own:
            with suppress(redis.RedisError):
                heartbeat.forget_start(brief_redis(), start)

    with suppress(redis.RedisError):
        atexit.register(forget, heartbeat.note_start(brief_redis(), worker))


def _wait_for_servers(worker: str) -> None:
    """Wait for the schema, then log what else the servers lack. A signal to stop ends this."""
    with _stop_signal() as stopped:
        wait_for_schema(worker, stopped)
        if not stopped.is_set():
            _name_findings()
    if stopped.is_set():
        state.should_stop = os.EX_OK  # type: ignore[assignment] # as Celery notes it later
        raise SystemExit(os.EX_OK)


def wait_for_schema(worker: str, stopped: threading.Event) -> None:
    """Wait until this worker sees the schema that it needs, or until it is to stop.

    Meanwhile its heartbeat file is touched, and its sign says what it waits for.
    """
    began, said = time.monotonic(), ""
    health_file.touch(settings.home, worker)
    while not stopped.is_set() and (finding := _missing()):
        if finding.wrong != said:
            log.warning("worker_waits_to_start", **finding.as_json())
        said, again = finding.wrong, time.monotonic() + ASK_EVERY_S
        while time.monotonic() < again and not stopped.is_set():
            health_file.touch(settings.home, worker)
            _say_that_it_waits(worker, finding, time.monotonic() - began)
            stopped.wait(BEAT_EVERY_S)


def _missing() -> Finding | None:
    database_url, _ = settings.server_urls()
    try:
        return missing_at(database_url, settings.database_prepare)
    except ELSError as error:  # which no waiting mends
        raise SystemExit(f"els: postgres: {error}") from error


def _say_that_it_waits(worker: str, finding: Finding, waited_s: float) -> None:
    waits = {"wrong": finding.wrong, "why": finding.why, "step": finding.step}
    with suppress(redis.RedisError):
        now = pauses.server_time(brief_redis())
        sign = {**process(), "at": now, "waits": waits, "waits_since": now - waited_s}
        heartbeat.write_sign(brief_redis(), worker, sign)
        heartbeat.note_gone(brief_redis(), worker)


def _name_findings() -> None:
    for finding in check_servers(settings):
        is_fault = finding.severity is Severity.FAULT
        (log.error if is_fault else log.warning)("server_lacks_something", **finding.as_json())


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Catch a signal to stop: Celery installs its own handlers later, with the consumer."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before: dict[int, Any] = {}  # Any: handlers as `signal` has them
    try:
        for number in STOPS:
            before[number] = signal.signal(number, lambda *_: stopped.set())
        yield stopped
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
