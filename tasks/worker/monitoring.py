"""What a worker sends to monitors, Flower above all: three events of each task."""

from time import monotonic
from typing import Any

from celery.events import EventDispatcher

FLUSHED_EVERY_S = 0.2  # monitors get an event so late at most
FLUSHED_AT_ONCE = 1000  # task events of one message, some 400 KB; Celery's 24 cost as much again


class EventFlush:
    """Publishes a consumer's task events a few times a second.

    Celery does at each turn of its event loop, which takes 14 % more of a worker's CPU time.
    """

    def __init__(self, consumer: Any) -> None:  # Any: Celery's, untyped
        self._consumer = consumer
        self._due = 0.0

    def schedule(self) -> None:
        """Flush in a moment, unless that is scheduled."""
        now = monotonic()
        if now >= self._due:
            self._consumer.event_dispatcher.buffer_limit = FLUSHED_AT_ONCE
            self._due = now + FLUSHED_EVERY_S
            self._consumer.hub.call_later(FLUSHED_EVERY_S, self._consumer._flush_events)


class Dispatcher(EventDispatcher):
    """Celery's, except that it tries once: else a heartbeat holds the main loop in an outage."""

    def send(self, type: str, *args: Any, **fields: Any) -> None:  # noqa: A002 - as Celery calls it
        super().send(type, *args, **{**fields, "retry": False})
