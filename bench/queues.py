"""Queues that are filled out of the workers' sight and handed over at once.

So the time of a drain holds no publishing: it runs from the handing over to the last message done.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from uuid import uuid4

import redis
from celery import Celery
from kombu.exceptions import ChannelError

STAGE = "bench.stage"
TEMPLATE = "bench.template"
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

    def release(self, queue: str) -> None:
        """Let the workers see them, all at once."""

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
    if url.startswith("amqp"):
        yield RabbitQueues(app)
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

    def release(self, queue: str) -> None:
        """Rename the list: waiting workers are woken."""
        self._client.rename(f"{STAGE}.{queue}", queue)

    def waiting(self, queue: str) -> int:
        """Count the list."""
        return self._client.llen(queue)

    def left(self, queue: str) -> int:
        """Count what waits and what any worker of this broker holds."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.llen(queue)
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
    """The workers stop consuming while the queue fills, and are told to go on."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def stage(self, queue: str, messages: Sequence[Message]) -> None:
        """Publish to a queue that nobody consumes."""
        self._app.control.cancel_consumer(queue, reply=True, timeout=2)
        with self._app.producer_or_acquire() as producer:
            for message in messages:
                self._app.send_task(
                    message.task,
                    kwargs=message.kwargs,
                    queue=queue,
                    ignore_result=not message.keep_result,
                    producer=producer,
                )

    def release(self, queue: str) -> None:
        """Let the workers consume again."""
        self._app.control.add_consumer(queue)

    def left(self, queue: str) -> int:
        """Count what waits; what workers hold does not show here."""
        return self.waiting(queue)

    def waiting(self, queue: str) -> int:
        """Count what waits."""
        with self._app.connection_for_read() as connection:
            try:
                channel: Any = connection.default_channel  # Any: more than its types say
                return int(channel.queue_declare(queue, passive=True)[1])
            except ChannelError:
                return 0

    def clear(self, queue: str) -> None:
        """Drop what waits."""
        with self._app.connection_for_write() as connection:
            try:
                channel: Any = connection.default_channel  # Any: more than its types say
                channel.queue_purge(queue)
            except ChannelError:
                return
