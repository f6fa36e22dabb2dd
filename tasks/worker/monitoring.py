"""What a worker sends to monitors, Flower above all: three events of each task.

Ours hold ids and no arguments. Other programs on the same broker send events too, with all that
their messages say: what we run to watch events hides that.
"""

from time import monotonic, time
from typing import Any, ClassVar

from celery.events import EventDispatcher
from celery.events.receiver import EventReceiver
from celery.utils.time import utcoffset

from core.redaction import HIDDEN, task_id

GROUP, TASK = "task", "task-"  # the events of tasks: their group, and how their types begin
IDS = ("uuid", "root_id", "parent_id")
PLAIN = {  # fields that say nothing of what a message says
    *IDS,
    *("type", "name", "hostname", "pid", "clock", "timestamp", "utcoffset", "local_received"),
    *("queue", "exchange", "routing_key", "retries", "runtime", "terminated", "expired", "signum"),
}
CONCEALED = "concealed"  # a field of our workers' events: they hide it themselves
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
    """Celery's, except that it tries once: else a heartbeat holds the main loop in an outage.

    It writes an event of a task in less than half the time; each message has three.
    """

    # Celery's own, absent from its types.
    buffer_group: frozenset[str]
    buffer_limit: int
    clock: Any
    on_send_buffered: Any
    pid: int
    _group_buffer: dict[str, list[dict[str, Any]]]

    _utcoffset = utcoffset()

    def send(self, type: str, *args: Any, **fields: Any) -> None:  # noqa: A002 - as Celery calls it
        if type.startswith(TASK):
            for name in IDS:
                if given := fields.get(name):
                    fields[name] = task_id(given)
            fields[CONCEALED] = True
            if self.enabled and GROUP in self.buffer_group:
                self._buffer(type, fields)
                return
        super().send(type, *args, **{**fields, "retry": False})

    def _buffer(self, type_: str, fields: dict[str, Any]) -> None:  # Any: JSON
        fields |= {
            "type": type_,
            "timestamp": time(),
            "utcoffset": self._utcoffset,
            "hostname": self.hostname,
            "pid": self.pid,
            "clock": self.clock.forward(),
        }
        buffered = self._group_buffer[GROUP]
        buffered.append(fields)
        if len(buffered) >= self.buffer_limit:
            self.flush()
        elif self.on_send_buffered:
            self.on_send_buffered()

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Publish what is buffered."""
        self._utcoffset = utcoffset()  # once a message of events: summer time may have begun
        super().flush(errors, groups)


class Receiver(EventReceiver):
    """Celery's, for Flower and `celery events`: it hides what others say of their messages."""

    app: Any  # Celery's own: of this program
    names: ClassVar[frozenset[str]] = frozenset()  # of tasks of others that are shown

    def wakeup_workers(self, channel: Any = None) -> None:  # Any: Kombu's, untyped
        """Ask the workers to say that they are there, where they listen."""
        if self.app.conf.worker_enable_remote_control:
            super().wakeup_workers(channel=channel)

    def event_from_message(self, body: Any, *args: Any, **kwargs: Any) -> Any:  # Any: Celery's
        kind, event = super().event_from_message(body, *args, **kwargs)
        if kind.startswith(TASK) and not event.pop(CONCEALED, False):
            event.update((name, HIDDEN) for name in event.keys() - PLAIN if event[name])
            event.update((name, task_id(event[name])) for name in IDS if event.get(name))
            if event.get("name") not in self.names and event.get("name") not in self.app.tasks:
                event["name"] = HIDDEN
        return kind, event
