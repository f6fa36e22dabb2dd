"""Queues that are filled out of the workers' sight and handed over at once.

So the time of a drain holds no publishing: it runs from the handing over to the last message done.
"""

import base64
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, cast
from uuid import uuid4

import redis
from amqp.exceptions import NotFound
from amqp.spec import Basic
from celery import Celery
from kombu import Connection, Exchange, Producer, Queue

from core.servers.urls import is_amqp

STAGE = "bench.stage"
TEMPLATE = "bench.template"
ARRIVAL_S = 1  # at most, until refused messages are where they go
FILLED_AT_ONCE = 5_000  # messages
OURS = (".internal", ".control")  # ends of the names of the queues that our workers write to
UNACKED = "unacked"  # where Kombu notes what workers hold

Json = dict[str, Any]  # Any: JSON


@dataclass(frozen=True)
class Message:
    """A task to be called."""

    task: str
    kwargs: Json = field(default_factory=dict)
    keep_result: bool = False


class Queues(Protocol):
    """The queues of one broker."""

    def stage(self, queue: str, messages: Sequence[Message]) -> None:
        """Write messages for a queue where its workers do not see them."""

    def release(self, queue: str, *, await_first: bool) -> None:
        """Let the workers see them, all at once; `await_first` unless they may take all by then."""

    def fill(self, queue: str, messages: Iterable[Message]) -> None:
        """Write many messages into a queue whose workers have not started."""

    def waiting(self, queue: str) -> int:
        """Count the messages that nobody has taken."""

    def left(self, queue: str) -> int:
        """Count what is not done: messages waiting, and in the hands of workers if that shows."""

    def clear(self, queue: str) -> None:
        """Drop what waits."""


@contextmanager
def queues(app: Celery) -> Iterator[Queues]:
    """Open the queues of the app's broker."""
    url = str(app.conf.broker_url)
    if is_amqp(url):
        with app.connection_for_write() as connection:
            yield RabbitQueues(app, connection)
    else:
        with redis.Redis.from_url(url) as client:
            yield RedisQueues(app, client)


class RedisQueues:
    """A list is renamed to the list that the workers wait for."""

    def __init__(self, app: Celery, client: redis.Redis) -> None:
        self._app = app
        self._client = client

    def stage(self, queue: str, messages: Sequence[Message]) -> None:
        """Write the messages as Celery's producer does, in one pipeline."""
        templates = {message.task: self._template(message) for message in messages[:1]}
        stage = f"{STAGE}.{queue}"
        with self._client.pipeline(transaction=False) as pipe:
            pipe.delete(stage)
            for message in messages:
                if message.task not in templates:
                    templates[message.task] = self._template(message)
                pipe.lpush(stage, _like(templates[message.task], message, queue))
            pipe.execute()

    def release(self, queue: str, *, await_first: bool) -> None:
        """Rename the list: waiting workers are woken."""
        self._client.rename(f"{STAGE}.{queue}", queue)

    def fill(self, queue: str, messages: Iterable[Message]) -> None:
        """Push the messages; all are of one task."""
        remaining = iter(messages)
        while some := list(islice(remaining, FILLED_AT_ONCE)):
            template = self._template(some[0])
            self._client.lpush(queue, *(_like(template, message, queue) for message in some))

    def waiting(self, queue: str) -> int:
        """Count the list."""
        return self._client.llen(queue)

    def left(self, queue: str) -> int:
        """Count what waits and what any worker of this broker holds."""
        with self._client.pipeline(transaction=False) as pipe:
            for name in (queue, *(queue + end for end in OURS)):
                pipe.llen(name)
            pipe.hlen(UNACKED)
            return sum(pipe.execute())

    def clear(self, queue: str) -> None:
        """Drop the list."""
        self._client.delete(queue)

    def _template(self, message: Message) -> Json:
        """Have Celery write the message once."""
        self._app.send_task(
            message.task,
            kwargs=message.kwargs,
            queue=TEMPLATE,
            ignore_result=not message.keep_result,
        )
        return cast(Json, json.loads(cast(bytes, self._client.lpop(TEMPLATE))))


def _like(template: Json, message: Message, queue: str) -> str:
    """Write another message of the same task: its own ids, body and queue."""
    task_id = str(uuid4())
    args, _, embed = json.loads(base64.b64decode(template["body"]))
    body = json.dumps([args, message.kwargs, embed]).encode()
    properties = {
        **template["properties"],
        "correlation_id": task_id,
        "delivery_tag": str(uuid4()),
        "delivery_info": {"exchange": "", "routing_key": queue},
    }
    headers = {**template["headers"], "id": task_id, "root_id": task_id}
    text = {**template, "properties": properties, "headers": headers}
    return json.dumps({**text, "body": base64.b64encode(body).decode()})


class RabbitQueues:
    """We hold all messages of a queue of ours unacknowledged; refused, they go to the workers'."""

    def __init__(self, app: Celery, connection: Connection) -> None:
        self._app = app
        self._connection = connection
        self._channel: Any = connection.default_channel  # Any: more than its types say
        self._held = 0

    def stage(self, queue: str, messages: Sequence[Message]) -> None:
        """Publish to a queue that hands refused messages on, and take them all in hand."""
        onward = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
        stage = Queue(f"{STAGE}.{queue}", Exchange(""), f"{STAGE}.{queue}", queue_arguments=onward)
        with self._app.producer_or_acquire() as producer:
            for message in messages:
                self._app.send_task(
                    message.task,
                    kwargs=message.kwargs,
                    queue=cast(str, stage),  # Celery takes both
                    ignore_result=not message.keep_result,
                    producer=producer,
                )
        self._held = 0
        tag = self._channel.basic_consume(stage.name, callback=self._hold)
        while self._held < len(messages):
            self._channel.connection.drain_events(timeout=30)
        self._channel.basic_cancel(tag)

    def _hold(self, message: object) -> None:
        self._held += 1

    def release(self, queue: str, *, await_first: bool) -> None:
        """Refuse all messages in one word."""
        everything, multiple, requeue = 0, True, False
        self._channel.send_method(Basic.Nack, "Lbb", (everything, multiple, requeue))
        deadline = time.monotonic() + (ARRIVAL_S if await_first else 0)
        while not self.waiting(queue) and time.monotonic() < deadline:
            pass  # else an empty queue would look like one that is done

    def fill(self, queue: str, messages: Iterable[Message]) -> None:
        """Publish without confirms, which take ten times as long."""
        write = self._app.amqp.create_task_message
        with self._connection.clone(transport_options={}) as unconfirmed:
            self._app.amqp.queues[queue](unconfirmed.default_channel).declare()
            producer = Producer(unconfirmed)
            for message in messages:
                task_id = str(uuid4())
                call = write(task_id, message.task, (), message.kwargs, ignore_result=True)
                producer.publish(
                    call.body,
                    routing_key=queue,
                    serializer="json",
                    headers=call.headers,
                    correlation_id=task_id,
                )

    def left(self, queue: str) -> int:
        """Count what waits; what workers hold does not show here."""
        return sum(self.waiting(name) for name in (queue, *(queue + end for end in OURS)))

    def waiting(self, queue: str) -> int:
        """Count what waits; a queue that is not there yet is empty."""
        channel: Any = self._connection.channel()  # its own: a queue that is missing closes it
        try:
            return int(channel.queue_declare(queue, passive=True)[1])
        except NotFound:
            return 0
        finally:
            channel.close()

    def clear(self, queue: str) -> None:
        """Drop what waits."""
        if self.waiting(queue):
            self._channel.queue_purge(queue)
