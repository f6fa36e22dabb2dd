"""With RabbitMQ as the broker, too, nothing that a run writes names a person."""

import base64
import binascii
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from amqp import basic_message

from tests.live.test_privacy import (
    EVENTS,
    QUEUE,
    Run,
    names_in,
    test_nothing_that_a_run_writes_names_a_person,
    whole_service,
)
from tests.rabbitmq.node import Node, sender

__all__ = ["test_nothing_that_a_run_writes_names_a_person"]
KNOWN = ("correlation_id", "reply_to")  # properties that RabbitMQ takes


class OnRabbitMQ(Run):
    """The same messages, as RabbitMQ holds them."""

    workers_wait = False  # a queue of RabbitMQ holds it

    def new_sender(self, name):
        return sender(self.env["broker_url"], backend=self.env["redis_url"])

    def push(self, body=None, headers=None, properties=None, **parts):
        task_id = str(uuid4())
        given = {name: (properties or {}).get(name, task_id) for name in KNOWN}
        message = basic_message.Message(
            bytes_of(body or "W10="),
            application_headers={
                "lang": "py",
                "task": "els.assign_content",
                "id": task_id,
                **(headers or {}),
            },
            content_type=parts.get("content_type", "application/json"),
            content_encoding=parts.get("content_encoding", "utf-8"),
            delivery_mode=2,
            **given,
        )
        with self.node.connection() as connection:
            connection.default_channel.basic_publish(message, routing_key=QUEUE)

    def push_junk(self, *junk):
        for each in junk:
            self.push(base64.b64encode(each if isinstance(each, bytes) else each.encode()).decode())

    def send_for_later(self, event):
        """Send with an eta straight into the queue, as a sender with other settings."""
        task_id, eta = str(uuid4()), datetime.now(UTC) + timedelta(seconds=15)
        amqp = self.sender.amqp
        task = "els.assign_content"
        message = amqp.create_task_message(task_id, task, (), {"event": event}, eta=eta)
        with self.sender.producer_or_acquire() as producer:
            amqp.send_task_message(producer, task, message, queue=QUEUE)
        return task_id

    @contextmanager
    def events_refused(self):
        full = '{"max-length": 0, "overflow": "reject-publish"}'
        to = ("--apply-to", "queues", "--priority", "9")
        self.node.ctl("set_policy", "full", f"^{EVENTS}$", full, *to)
        yield
        self.node.ctl("clear_policy", "full")

    def in_work(self):
        counted = self.node.ctl("list_queues", "name", "messages").splitlines()
        return [line for line in counted if line.startswith(QUEUE + "\t") and line[-2:] != "\t0"]


def bytes_of(body):
    try:
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error):
        return body.encode()


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    node = Node(tmp_path_factory.mktemp("node"))
    node.start()
    OnRabbitMQ.node = node
    try:
        home = tmp_path_factory.mktemp("private") / "home"
        with whole_service(home, OnRabbitMQ, ELS_BROKER_URL=node.url) as started:
            yield started
        logs = [each for each in node.folder.rglob("*.log") if each.is_file()]
        assert logs
        assert not [*names_in((each.name, each.read_bytes()) for each in logs)]
    finally:
        node.do("stop")
