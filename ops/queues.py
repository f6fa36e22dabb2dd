"""What waits in each queue, on any broker."""

import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import redis
from amqp.exceptions import AMQPError
from kombu.exceptions import ChannelError, OperationalError

from core.servers.urls import is_redis

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection  # its import takes longer than most answers

ANSWER_S = 2  # for the broker
UNANSWERED = (OperationalError, AMQPError, OSError, redis.RedisError)
UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


@dataclass(frozen=True)
class EventQueue:
    """A queue that events are routed to, as the broker shows it."""

    name: str
    types: frozenset[str]
    messages: int  # that no receiver has taken
    oldest: UUID | None = None  # the id of the event at its head; None: the broker does not show it
    oldest_s: float | None = None  # for how long that event waits; None: unknown
    receivers: int | None = None  # that consume it; None: the broker does not know

    def as_json(self) -> dict[str, object]:
        return {
            "queue": self.name,
            "messages": self.messages,
            "oldest_seconds": self.oldest_s,
            "receivers": self.receivers,
        }


# Celery puts another module in its place while it is imported: a second thread may get the first.
_importing = Lock()


@cache
def app_on(broker_url: str) -> "Celery":
    """Return an app that knows this broker and nothing else."""
    with _importing:
        from celery import Celery  # noqa: PLC0415 - its import takes longer than most answers

        from tasks.servers import set_broker  # noqa: PLC0415 - reads settings, maybe wrong ones

    app = Celery("els-broker", set_as_current=False)
    set_broker(app, broker_url)
    return app


def brief_connection(broker_url: str) -> "Connection":
    """Prepare a connection to the broker that does not wait for long."""
    redis_options = {"socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S}
    options = redis_options if is_redis(broker_url) else {}
    return app_on(broker_url).connection(connect_timeout=ANSWER_S, transport_options=options)


def queue_lengths(broker: "Connection", queues: Sequence[str]) -> dict[str, int]:
    """Count the messages of each queue that no worker has taken; 0 where it is not there yet.

    Raises OSError or OperationalError where the broker does not answer.
    """
    return {queue: look(broker, queue)[0] for queue in queues}


def event_queues(broker: "Connection", types: Mapping[str, frozenset[str]]) -> list[EventQueue]:
    """Look at the queues that events of these types are routed to. Raises as `queue_lengths`."""
    return [_event_queue(broker, name, those) for name, those in types.items()]


def _event_queue(broker: "Connection", name: str, types: frozenset[str]) -> EventQueue:
    messages, consumers = look(broker, name)
    channel: Any = broker.default_channel  # Any: kombu's channels have no types
    if not hasattr(channel, "_q_for_pri"):
        counts = broker.transport.driver_type == "amqp"
        return EventQueue(name, types, messages, receivers=consumers if counts else None)
    head = cast("bytes | None", channel.client.lindex(channel._q_for_pri(name, 0), -1))
    oldest, oldest_s = _event_of(head) if head else (None, 0.0)
    return EventQueue(name, types, messages, oldest, oldest_s)


def _event_of(message: bytes) -> tuple[UUID | None, float | None]:
    """Read the id of the event that a message carries, and its age; None: it carries none."""
    try:
        _, kwargs, _ = json.loads(b64decode(json.loads(message)["body"]))
        time = datetime.fromisoformat(kwargs["event"]["time"]).astimezone(UTC)
        return UUID(kwargs["event"]["id"]), max(0.0, (datetime.now(UTC) - time).total_seconds())
    except (*UNREADABLE, OverflowError):
        return None, None


def look(broker: "Connection", queue: str) -> tuple[int, int]:
    """Count the messages that wait in a queue, and its consumers as the broker knows them.

    Raises OSError or OperationalError where the broker does not answer.
    """
    channel: Any = broker.default_channel  # Any: kombu's channels have no types
    try:
        found = channel.queue_declare(queue, passive=True)
    except ChannelError as error:
        if "NOT_FOUND" not in str(error):  # both brokers use this word
            raise OSError(f"it does not let this command look at queue {queue}: {error}") from error
        return 0, 0  # Redis has no empty queues
    return int(found.message_count), int(found.consumer_count)
