"""Celery's consumer as this service runs it, in the worker's parent."""

from collections.abc import Callable
from typing import Any

import structlog
from amqp.exceptions import ConsumerCancelled
from celery.worker import consumer
from kombu import Message
from kombu.exceptions import DecodeError

import durable_redis
from core.catalogue import unknown_task
from core.errors import NotExecuted
from tasks.worker import amqp
from tasks.worker.batching import Batcher
from tasks.worker.connecting import pause_if_denied, wait_for_broker
from tasks.worker.monitoring import EventFlush
from tasks.worker.request import QuietRequest
from tasks.worker.screening import Screen, UnknownTask
from tasks.worker.stopping import stop_between_turns
from tasks.worker.undeliverable import Undeliverable

REFUSED_BY_CELERY = "Celery cannot make a task of it; the worker's log says why"
log = structlog.get_logger(__name__)


class Consumer(consumer.Consumer):
    """Celery's consumer, with other parts."""

    # Celery's own, absent from its types.
    app: Any
    hub: Any
    pool: Any
    loop: Callable[..., None]

    queue_deleted = False  # by somebody, so that this worker has to connect again

    def __init__(self, process: Callable[[Any], object], *args: Any, **kwargs: Any) -> None:
        if not kwargs["app"].conf.worker_enable_remote_control:  # these listen to others as well
            quiet = {"without_gossip": True, "without_mingle": True}
            kwargs["worker_options"] = {**(kwargs.get("worker_options") or {}), **quiet}
        super().__init__(process, *args, **kwargs)
        QuietRequest.pool = self.pool
        self.batcher = Batcher(self.hub, process)
        self.on_task_request = self.batcher.add
        self.undeliverable = Undeliverable(self)
        if self.hub:
            self.loop = stop_between_turns(self.hub)(self.loop)
            # Celery calls it; its types take it for something else.
            self.on_send_event_buffered: Any = EventFlush(self).schedule

    def on_close(self) -> None:
        """Forget what no process has begun: its broker's connection is lost, and redelivers it."""
        super().on_close()
        if self.queue_deleted:
            self.batcher.go_on()
        else:
            self.batcher.forget()
        self.queue_deleted = False

    def ensure_connected(self, conn: Any) -> Any:  # Any: Kombu's connection, untyped
        """Connect to the broker, however long that takes."""
        wait_for_broker(conn, self.hostname)
        return super().ensure_connected(conn)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Reconnect, after a pause if the broker is there and refuses."""
        durable_redis.note_refusal(exc)
        amqp.note_loss()
        self.queue_deleted |= isinstance(exc, ConsumerCancelled)
        super().on_connection_error_after_connected(exc)
        pause_if_denied(exc, self.hostname)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Connect again, after such a pause."""
        super().on_connection_error_before_connected(exc)
        pause_if_denied(exc, self.hostname)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Make what gets each message: it screens one that calls a task, and keeps the others."""
        handle: Callable[[Message], None] = super().create_task_handler(*args, **kwargs)
        screen = Screen(self.app)

        def on_message(message: Message) -> None:
            try:
                screen.check(message)
            except UnknownTask as error:
                self.undeliverable.keep(message, error, error.code)
            except (*durable_redis.MALFORMED, DecodeError) as error:
                self.on_decode_error(message, error)
            else:
                handle(message)

        return on_message

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Keep a message whose body nobody can decode, or that is too large for that."""
        too_deep = isinstance(exc.__context__, RecursionError)
        too_large = too_deep or isinstance(exc, durable_redis.BodyTooLarge)
        code = "VALIDATION_ERROR" if too_large else "MALFORMED_MESSAGE"
        error = NotExecuted(durable_redis.why(exc, errors=message.errors))
        self.undeliverable.keep(message, error, code)

    def on_unknown_message(self, body: object, message: Message) -> None:
        error = NotExecuted("this is no Celery message")
        self.undeliverable.keep(message, error, "MALFORMED_MESSAGE")

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        error = UnknownTask(unknown_task(str(message.headers["task"])))
        self.undeliverable.keep(message, error, error.code)

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Keep a message that Celery refuses, though the screen let it pass."""
        log.error("message_refused_by_celery", exc_info=exc)
        self.undeliverable.keep(message, NotExecuted(REFUSED_BY_CELERY), "MALFORMED_MESSAGE")
