"""Somebody deletes what the service has declared, while others send: nothing is lost."""

from contextlib import suppress

import pytest
from amqp.exceptions import NotFound
from kombu import Exchange, Queue

from tests import factories as make
from tests.live.conftest import until
from tests.rabbitmq.test_connections import held
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


def declared_again(name):
    """Delete a queue, and declare it as a sender does that cleans up when it starts."""

    def delete(channel, queue):
        channel.queue_delete(queue + name)
        exchange = Exchange(queue + name, type="topic", no_declare=True)
        arguments = {"x-queue-type": "quorum"}
        Queue(queue + name, exchange, queue + name, queue_arguments=arguments)(channel).declare()

    return delete


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
    "the queue els, and declares it": declared_again(""),
    "the queue of the chord, and declares it": declared_again(".internal"),
    "the queue of beat, and declares it": declared_again(".control"),
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


@pytest.mark.parametrize("name", ["the queue els", "the queue els, and declares it"])
def test_what_a_worker_holds_when_its_queue_is_deleted_is_executed(
    policed, node, pool, outcome_of, letters, name
):
    first = make.registration(make.new_batch())
    rest = [make.registration(make.new_batch()) for _ in range(40)]
    policed.start()
    policed.ready(1)

    with held(pool, first):
        for event in (first, *rest):
            policed.send("els.register_batch", event)
        until(lambda: policed.depth() == 0, what="the worker holds them all")
        with node.connection() as connection:
            DELETIONS[name](connection.channel(), policed.queue)
        until(lambda: "consumer/consumer.py" in policed.log(), what="the worker connects again")

    for event in (first, *rest):
        assert until(lambda event=event: outcome_of(event), 30, "it is registered")
    assert letters() == []


def test_what_found_no_queue_before_a_worker_starts_is_executed(policed, node, outcome_of, letters):
    """The worker gets it while it asks whether the queue is still the one that it knew."""
    events = [make.registration(make.new_batch()) for _ in range(30)]
    policed.start()
    policed.ready(1)
    policed.stop()
    with node.connection() as connection:
        connection.channel().queue_delete(policed.queue)

    for event in events:
        policed.upstream.send_task(
            "els.register_batch",
            kwargs={"event": event},
            exchange=policed.queue,
            routing_key="nowhere",
        )
    policed.start()

    until(lambda: all(map(outcome_of, events)), what="all are registered")
    until(lambda: policed.depth(".dead") == 0, what="all is acknowledged")
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
