"""Celery's consumer as this service runs it, in the worker's parent.

Messages that never become a task, of an unknown task, undecodable, or no message at all, are
logged and dropped by Celery; here they become dead letters first.
"""

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from celery import signals
from celery.worker import consumer
from kombu import Message

import durable_redis
from core.db.dead_letters import DeadLetter
from tasks.dead_letters import keep_if_possible, letter_of_message
from tasks.worker import heartbeat, stopping
from tasks.worker.batching import Batcher
from tasks.worker.request import QuietRequest
from tasks.worker.stopping import heeded_between_turns

EVENTS_EVERY_S = 0.2  # between two batches of task events: what monitors see is so late at most
KEEP_AGAIN_S = 5  # before a dead letter that could not be written is tried again
EVENTS_AT_ONCE = 1000  # task events of one message, some 400 KB; Celery's 24 cost as much again
logger = logging.getLogger(__name__)  # Kombu writes to it


class Consumer(consumer.Consumer):
    """Celery's consumer, which keeps what it cannot hand to a task as a dead letter."""

    # Celery's own, absent from its types.
    hub: Any
    pool: Any
    timer: Any
    connection_errors: Any
    event_dispatcher: Any
    loop: Callable[..., None]
    _flush_events: Callable[[], None]

    _events_due = 0.0

    def __init__(self, process: Callable[[Any], object], *args: Any, **kwargs: Any) -> None:
        super().__init__(process, *args, **kwargs)
        QuietRequest.pool = self.pool
        self.batcher = Batcher(self.hub, process)
        self.on_task_request = self.batcher.add
        if self.hub:
            self.loop = heeded_between_turns(self.hub)(self.loop)

    def on_close(self) -> None:
        """Forget what no process has begun: its broker's connection is lost."""
        super().on_close()
        self.batcher.forget()

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
        """Connect to the broker, however long that takes, and show that the worker is well."""
        connect = conn.ensure_connection

        def patiently(errback: Any, _: Any, callback: Callable[[], None]) -> Any:
            def every_second() -> None:
                heartbeat.show(self.hostname)
                callback()

            def failed(error: Exception, interval_s: float) -> None:
                if not durable_redis.note_refusal(error, while_connecting=True):
                    errback(error, interval_s)

            longest_s = durable_redis.LONGEST_PAUSE_S
            connected = connect(failed, None, 1, 1, longest_s, callback=every_second)
            durable_redis.await_writes(conn, every_second)
            return connected

        conn.ensure_connection = patiently
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Connect again, after a pause where the broker is there and refuses."""
        durable_redis.note_refusal(exc)
        super().on_connection_error_after_connected(exc)

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Keep a message whose body cannot be decoded."""
        self.keep(message, exc, "MALFORMED_MESSAGE")

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Keep what is no Celery message."""
        self.keep(message, ValueError("this is no Celery message"), "MALFORMED_MESSAGE")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Keep a message of a task that this service does not have."""
        self.keep(message, ValueError(f"there is no task {exc}"), "UNKNOWN_TASK")

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Keep a message that Celery refuses: another content type, or a malformed header."""
        self.keep(message, exc, "MALFORMED_MESSAGE")

    def keep(self, message: Message, error: Exception, code: str) -> None:
        """Have a process of the pool write a dead letter, and acknowledge the message then."""
        letter = letter_of_message(message, error, code)
        if self.hub:
            self.hub.call_soon(self._write, message, letter)  # the pool works once the loop turns
        else:
            self._write(message, letter)

    def _write(self, message: Message, letter: DeadLetter) -> None:
        release = partial(self._release, message, letter)
        self.pool.apply_async(keep_if_possible, args=(letter,), callback=release)

    def _release(self, message: Message, letter: DeadLetter, kept: int | None) -> None:
        """Acknowledge what is kept; hold the rest, and try again.

        It is not given back: RabbitMQ drops what comes back too often.
        """
        if kept is not None:
            message.ack_log_error(logger, self.connection_errors)
        elif not stopping.asked():  # else it goes back when the channel is closed
            self.timer.call_after(KEEP_AGAIN_S, self._write, (message, letter))


@signals.heartbeat_sent.connect
def _show_life(sender: Any, **_: object) -> None:  # Any: Celery's heart, untyped
    heartbeat.show(sender.eventer.hostname)
