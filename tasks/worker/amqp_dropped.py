"""Messages that RabbitMQ drops: expired, over a limit of the queue, or without a queue.

A policy makes RabbitMQ publish these messages to the exchange `<queue>.dead` (`amqp_policy`). Each
worker consumes the queue bound to it. What expired by its sender's wish, or what a worker rejected,
becomes a dead letter; the other messages have done nothing wrong, and go back to their queue.
"""

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any
from uuid import uuid4

import structlog
from amqp.exceptions import AMQPError
from celery import Celery
from kombu import Exchange, Message, Queue
from kombu.exceptions import KombuError

from core.errors import NotExecuted
from core.faults import describe
from tasks.worker.amqp import RETURNED, forward

DROPPED = "els-dropped"  # a header: why a worker dropped the message
CHECK = "els-check"  # a header of the message that checks the policy
CODES = {"expired": "EXPIRED", "rejected": "MALFORMED_MESSAGE"}
# RabbitMQ's words; a sender may write others into the header. Its delivery limit counts closed
# connections as well: `deaths` counts the processes that died.
REASONS = (*CODES, "maxlen", "delivery_limit")
OUTLIVED = "time to live of the queue"
UNROUTABLE = "no queue"
NOT_ITS_FAULT = ("delivery_limit", OUTLIVED, UNROUTABLE)
DELAYED = "celery_delayed_"  # begin of the names of exchanges and queues that delay
AGAIN_S = 1  # before a message is put back that could not be
LEFT_S = 3600  # until a worker leaves the next message to wait

log = structlog.get_logger(__name__)


def dead_name(queue: str) -> str:
    """Name the exchange and the queue of dropped messages."""
    return f"{queue}.dead"


def check_name(queue: str) -> str:
    """Name a queue or exchange by which a worker checks something: nobody else knows the name."""
    return f"{queue}.check-{uuid4().hex}"


def left_name(queue: str) -> str:
    """Name the queue where messages wait, so that a policy which also limits `els.dead` shows."""
    return f"{queue}.check-{dead_name(queue)}"


def dead_queue(queue: str) -> Queue:
    """Describe the queue of dropped messages: it gets all that its exchange gets."""
    name = dead_name(queue)
    arguments = {"x-queue-type": "quorum"}
    return Queue(name, Exchange(name, type="topic"), routing_key="#", queue_arguments=arguments)


def drop(app: Celery, message: Message) -> None:
    """Hand over a message that this worker rejects. Raises OperationalError or OSError."""
    name = dead_name(str(app.conf.task_default_queue))
    exchange = Exchange(name, type="topic", no_declare=True)
    forward(app, message, exchange, name, {DROPPED: "rejected"})


class Keeper:
    """Puts a dropped message back into its queue, or writes a dead letter."""

    def __init__(self, worker: Any, restore: Callable[[], None]) -> None:  # Any: Celery's consumer
        self._worker, self._restore = worker, restore
        conf = worker.app.conf
        self._ticks = {entry["task"] for entry in conf.beat_schedule.values()}
        self._queue = str(conf.task_default_queue)
        self._queues = {queue.name for queue in conf.task_queues}

    def keep(self, message: Message) -> None:
        """Keep a message; let go of one that nobody misses."""
        given = message.headers.get("task")
        task = given if isinstance(given, str) else ""  # a sender may write anything
        reason, queue = self._why_dropped(message)
        if CHECK in message.headers or (task in self._ticks and reason != UNROUTABLE):
            if (reason, queue) == (OUTLIVED, left_name(self._queue)):
                outlived.note()
            message.ack_log_error(log, self._worker.connection_errors)
            return
        if queue in self._queues and reason in NOT_ITS_FAULT:
            self._put_back(message, reason, queue)
            return
        code = CODES.get(reason, "REVOKED")
        if code == "MALFORMED_MESSAGE" and task not in self._worker.app.tasks:
            code = "UNKNOWN_TASK"
        self._worker.undeliverable.keep(
            message, NotExecuted(f"RabbitMQ dropped it: {reason}"), code
        )

    def _why_dropped(self, message: Message) -> tuple[str, str]:
        """Return why a message is here, and the queue that it was meant for.

        A message that found no queue still names the exchange to which somebody sent it.
        """
        exchange = str(message.delivery_info.get("exchange"))
        if exchange == dead_name(self._queue):
            return why_dropped(message.headers), str(_death(message.headers).get("queue"))
        if exchange.startswith(DELAYED):  # these lead to `els` alone: a sender may write to them
            key = str(message.delivery_info.get("routing_key"))
            return UNROUTABLE, self._queue if key.endswith(f".{self._queue}") else ""
        return UNROUTABLE, exchange

    def _put_back(self, message: Message, reason: str, queue: str) -> None:
        """Send a message to its queue, whatever exchange is missing; try again if that is, too."""
        if reason == UNROUTABLE:
            unroutable.note()
            self._restore()
        returned = {} if reason == UNROUTABLE else {RETURNED: reason}
        try:
            forward(self._worker.app, message, Exchange(""), queue, returned)
        except (AMQPError, KombuError, OSError) as error:
            log.warning("message_not_put_back_yet", queue=queue, error=describe(error))
            self._worker.timer.call_after(AGAIN_S, self._put_back, (message, reason, queue))
            return
        log.warning("message_put_back", queue=queue, dropped=reason)
        message.ack_log_error(log, self._worker.connection_errors)


class Recent:
    """What this process has seen, until it has not seen it for a while."""

    def __init__(self, shown_s: float) -> None:
        self._number, self._at, self._shown_s = 0, 0.0, shown_s

    def note(self) -> None:
        self._number, self._at = self._number + 1, monotonic()

    @property
    def number(self) -> int:
        """How often it was seen; 0 where that is long ago."""
        return self._number if self._number and monotonic() - self._at < self._shown_s else 0


unroutable = Recent(shown_s=600)  # messages that found no queue
outlived = Recent(shown_s=2 * LEFT_S)  # messages that were left where nobody takes them


def why_dropped(headers: Mapping[str, Any]) -> str:  # Any: AMQP's
    """Return why a message was dropped, most often in RabbitMQ's word.

    A message without an expiration of its own has outlived a limit that an administrator gave to
    the queue.
    """
    if DROPPED in headers:
        return "rejected"
    death = _death(headers)
    reason = death.get("reason")
    if reason == "expired" and "original-expiration" not in death:
        return OUTLIVED
    return str(reason) if reason in REASONS else "unknown"


def _death(headers: Mapping[str, Any]) -> Mapping[str, Any]:  # Any: as above
    """Return what RabbitMQ says of the last drop; nothing if a sender wrote something else.

    A message that was delayed has "expired" in each queue of the delays, which is no drop.
    """
    deaths = headers.get("x-death")
    real = (
        death
        for death in (deaths if isinstance(deaths, list) else [])
        if isinstance(death, dict) and not str(death.get("queue")).startswith(DELAYED)
    )
    return next(real, {})
