"""Celery's beat without a memory and without a wall clock; of several, one leads.

Celery's own keeps the time of each tick in a file and compares it with the host's clock: after a
correction of the clock it sends nothing for as long as the clock was ahead.
"""

import socket
from math import inf
from time import monotonic
from typing import Any, NamedTuple

import redis
import structlog
from celery import beat
from kombu import Connection

from core.errors import BadSettings
from core.faults import describe
from core.servers.urls import is_amqp
from core.signs import health_file, heartbeat
from tasks.app import settings
from tasks.worker.clients import brief_redis
from tasks.worker.lease import RENEW_S, Lease

ANSWER_S = 2.0  # for a broker to answer; meanwhile beat sends nothing
WAIT_S = 20.0  # for a tick that no worker begins, before another is sent: the first may be lost
LONGEST_WAIT_S = 300.0  # it doubles up to this, so that a day without workers leaves 300 ticks
BLIND_WAIT_S = 5.0  # between two ticks while Redis does not say whether the last was begun
TIMEOUTS = {"socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S}

log = structlog.get_logger(__name__)


class Sent(NamedTuple):
    """When the last tick of a task was sent, and how long it may wait for a worker."""

    at: float
    wait_s: float


class Scheduler(beat.Scheduler):
    """Sends ticks: messages of tasks that run at an interval. Does so only while it leads.

    It does not send a tick while no worker has begun the one before, so they do not pile up while
    the workers are away. A broker or a Redis that is away, hangs or refuses does not stop it.
    """

    schedule: dict[str, Any]  # Celery's entries, absent from its types
    Producer: Any  # likewise

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as Celery calls it
        try:
            settings.refuse_eager("beat")
            brief_redis()
        except BadSettings as error:
            raise SystemExit(f"els: {error}") from error
        self._broker: Connection | None = None
        self._due_at: dict[str, float] = {}  # monotonic time of each task; one that is new is due
        self._sent: dict[str, Sent] = {}
        self._well = True
        self._lease = Lease(settings.queue)
        super().__init__(*args, **kwargs)

    def tick(self, *args: Any, **kwargs: Any) -> float:  # Any: as Celery calls it
        """Send a tick if one is due and this beat leads; return the seconds until the next turn."""
        health_file.touch(settings.home, socket.gethostname(), "beat")
        if not self._lease.leads():
            return RENEW_S
        entry = min(self.schedule.values(), key=lambda each: self._due_at.get(each.task, -inf))
        now = monotonic()
        if (due_at := self._due_at.get(entry.task, -inf)) > now:
            return min(due_at - now, RENEW_S)
        self._due_at[entry.task] = now + entry.schedule.seconds
        self.apply_entry(entry)
        return 0

    def apply_entry(self, entry: Any, producer: object = None) -> None:  # Any: as above
        """Send a tick unless the last one waits; log a failure. The next interval tries again."""
        try:
            self._send(entry)
        except Exception as error:  # noqa: BLE001 - whatever it is, beat goes on
            if self._well:
                log.warning("ticks_not_sent", task=entry.task, error=describe(error))
            self._well = False
        else:
            if not self._well:
                log.info("ticks_sent_again", task=entry.task)
            self._well = True

    def _send(self, entry: Any) -> None:
        kept = self._broker is not None
        self._connect()
        if self._may_send(entry.task):
            self._publish(entry, again=kept)

    def _may_send(self, task: str) -> bool:
        """Tell whether the last tick was begun, or has waited so long that it may be lost."""
        now, last, begun = monotonic(), self._sent.get(task), _begun(task)
        if last is None or begun:
            self._sent[task] = Sent(now, WAIT_S)
            return True
        if now - last.at < (BLIND_WAIT_S if begun is None else last.wait_s):
            return False
        wait_s = last.wait_s if begun is None else min(last.wait_s * 2, LONGEST_WAIT_S)
        self._sent[task] = Sent(now, wait_s)
        return True

    def _publish(self, entry: Any, *, again: bool) -> None:
        """Publish a tick; `again` on another connection, as this one may have been dead for long.

        Without an answer the tick counts as sent: a broker that hung may find it later.
        """
        try:
            producer = self.Producer(self._broker, auto_declare=False)
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:
            self._disconnect()
            if _timed_out(error):
                raise
            self._sent.pop(entry.task, None)
            if not again:
                raise
            self._connect()
            self._publish(entry, again=False)

    def _connect(self) -> None:
        """Connect to the broker if that is not done.

        Either transport waits for an answer. So beat sends nothing to a broker that hangs, which
        would deliver it all later.
        """
        if self._broker:
            return
        amqp = is_amqp(str(self.app.conf.broker_url))
        broker = self.app.connection_for_write(
            connect_timeout=ANSWER_S, transport_options={} if amqp else TIMEOUTS
        )
        broker.ensure_connection(
            max_retries=len(broker.alt), interval_start=0, interval_step=0, interval_max=0
        )
        if amqp:  # its own option does not end a read
            broker.connection.sock.settimeout(ANSWER_S)
        self._broker = broker

    def _disconnect(self) -> None:
        """Forget the connection without a farewell, which takes too long where a broker hangs."""
        broker, self._broker = self._broker, None
        if broker:
            broker.collect()

    def close(self) -> None:
        """Close the connection, and let another beat lead."""
        self._disconnect()
        self._lease.resign()


def _begun(task: str) -> bool | None:
    """Tell whether a worker has begun the last tick; None: Redis does not say."""
    try:
        return heartbeat.may_send_tick(brief_redis(), settings.queue, task)
    except redis.RedisError:
        return None


def _timed_out(error: BaseException | None) -> bool:
    """Tell whether an error, or one of its causes, is a timeout."""
    while error and not isinstance(error, TimeoutError | redis.TimeoutError):
        error = error.__cause__ or error.__context__
    return error is not None
