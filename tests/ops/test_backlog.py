"""The age of the oldest message of a queue."""

import base64
import json
import os
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from celery import Celery

from ops.web.backlog import OldestMessages, sent_at
from tests import factories as make
from tests.live.conftest import until


@pytest.fixture
def queue(valkey):
    name = f"els-{uuid4().hex[:8]}"
    yield name
    valkey.delete(name)


@pytest.fixture
def broker():
    app = Celery(broker=os.environ["ELS_REDIS_URL"])
    yield app
    app.close()


def ages(oldest, broker):
    with broker.connection_for_read() as connection:
        return oldest.seconds(connection)


def send(broker, queue, minutes):
    moment = datetime.now(UTC) - timedelta(minutes=minutes)
    event = make.content(make.new_batch()) | {"timestamp": moment.isoformat()}
    broker.send_task("els.assign_content", kwargs={"event": event}, queue=queue)


def test_the_oldest_message_counts_from_its_event(broker, queue):
    oldest = OldestMessages([queue])
    empty = ages(oldest, broker)

    send(broker, queue, 3)
    send(broker, queue, 1)

    assert empty == {queue: 0}
    assert 180 <= ages(oldest, broker)[queue] < 200


def test_a_message_without_an_event_counts_since_it_was_seen(broker, queue, valkey):
    oldest = OldestMessages([queue])
    broker.send_task("els.sweep", queue=queue)
    first = ages(oldest, broker)[queue]

    until(lambda: ages(oldest, broker)[queue] > 0.2, what="it grows older")
    valkey.delete(queue)
    broker.send_task("els.sweep", queue=queue)

    assert first < 0.1
    assert ages(oldest, broker)[queue] < 0.2


def test_an_event_of_the_future_is_new(broker, queue):
    send(broker, queue, -5)

    assert ages(OldestMessages([queue]), broker)[queue] < 1


def body(value):
    return json.dumps({"body": base64.b64encode(json.dumps(value).encode()).decode()}).encode()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b'{"body": 7}',
        b'{"body": "%%"}',
        b"[" * 100_000,
        body([]),
        body([[], [], []]),
        body([[], {"event": 7}, {}]),
        body([[], {"event": {"timestamp": 7}}, {}]),
        body([[], {"event": {"timestamp": "yesterday"}}, {}]),
        body([[], {"event": {"timestamp": "0001-01-01T00:00:00+14:00"}}, {}]),
    ],
    ids=range(13),
)
def test_a_malformed_message_has_no_time(message):
    assert sent_at(message) is None


def test_another_broker_shows_no_head():
    with Celery(broker="memory://") as broker:
        assert ages(OldestMessages(["els"]), broker) == {}
