"""Celery's consumer as this service runs it, in the worker's parent.

Messages that never become a task, of an unknown task, undecodable, or no message at all, are
logged and dropped by Celery; here they become dead letters first.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

import psycopg
import structlog
from celery.worker import consumer
from kombu import Message

from core import alive, ledger
from core.ledger import DeadLetter
from tasks.app import settings
from tasks.intake import as_json, names_event, told
from tasks.stopping import heeded_between_turns
from tasks.together import Together

EVENTS_EVERY_S = 0.2  # between two batches of task events: what monitors see is so late at most
EVENTS_AT_ONCE = 1000  # task events of one message, some 400 KB; Celery's 24 cost as much again
UNKNOWN = "unknown"  # the task of what was no message: it cannot be replayed
log = structlog.get_logger(__name__)


class Consumer(consumer.Consumer):
    """Celery's consumer, which keeps what it cannot hand to a task.

    Where that fails, because Postgres is away, the message stays unacknowledged and comes again.
    """

    # Celery's own, absent from its types.
    hub: Any
    event_dispatcher: Any
    loop: Callable[..., None]
    _flush_events: Callable[[], None]

    _events_due = 0.0

    def __init__(self, process: Callable[[Any], object], *args: Any, **kwargs: Any) -> None:
        super().__init__(process, *args, **kwargs)
        self.together = Together(self.hub, process)
        self.on_task_request = self.together.add
        if self.hub:
            self.loop = heeded_between_turns(self.hub)(self.loop)

    def on_close(self) -> None:
        """Forget what no process has begun: its broker's connection is lost."""
        super().on_close()
        self.together.forget()

    def on_send_event_buffered(self) -> Any:  # Any: nothing, but Celery's types want something
        """Publish task events a few times a second; Celery does at each turn of its event loop.

        That was half of what a worker's parent did.
        """
        now = monotonic()
        if self.hub and now >= self._events_due:
            self.event_dispatcher.buffer_limit = EVENTS_AT_ONCE
            self._events_due = now + EVENTS_EVERY_S
            self.hub.call_later(EVENTS_EVERY_S, self._flush_events)

    def ensure_connected(self, conn: Any) -> Any:  # Any: Kombu's connection, untyped
        """Connect to the broker; while it is away, show that the worker is well and waits."""
        connect = conn.ensure_connection

        def patiently(errback: Any, max_retries: Any, callback: Callable[[], None]) -> Any:
            def every_second() -> None:
                with suppress(OSError):
                    alive.show(settings.home, self.hostname)
                callback()

            return connect(errback, max_retries, callback=every_second)

        conn.ensure_connection = patiently
        return super().ensure_connected(conn)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Keep a message whose body cannot be decoded."""
        if keep_message(message, exc):
            super().on_decode_error(message, exc)

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Keep what is no Celery message."""
        if keep_message(message, ValueError("this is no Celery message")):
            super().on_unknown_message(body, message)

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Keep a message of a task that this service does not have."""
        if keep_message(message, ValueError(f"there is no task {exc}")):
            super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Keep a message that Celery refuses: another content type, or a malformed header."""
        if keep_message(message, exc):
            super().on_invalid_task(body, message, exc)


def keep_message(message: Message, error: Exception) -> bool:
    """Keep a message as a dead letter; False when that is not possible now."""
    headers: Mapping[str, Any] = message.headers if isinstance(message.headers, Mapping) else {}
    task_id = headers.get("id") or message.properties.get("correlation_id") or message.delivery_tag
    return _keep(str(headers.get("task") or UNKNOWN), str(task_id), _body(message), error)


def keep_junk(queue: str, payload: bytes, why: str) -> bool:
    """Keep bytes that lay in a queue and are no message; False when that is not possible now."""
    body = {"queue": queue, "base64": base64.b64encode(payload).decode()}
    return _keep(UNKNOWN, hashlib.sha256(payload).hexdigest(), body, ValueError(why))


def _body(message: Message) -> object:
    """Return the event of a message, or whatever else it holds."""
    try:
        args, kwargs, _ = json.loads(message.body or "")
    except (ValueError, TypeError, RecursionError):
        raw = message.body if isinstance(message.body, bytes) else str(message.body).encode()
        return {"content_type": message.content_type, "base64": base64.b64encode(raw).decode()}
    named = isinstance(kwargs, dict) and names_event(args, kwargs)
    return kwargs["event"] if named else {"args": args, "kwargs": kwargs}


def _keep(task: str, task_id: str, body: object, error: Exception) -> bool:
    letter = DeadLetter(task, task_id, None, as_json(body), "VALIDATION_ERROR", told(error))
    assert settings.database_url is not None, "a worker has taken this message"
    try:
        with ledger.connect_once(settings.database_url) as conn:
            number = ledger.park(conn, letter)
    except psycopg.Error as away:
        log.warning("dead_letter_not_kept_yet", task=task, task_id=task_id, error=str(away))
        return False
    log.error("dead_letter", code=letter.code, dead_letter=number, task=task, task_id=task_id)
    return True
