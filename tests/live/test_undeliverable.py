"""What is no task of ours is kept, and nobody else is disturbed."""

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from kombu import Producer

from tests import factories as make
from tests.live.conftest import until


@pytest.fixture
def worker(workers):
    workers.start()
    return workers.ready(1)


@pytest.fixture
def announcing(workers):
    """A worker that announces what it refuses."""
    workers.start(ELS_EVENT_ROUTES='{"MessageRefused": [{"task": "a.b", "queue": "refused"}]}')
    return workers.ready(1)


@pytest.fixture
def letter_of(conn):
    def find(task_id):
        return until(
            lambda: conn.execute(
                "SELECT * FROM dead_letters WHERE task_id = %s", [str(task_id)]
            ).fetchone(),
            what="there is a dead letter",
        )

    return find


def test_a_message_of_an_unknown_task_is_kept(worker, letter_of):
    event = make.content(make.new_batch())

    sent = worker.send("els.asign_content", event)

    letter = letter_of(sent.id)
    assert (letter["task"], letter["code"]) == ("els.asign_content", "UNKNOWN_TASK")
    assert letter["body"] == event


def test_a_message_of_another_content_type_is_kept(worker, letter_of):
    sent = worker.send("els.assign_content", make.content(make.new_batch()), serializer="pickle")

    assert letter_of(sent.id)["code"] == "MALFORMED_MESSAGE"


def test_a_message_whose_body_is_no_json_is_kept(worker, letter_of):
    task_id = str(uuid4())
    with worker.broker() as connection:
        Producer(connection).publish(
            b"{not json",
            routing_key=worker.queue,
            content_type="application/json",
            content_encoding="utf-8",
            headers={"lang": "py", "task": "els.assign_content", "id": task_id},
            correlation_id=task_id,
        )

    letter = letter_of(task_id)

    assert base64.b64decode(letter["body"]["base64"]) == b"{not json"
    value = worker.send("els.register_batch", make.registration(make.new_batch(), 1)).get(30)
    assert value["outcome"] == "registered"


def test_a_message_that_calls_no_task_is_kept(worker, letter_of):
    message_id = str(uuid4())

    with worker.broker() as connection:
        Producer(connection).publish(
            {"hello": "world"}, routing_key=worker.queue, correlation_id=message_id
        )

    letter = letter_of(message_id)
    assert (letter["task"], letter["code"]) == ("unknown", "MALFORMED_MESSAGE")
    assert json.loads(base64.b64decode(letter["body"]["base64"])) == {"hello": "world"}


@pytest.mark.redis_only("RabbitMQ takes no bytes that are no message")
def test_what_is_no_message_at_all_is_kept(worker, valkey, letter_of):
    payload = f"no message {uuid4().hex}".encode()

    valkey.lpush(worker.queue, payload)

    letter = letter_of(hashlib.sha256(payload).hexdigest())
    assert (letter["task"], letter["code"]) == ("unknown", "MALFORMED_MESSAGE")
    assert base64.b64decode(letter["body"]["base64"]) == payload
    until(lambda: not valkey.exists(f"{worker.queue}.malformed"), what="the list is empty")


def misspelt(worker, event):
    return worker.send("els.asign_content", event)


def late(worker, event):
    return worker.send("els.assign_content", event, expires=datetime.now(UTC) - timedelta(hours=1))


def pickled(worker, event):
    return worker.send("els.assign_content", event, serializer="pickle")


@pytest.mark.parametrize(
    ("send", "code"),
    [(misspelt, "UNKNOWN_TASK"), (late, "EXPIRED"), (pickled, "MALFORMED_MESSAGE")],
)
def test_a_message_that_never_became_a_task_is_announced(announcing, conn, letter_of, send, code):
    sent = send(announcing, make.content(make.new_batch()))

    letter = letter_of(sent.id)
    event = conn.execute(
        "SELECT * FROM event_outbox WHERE type = 'MessageRefused' AND generation = %s",
        [str(letter["id"])],
    ).fetchone()

    assert (letter["code"], event["data"]["code"]) == (code, code)
