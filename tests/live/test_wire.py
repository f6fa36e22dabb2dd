"""The bytes on the wire are what the pages say: their code, run without Celery beside workers."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from core.events import cloud_event
from tests import factories as make
from tests.live.conftest import until

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = {
    name: code
    for page in ("events.md", "tasks.md")
    for name, code in re.findall(
        r"^```python ([a-z-]+)\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL
    )
}


class Wire:
    """Runs the code of the pages on the broker of some workers."""

    def __init__(self, workers):
        self.workers = workers
        self.queue = f"{workers.queue}.nlp"
        self.kind = "amqp" if workers.on_rabbitmq else "redis"

    def run(self, act, queue, **names):
        url = urlsplit(self.workers.broker_url)
        given = {
            "REDIS_URL": self.workers.broker_url,
            "HOST": f"{url.hostname}:{url.port}",
            "USER": url.username,
            "PASSWORD": url.password,
            "QUEUE": queue,
            **names,
        }
        exec(BLOCKS[f"{self.kind}-{act}"], given)
        return SimpleNamespace(**given)

    def send(self, task, event):
        return self.run("send", self.workers.queue, TASK=task, EVENT=event).message_id

    def receive(self):
        return self.run("receive", self.queue)

    def waiting(self):
        return self.workers.waiting(".nlp")


@pytest.fixture
def wire(workers):
    opened = Wire(workers)
    yield opened
    workers.stop()
    if workers.on_rabbitmq:
        with workers.broker() as connection:
            connection.default_channel.queue_delete(opened.queue)


@pytest.fixture
def outcome_of(conn):
    def read(event):
        row = conn.execute(
            "SELECT outcome FROM idempotency_keys WHERE key = %s", [event["event_id"]]
        ).fetchone()
        return row and row["outcome"]["outcome"]

    return read


def test_events_are_received_and_messages_sent_without_celery(wire, events_of, outcome_of):
    routes = {"*": [{"task": "els.event", "queue": wire.queue}]}
    wire.workers.start(ELS_EVENT_ROUTES=json.dumps(routes))
    wire.workers.ready(1)
    batch = make.new_batch()
    registration, content = make.registration(batch, 1), make.content(batch)

    wire.send("els.register_batch", registration)
    until(lambda: outcome_of(registration) == "registered", what="the batch is registered")
    wire.send("els.assign_content", content)
    until(lambda: outcome_of(content) == "assigned", what="the content is assigned")
    until(lambda: wire.waiting() == 2, what="both events are delivered")
    received = [wire.receive(), wire.receive()]

    assert [each.event for each in received] == [cloud_event(row) for row in events_of(batch)]
    assert [each.args for each in received] == [[], []]
    assert wire.waiting() == 0


def headers_and_properties(wire, received):
    """Return what the page lists of a message, as the broker has it."""
    if wire.kind == "redis":
        message = received.message
        assert message["properties"]["body_encoding"] == "base64"
        about = {"content_type": message["content-type"], "content_encoding": "utf-8"}
        return message["headers"], {**message["properties"], **about}
    properties = dict(received.message.properties)
    return properties.pop("application_headers"), properties


def test_headers_and_properties_are_those_of_the_page(wire, events_of):
    routes = {"BatchCancelled": [{"task": "els.event", "queue": wire.queue}]}
    wire.workers.start(ELS_EVENT_ROUTES=json.dumps(routes))
    batch = make.new_batch()
    for task, event in [
        ("els.register_batch", make.registration(batch, 1)),
        ("els.cancel_batch", make.cancellation(batch)),
    ]:
        wire.workers.send(task, event).get(timeout=30)
    until(lambda: wire.waiting() == 1, what="the event is delivered")

    headers, properties = headers_and_properties(wire, wire.receive())

    [row] = events_of(batch)
    assert (headers["task"], headers["id"]) == ("els.event", str(row["id"]))
    assert properties["correlation_id"] == str(row["id"])
    assert (properties["content_type"], properties["content_encoding"]) == (
        "application/json",
        "utf-8",
    )
    assert properties["delivery_mode"] == 2
    assert not properties.get("priority")


@pytest.mark.redis_only("RabbitMQ delivers again what is not acknowledged")
def test_what_a_dead_receiver_took_is_in_its_list(wire, valkey):
    wire.workers.start(
        ELS_EVENT_ROUTES=json.dumps({"*": [{"task": "els.event", "queue": wire.queue}]})
    )
    batch = make.new_batch()
    wire.workers.send("els.register_batch", make.registration(batch, 1)).get(timeout=30)
    wire.workers.send("els.cancel_batch", make.cancellation(batch)).get(timeout=30)
    until(lambda: wire.waiting() == 1, what="the event is delivered")

    taken, acknowledged, rest = BLOCKS["redis-receive"].partition("client.lrem(")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BLOCKS, "redis-receive", taken)
        event = wire.receive().event

    assert acknowledged
    assert rest
    assert valkey.llen(f"{wire.queue}.kept") == 1
    assert event["subject"] == batch
    valkey.delete(f"{wire.queue}.kept")


def test_every_block_of_code_has_run():
    assert set(BLOCKS) == {
        f"{kind}-{act}" for kind in ("amqp", "redis") for act in ("receive", "send")
    }
