"""Somebody deletes what the service has declared, while others send: nothing is lost."""

from contextlib import suppress

import pytest
from amqp.exceptions import NotFound
from kombu import Exchange, Queue

from tests import factories as make
from tests.live.conftest import until
from tests.rabbitmq.traffic import Traffic


@pytest.fixture
def traffic(policed, tmp_path):
    """Traffic for a worker of two processes, and beat."""
    policed.start(command="worker --pool prefork --concurrency 2")
    policed.start("--schedule", str(policed.logs / "beat"), "--pidfile=", command="beat")
    policed.ready(1)
    with Traffic.of(policed, tmp_path / "spool") as made:
        yield made


def exchange(name):
    return lambda channel, queue: channel.exchange_delete(queue + name)


def queue_of(name):
    return lambda channel, queue: channel.queue_delete(queue + name)


def binding(name):
    return lambda channel, queue: channel.queue_unbind(queue + name, queue + name, queue + name)


DELETIONS = {
    "the binding of els": binding(""),
    "the exchange of els": exchange(""),
    "the queue els": queue_of(""),
    "the binding of the chord": binding(".internal"),
    "the exchange of the chord": exchange(".internal"),
    "the queue of the chord": queue_of(".internal"),
    "the exchange of beat": exchange(".control"),
    "the queue of beat": queue_of(".control"),
    "the exchange of the dropped": exchange(".dead"),
    "the queue of the dropped": queue_of(".dead"),
}


@pytest.mark.parametrize("delete", DELETIONS.values(), ids=DELETIONS.keys())
def test_what_was_deleted_is_restored_and_nothing_is_lost(
    traffic, policed, node, letters, assert_invariants, delete
):
    with traffic.sent():
        until(lambda: policed.depth() == 0, what="a queue takes what waits in it along")
        with node.connection() as connection:
            delete(connection.channel(), policed.queue)
        traffic.send(within_s=5)

    assert_invariants(traffic.batches, 30)
    assert letters() == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("the binding of els", "message_put_back"),
        ("the exchange of els", "deleted_by_somebody"),
    ],
)
def test_a_worker_says_that_somebody_has_deleted_something(policed, node, name, says):
    exchange = Exchange(policed.queue, type="topic", no_declare=True)
    queue = Queue(policed.queue, exchange, routing_key=policed.queue, no_declare=True)
    policed.upstream.conf.task_queues = [queue]  # so that the sender restores nothing
    policed.start()
    policed.ready(1)

    def delete_and_send():
        with node.connection() as connection:
            DELETIONS[name](connection.channel(), policed.queue)
        with suppress(NotFound):  # it is the exchange
            policed.send("els.register_batch", make.registration(make.new_batch()))
        return says in policed.log()

    until(delete_and_send, what="its log says so")  # unless it has restored it before the message
