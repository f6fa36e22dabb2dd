"""Declares again what somebody has deleted on RabbitMQ, and checks the policies.

A worker learns that a queue is gone, but not that an exchange or a binding is. It cannot see a
binding at all: so it binds again every few seconds, which changes nothing as a rule. Where somebody
has deleted a queue and declared it again, its consumers have to connect again (`amqp_marks`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from threading import Event, Thread
from time import monotonic
from typing import Any

import structlog
from amqp.exceptions import AccessRefused, ChannelError
from celery import Celery
from kombu import Connection
from kombu.transport import pyamqp
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_NUMBER_OF_BITS_TO_USE,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)

from core.faults import describe
from core.servers.rabbitmq import missing
from tasks.worker import amqp_policy
from tasks.worker.amqp_delays import delayed_queues
from tasks.worker.amqp_dropped import LEFT_S, dead_queue
from tasks.worker.amqp_marks import marked

EVERY_S = 5.0
DELAYS_EVERY_S = 60.0  # more than a hundred questions
POLICIES_EVERY_S = 300.0  # each check makes a queue and deletes it
LEVELS = [level_name(level) for level in range(MAX_NUMBER_OF_BITS_TO_USE)]

log = structlog.get_logger(__name__)


class Restoring:
    """A thread of a worker's main process, with a connection of its own."""

    def __init__(self, app: Celery, reconnect: Callable[[], None]) -> None:
        """Take what makes the worker connect and consume again."""
        self._app, self._reconnect = app, reconnect
        self._queue = str(app.conf.task_default_queue)
        self._asked = Event()
        self._not_allowed: set[str] = set()
        self._marks: Mapping[str, str] = {}
        self._thread = Thread(target=self._run, name="els-restoring", daemon=True)

    def start(self) -> None:
        """Begin, where it has not begun: all is declared."""
        if not self._thread.is_alive():
            self._thread.start()

    def watch(self, marks: Mapping[str, str]) -> None:
        """Watch these marks of queues from now on: the worker is about to consume."""
        self._marks = marks

    def now(self) -> None:
        """Restore everything at once: a message found no queue."""
        self._asked.set()

    def _run(self) -> None:
        while True:
            try:
                with self._app.connection_for_write() as connection:
                    self._keep(connection)
            except Exception as error:  # noqa: BLE001 - py-amqp's, of a connection that has ended
                log.info("restoring_waits_for_the_broker", error=describe(error))
                self._pause()

    def _pause(self) -> bool:
        """Wait for the next round; tell whether somebody asked for it."""
        asked = self._asked.wait(EVERY_S)
        self._asked.clear()
        return asked

    def _keep(self, connection: Connection) -> None:
        """Restore until the connection ends. Raises AMQPError, KombuError or OSError."""
        delays_at = policies_at = left_at = -inf
        self._not_allowed.clear()
        asked = False
        while True:
            delays = asked or monotonic() - delays_at > DELAYS_EVERY_S
            self._restore(connection, delays=delays, asked=asked)
            self._reconnect_if_replaced(connection.default_channel)
            delays_at = monotonic() if delays else delays_at
            if monotonic() - policies_at > POLICIES_EVERY_S:
                policies_at = monotonic()
                with self._if_allowed("policies"):
                    amqp_policy.check(connection, self._queue)
                    queues = self._app.amqp.queues.consume_from
                    amqp_policy.check_each(self._app, connection, queues)
            if monotonic() - left_at > LEFT_S:
                left_at = monotonic()
                with self._if_allowed("a message left to wait"):
                    amqp_policy.leave_one(connection, self._queue)
            asked = self._pause()

    def _restore(self, connection: Connection, *, delays: bool, asked: bool) -> None:
        channel = connection.default_channel
        queues = [*self._app.amqp.queues.consume_from.values(), dead_queue(self._queue)]
        for queue in (each for each in queues if each.name not in self._not_allowed):
            if gone := [*missing(channel, queue.name, queue.exchange.name)]:
                log.error("deleted_by_somebody", name=queue.name, deleted=gone)
                with self._if_allowed(queue.name):
                    queue(channel).declare()
            self._bind(channel, queue.name, queue.exchange.name, queue.routing_key)
        if delays and "delays" not in self._not_allowed:
            self._restore_delays(connection, asked=asked)
        for name in delayed_queues(self._app):
            self._bind(channel, name, CELERY_DELAYED_DELIVERY_EXCHANGE, f"#.{name}")

    def _reconnect_if_replaced(self, channel: Any) -> None:  # Any: Kombu's
        marks = self._marks
        others = [name for name, each in marks.items() if not marked(channel, each)]
        if others and marks is self._marks:  # else the worker has connected again by itself
            log.error("queue_declared_again_by_somebody", names=others, then="connects again")
            self._marks = {}
            self._reconnect()

    def _restore_delays(self, connection: Connection, *, asked: bool) -> None:
        channel = connection.default_channel
        if gone := [name for name in LEVELS if [*missing(channel, name, name)]]:
            log.error("deleted_by_somebody", names=gone, deleted=["exchange or queue"])
        if gone or asked:
            with self._if_allowed("delays"):
                declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")

    def _bind(self, channel: Any, queue: str, exchange: str, key: str) -> None:  # Any: Kombu's
        binding = f"{exchange} to {queue}"
        if binding not in self._not_allowed:  # else RabbitMQ would log that each time
            with self._if_allowed(binding):
                pyamqp.Channel.queue_bind(channel, queue, exchange, key)

    @contextmanager
    def _if_allowed(self, what: str) -> Iterator[None]:
        """Leave out what this account may not do, or what waits for another part."""
        try:
            yield
        except ChannelError as refused:
            say = log.debug if what in self._not_allowed else log.warning
            say("not_restored", what=what, error=describe(refused))
            if isinstance(refused, AccessRefused):
                self._not_allowed.add(what)
