"""A worker starts to work only when its servers are ready for it."""

import atexit
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis
import structlog
from celery import Celery
from celery.worker import state

from core import logs
from core.errors import BadSettings, ELSError
from core.servers.finding import Finding, Severity
from core.servers.postgres import wait_for_schema
from core.servers.redis_client import connect_once
from core.servers.requirements import check_servers
from core.settings import Settings
from core.signs import health_file, heartbeat, pauses
from core.signs.starts import forget_start, note_start
from tasks.worker.process import describe
from tasks.worker.stopping import STOPS, by_somebody

GARBAGE = (10_000, 50, 50)  # allocations a collection; Python's 700 are those of two messages
log = structlog.get_logger(__name__)


def start(app: Celery, settings: Settings, sender: Any, **_: object) -> None:  # Any: a worker
    """Prepare a worker of this app to work, or exit. Receives Celery's signal `worker_init`."""
    if sender.app is not app:
        return
    logs.configure(settings)  # Celery asks for that after this signal
    try:
        settings.refuse_eager("a worker")
        urls = settings.server_urls("a worker")
    except BadSettings as error:
        raise SystemExit(f"els: {error}") from error
    _note_start(urls[1], sender.hostname)
    _wait_for_servers(settings, sender.hostname)
    gc.set_threshold(*GARBAGE)  # its processes inherit it


def _note_start(url: str, worker: str) -> None:
    """Note this start in Redis; forget it when somebody stops this worker, not when it fails."""
    own = os.getpid()

    def forget(start: str) -> None:
        if by_somebody() and os.getpid() == own:
            with suppress(redis.RedisError), connect_once(url, timeout_s=1) as client:
                forget_start(client, start)

    with suppress(redis.RedisError), connect_once(url, timeout_s=1) as client:
        atexit.register(forget, note_start(client, worker))


def _wait_for_servers(settings: Settings, worker: str) -> None:
    """Wait for the schema, then log what else the servers lack. A signal to stop ends the process.

    Meanwhile the heartbeat file of this worker is touched, and its sign says what it waits for.
    """
    waiting = _Waiting(settings, worker)
    with _stop_signal() as stopped:
        ready = _wait_for_schema(settings, stopped.is_set, waiting)
        if ready:
            _name_findings(settings)
    if not ready or stopped.is_set():
        state.should_stop = os.EX_OK  # type: ignore[assignment] # as Celery notes it later
        raise SystemExit(os.EX_OK)


class _Waiting:
    """A worker that waits to start, and says so."""

    def __init__(self, settings: Settings, worker: str) -> None:
        self._settings, self._worker = settings, worker
        self._finding: Finding | None = None
        self._since: float | None = None

    def found(self, finding: Finding) -> None:
        log.warning("worker_waits_to_start", **finding.as_json())
        self._finding = finding

    def send_heartbeat(self) -> None:
        with suppress(OSError):
            health_file.touch(self._settings.home, self._worker)
        if self._finding and self._settings.redis_url:
            with suppress(redis.RedisError):
                self._send_sign(self._finding, self._settings.redis_url)

    def _send_sign(self, finding: Finding, url: str) -> None:
        with connect_once(url, timeout_s=1) as client:
            now = pauses.server_time(client)
            self._since = self._since or now
            sign = {
                **describe(self._settings),
                "at": now,
                "waits": {"wrong": finding.wrong, "why": finding.why, "step": finding.step},
                "waits_since": self._since,
            }
            heartbeat.write_sign(client, self._worker, sign)
            heartbeat.note_gone(client, self._worker)


def _wait_for_schema(settings: Settings, stopped: Callable[[], bool], waiting: _Waiting) -> bool:
    database_url, _ = settings.server_urls()
    try:
        return wait_for_schema(
            database_url,
            waiting.found,
            stopped,
            waiting.send_heartbeat,
            settings.database_prepare,
        )
    except ELSError as error:
        raise SystemExit(f"els: postgres: {error}") from error


def _name_findings(settings: Settings) -> None:
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
