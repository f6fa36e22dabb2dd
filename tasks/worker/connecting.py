"""A worker connects to its broker however long that takes, and sends heartbeats meanwhile."""

import time
from collections.abc import Callable
from typing import Any

from amqp.exceptions import ChannelError, NotAllowed, ResourceError
from celery.worker import state

import durable_redis
from tasks.worker import heartbeat

# RabbitMQ's answers, of which none gets better by asking at once: rights, limits, queues of others.
DENIED = (ChannelError, NotAllowed, ResourceError)


def wait_for_broker(connection: Any, worker: str) -> None:  # Any: Kombu's connection, untyped
    """Make `connection.ensure_connection` wait without end for a broker that takes writes."""
    connect = connection.ensure_connection

    def patiently(errback: Any, _: Any, callback: Callable[[], None]) -> Any:
        def every_second() -> None:
            heartbeat.send(worker)
            callback()

        def failed(error: Exception, interval_s: float) -> None:
            if not durable_redis.note_refusal(error, while_connecting=True):
                errback(error, interval_s)

        longest_s = durable_redis.LONGEST_PAUSE_S
        connected = connect(failed, None, 1, 1, longest_s, callback=every_second)
        durable_redis.await_writes(connection, every_second)
        return connected

    connection.ensure_connection = patiently


def pause_if_denied(error: Exception, worker: str) -> None:
    """Wait for 1 to 10 s where RabbitMQ is there and refuses this worker; say so meanwhile.

    Raises WorkerShutdown or WorkerTerminate, as Celery does, where somebody stops the worker.
    """
    if not isinstance(error, DENIED):
        return
    longest_s = min(max(heartbeat.note_refusal(worker, error), 1.0), durable_redis.LONGEST_PAUSE_S)
    until = time.monotonic() + longest_s
    while time.monotonic() < until:
        state.maybe_shutdown()
        heartbeat.send(worker)
        time.sleep(min(1.0, longest_s))
