"""A worker starts to work only when its servers are ready for it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from core import alive
from core.requirements import Finding, Severity, check_servers, wait_for_schema
from core.settings import Settings
from tasks.worker.stopping import STOPS

log = structlog.get_logger(__name__)


def wait_for_servers(settings: Settings, worker: str) -> None:
    """Wait for the schema, then name what else the servers lack; a signal to stop ends the process.

    Meanwhile the file of this worker says that it is well.
    """

    def sign() -> None:
        with suppress(OSError):
            alive.show(settings.home, worker)

    assert settings.database_url, "a worker has refused to start without"
    with _told_to_stop() as stopped:
        ready = wait_for_schema(settings.database_url, _waits, stopped.is_set, sign)
        if ready:
            _name_findings(settings)
    if not ready or stopped.is_set():
        raise SystemExit(0)


def _waits(finding: Finding) -> None:
    log.warning("worker_waits_to_start", **finding.as_json())


def _name_findings(settings: Settings) -> None:
    for finding in check_servers(settings):
        is_fault = finding.severity is Severity.FAULT
        (log.error if is_fault else log.warning)("server_lacks_something", **finding.as_json())


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    """Note a signal to stop: Celery's own handlers come with the consumer."""
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
