"""A worker connects to its broker however long that takes, and sends heartbeats meanwhile."""

from collections.abc import Callable
from typing import Any

import durable_redis
from tasks.worker import heartbeat


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
