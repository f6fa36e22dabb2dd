"""Whoever declares a queue first, and however: our workers start, consume and publish."""

import pytest
from kombu import Exchange, Producer, Queue
from kombu.exceptions import OperationalError

from tasks.worker.amqp import OPTIONS
from tests import factories as make
from tests.live.conftest import until
from tests.rabbitmq.node import sender

QUORUM = {"x-queue-type": "quorum"}
OTHERWISE = {
    "a classic queue on a direct exchange": ("direct", {}),
    "a classic queue on a topic exchange": ("topic", {}),
    "a quorum queue on a direct exchange": ("direct", QUORUM),
    "a quorum queue with a limit": ("topic", {**QUORUM, "x-max-length": 100_000}),
}


def declared(node, queue, exchange_type, arguments):
    with node.connection() as connection:
        exchange = Exchange(queue, exchange_type)
        found = Queue(queue, exchange, queue, queue_arguments=arguments)
        found.bind(connection.channel()).declare()


@pytest.mark.parametrize(("exchange_type", "arguments"), OTHERWISE.values(), ids=OTHERWISE.keys())
def test_workers_use_what_a_sender_declared_first(
    workers, node, outcome_of, exchange_type, arguments
):
    declared(node, workers.queue, exchange_type, arguments)
    upstream = sender(node.url, arguments.get("x-queue-type", "classic"), exchange_type)
    if "x-max-length" not in arguments:
        workers.upstream.close()
        workers.upstream = upstream
    batch = make.new_batch()
    now, later = make.registration(batch, 2), make.content(batch)

    workers.start()
    workers.ready(1)
    if "x-max-length" in arguments:
        workers.send = _straight_to(node, workers.queue)
    workers.send("els.register_batch", now)
    workers.send("els.assign_content", later, countdown=3)

    assert until(lambda: outcome_of(now), what="it is registered")["outcome"] == "registered"
    assert until(lambda: outcome_of(later), what="it is placed")["outcome"] == "assigned"
    assert "declared_otherwise" in workers.log()


def _straight_to(node, queue):
    """Send as a program does that is no Celery, to a queue that it does not declare."""

    def send(task, event, countdown=None):
        with node.connection() as connection:
            Producer(connection.channel()).publish(
                [[], {"event": event}, {}],
                routing_key=queue,
                serializer="json",
                headers={"task": task, "id": event["event_id"]},
            )

    return send


def test_a_documented_sender_may_come_before_the_workers(workers, outcome_of):
    event = make.registration(make.new_batch())

    workers.send("els.register_batch", event)
    workers.start()

    assert until(lambda: outcome_of(event), what="it is registered")["outcome"] == "registered"
    assert "declared_otherwise" not in workers.log()


def queue_types(node):
    rows = node.ctl("list_queues", "name", "type").splitlines()
    return dict(row.split() for row in rows if len(row.split()) == 2)


@pytest.fixture
def ready(workers, outcome_of, conn):
    """Make a batch ready, and wait until its event is published."""

    def do():
        batch = make.new_batch()
        workers.send("els.register_batch", make.registration(batch, 1))
        workers.send("els.assign_content", make.content(batch))
        until(
            lambda: conn.execute(
                "SELECT 1 FROM event_outbox WHERE batch_id = %s AND type = 'BatchEssaysReady'"
                " AND published_at IS NOT NULL",
                [batch],
            ).fetchone(),
            what="the event is published",
        )
        return batch

    return do


def test_events_go_to_a_replicated_queue(workers, node, ready):
    workers.start()
    workers.ready(1)

    ready()

    assert queue_types(node)[f"{workers.queue}.events"] == "quorum"
    assert workers.depth(".events") == 2


def test_events_go_to_the_classic_queue_that_a_receiver_declared(workers, node, ready):
    declared(node, f"{workers.queue}.events", "direct", {})
    workers.start()
    workers.ready(1)

    ready()

    assert queue_types(node)[f"{workers.queue}.events"] == "classic"
    assert workers.depth(".events") == 2


def test_an_event_that_no_queue_takes_stays_in_the_outbox(node):
    """A queue that vanished since it was declared is declared again by the next message."""
    app = sender(node.url)
    app.conf.update(
        broker_transport="tasks.worker.amqp:Transport", broker_transport_options=OPTIONS
    )
    app.send_task("els.events.x", queue="els-vanishing")
    with node.connection() as connection:
        connection.channel().queue_delete("els-vanishing")

    with pytest.raises(OperationalError, match="no queue"):
        app.send_task("els.events.x", queue="els-vanishing")
    app.send_task("els.events.x", queue="els-vanishing")

    with node.connection() as connection:
        assert connection.channel().queue_delete("els-vanishing") == 1
    app.close()
