"""Sets up RabbitMQ before a worker's first message: delays, and the queue of dropped messages."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog
from amqp.exceptions import ChannelError
from celery import Celery, bootsteps
from celery.worker.consumer.delayed_delivery import DelayedDelivery
from celery.worker.consumer.tasks import Tasks
from kombu import Consumer

from core.faults import describe
from tasks.worker.amqp import Channel
from tasks.worker.amqp_delays import bind_to_delays, delayed_queues, sending_back_far_etas
from tasks.worker.amqp_dropped import Keeper, dead_name, dead_queue, drop
from tasks.worker.amqp_marks import mark
from tasks.worker.amqp_policy import returning_checks
from tasks.worker.amqp_restoring import Restoring

DROPPED_AT_ONCE = 10  # dropped messages that a worker holds

log = structlog.get_logger(__name__)


@contextmanager
def _or_without(event: str) -> Iterator[None]:
    try:
        yield
    except ChannelError as refused:  # py-amqp opens the channel again
        log.warning(event, error=describe(refused))


def _reconnect(worker: Any) -> None:  # Any: Celery's consumer, untyped
    """End the connection of the event loop, from another thread: the loop makes a new one."""
    worker.queue_deleted = True
    connected = getattr(worker.connection, "_connection", None)
    if sock := getattr(getattr(connected, "transport", None), "sock", None):
        with suppress(OSError):  # it has ended by itself
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # below TLS, where the loop waits


class Queues(bootsteps.StartStopStep):
    """Does so each time the worker connects."""

    requires = (Tasks, DelayedDelivery)

    def __init__(self, worker: Any, **kwargs: Any) -> None:  # Any: Celery's consumer, untyped
        self._dropped: Consumer | None = None
        self._restoring: Restoring | None = None
        super().__init__(worker, **kwargs)

    def start(self, worker: Any) -> None:  # Any: as above
        """Prepare RabbitMQ, and consume dropped messages.

        If RabbitMQ refuses a part, because a right is missing, the worker works without it.
        """
        app: Celery = worker.app
        queue = str(app.conf.task_default_queue)
        Channel.on_drop = staticmethod(lambda message: drop(app, message))
        handler = type(worker).create_task_handler
        worker.create_task_handler = lambda: returning_checks(
            sending_back_far_etas(worker, handler(worker))
        )
        channel = worker.connection.channel()
        with _or_without("delays_not_bound"):
            for name in delayed_queues(app):
                bind_to_delays(channel, name)
        self._restoring = self._restoring or Restoring(app, lambda: _reconnect(worker))
        with _or_without("deleted_queues_may_go_unnoticed"), worker.connection.channel() as asking:
            dead_queue(queue)(asking).declare()
            names = (*app.amqp.queues.consume_from, dead_name(queue))
            self._restoring.watch({name: mark(asking, queue, name) for name in names})
        # From now on nothing may be asked on this channel: a refusal would end its consumer.
        with _or_without("dropped_messages_not_consumed"):
            keeper = Keeper(worker, self._restoring.now)
            self._dropped = Consumer(
                channel,
                [dead_queue(queue)],
                on_message=keeper.keep,
                on_decode_error=lambda message, _: keeper.keep(message),
            )
            self._dropped.qos(prefetch_count=DROPPED_AT_ONCE)
            self._dropped.consume()
        self._restoring.start()

    def stop(self, worker: Any) -> None:  # Any: as above
        dropped, self._dropped = self._dropped, None
        if dropped and worker.connection:
            try:
                dropped.cancel()
            except worker.connection_errors + worker.channel_errors as error:
                log.debug("not_cancelled", error=describe(error))

    shutdown = stop
