"""How the worker's parent tells the broker of the messages that one job carried out."""

import json
from uuid import uuid4

import pytest
from kombu import Message
from structlog.testing import capture_logs

from tasks.app import app
from tasks.worker.batching import BatchJob
from tasks.worker.request import QuietRequest
from tests.tasks.conftest import ASSIGN

DONE = (0, "what the task returned", 0.001)


class Channel:
    """The broker's end: it lists what each call acknowledges, unless the connection is lost."""

    def __init__(self):
        self.acknowledged = []
        self.lost = False

    def acknowledge(self, tags):
        if self.lost:
            raise ConnectionError("the broker is away")
        self.acknowledged.append(tags)


@pytest.fixture
def channel():
    return Channel()


@pytest.fixture
def requests(channel):
    """Make the requests of three messages that are ready to be acknowledged."""

    def request(tag):
        message = Message(
            body=json.dumps([[], {"event": {}}, {}]),
            delivery_tag=tag,
            channel=channel,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_info={"redelivered": False},
            headers={"id": str(uuid4()), "task": ASSIGN},
        )
        return QuietRequest(message, app=app, connection_errors=(ConnectionError,))

    return [request(tag) for tag in (1, 2, 3)]


def test_what_one_job_carried_out_is_acknowledged_by_one_call_of_the_loop(channel, hub, requests):
    BatchJob(requests, hub).succeeded([DONE] * 3)
    before = list(channel.acknowledged)
    next(hub.create_loop())

    assert before == []
    assert channel.acknowledged == [[1, 2, 3]]
    assert all(request.acknowledged for request in requests)


def test_what_ended_before_the_parent_failed_is_acknowledged(channel, hub, requests):
    left = (1, type("Left", (), {"exception": SystemExit()}), 0.001)

    with pytest.raises(SystemExit):
        BatchJob(requests, hub).succeeded([DONE, DONE, left])
    next(hub.create_loop())

    assert channel.acknowledged == [[1, 2]]


def test_a_lost_connection_is_told_of_and_does_not_end_the_worker(channel, hub, requests):
    channel.lost = True

    with capture_logs() as logged:
        BatchJob(requests, hub).succeeded([DONE] * 3)
        next(hub.create_loop())

    [line] = [line for line in logged if line["event"] == "not_acknowledged"]
    assert (line["messages"], line["error"]) == (3, "the broker is away")
