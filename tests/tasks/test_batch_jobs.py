"""How the worker's parent tells the broker of the messages that one job carried out."""

import json
from uuid import uuid4

import pytest
import redis
from billiard.einfo import ExceptionInfo
from celery.worker.state import active_requests, task_accepted, task_reserved
from kombu import Message
from structlog.testing import capture_logs

from tasks.app import app
from tasks.worker.batching import BatchJob
from tasks.worker.request import QuietRequest
from tests.tasks.conftest import ASSIGN

DONE = (0, "what the task returned", 0.001)


class Channel:
    """The broker's end: it lists what each call acknowledges, unless the connection is lost."""

    no_ack_consumers = ()

    def __init__(self):
        self.acknowledged = []
        self.lost = False
        self.rejected = []

    def basic_ack(self, tag, multiple=False):
        if self.lost:
            raise ConnectionError("the broker is away")
        self.acknowledged.append(tag)

    def basic_reject(self, tag, requeue):
        assert requeue
        self.rejected.append(tag)


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
        ends = {"on_ack": message.ack_log_error, "on_reject": message.reject_log_error}
        return QuietRequest(message, app=app, connection_errors=(ConnectionError,), **ends)

    return [request(tag) for tag in (1, 2, 3)]


def test_what_one_job_carried_out_is_acknowledged_by_one_call_of_the_loop(channel, hub, requests):
    BatchJob(requests, hub).succeeded([DONE] * 3)
    before = list(channel.acknowledged)
    next(hub.create_loop())

    assert before == []
    assert channel.acknowledged == [1, 2, 3]
    assert all(request.acknowledged for request in requests)


def test_an_error_at_the_end_of_one_task_leaves_no_other_in_work(channel, hub, requests):
    """As where a Redis that is full takes no result of a step of the chord."""

    def full(result):
        raise redis.OutOfMemoryError("command not allowed")

    requests[1].on_success = full
    for request in requests:
        task_reserved(request)
        task_accepted(request)

    BatchJob(requests, hub).succeeded([DONE] * 3)
    next(hub.create_loop())

    assert channel.acknowledged == [1, 3]
    assert channel.rejected == [2]
    assert not active_requests.intersection(requests)


def failed(what):
    try:
        int(what)
    except ValueError:
        return ExceptionInfo()


def test_a_failure_that_redis_does_not_take_does_not_end_the_loop(channel, hub, requests):
    def full(*args, **kwargs):
        raise redis.OutOfMemoryError("command not allowed")

    [request, *_] = requests
    request.name = "els.seal_slots"
    request.task.backend.mark_as_failure = full
    try:
        request.on_failure(failed("a step of the chord"))
    finally:
        del request.task.backend.mark_as_failure

    assert request.acknowledged


def test_what_ended_before_the_parent_failed_is_acknowledged(channel, hub, requests):
    left = (1, type("Left", (), {"exception": SystemExit()}), 0.001)

    with pytest.raises(SystemExit):
        BatchJob(requests, hub).succeeded([DONE, DONE, left])
    next(hub.create_loop())

    assert channel.acknowledged == [1, 2]


def test_a_lost_connection_is_told_of_and_does_not_end_the_worker(channel, hub, requests):
    channel.lost = True

    with capture_logs() as logged:
        BatchJob(requests, hub).succeeded([DONE] * 3)
        next(hub.create_loop())

    [line] = [line for line in logged if line["event"] == "not_acknowledged"]
    assert (line["messages"], line["error"]) == (3, "ConnectionError: the broker is away")


class Solo:
    """A pool without processes: what a job raises goes to who starts it."""

    def apply_async(self, target, **options):
        options["accept_callback"](1, 0.0)
        raise redis.OutOfMemoryError("command not allowed")


def test_an_error_out_of_a_pool_without_processes_gives_the_messages_back(channel, hub, requests):
    for request in requests:
        task_reserved(request)

    BatchJob(requests, hub).start(Solo())

    assert channel.rejected == [1, 2, 3]
    assert not active_requests.intersection(requests)
