"""An event that nobody takes, on a real broker: how many wait, who consumes, what explain says."""

import json

import pytest
from kombu import Consumer, Queue

from core.settings import Settings
from core.slots import Slots
from ops.explain.explanation import explain
from ops.heartbeat import Heartbeat
from ops.queues import event_queues
from ops.receivers import read_receivers
from ops.routing import read_routes, routed_as, types_by_queue
from tests import factories as make
from tests.live.conftest import until


@pytest.fixture
def routed(workers, valkey):
    """The settings of workers whose events go to a queue that nobody consumes."""
    queue = f"{workers.queue}.nlp"
    routes = {"*": [{"task": "els.event", "queue": queue}]}
    workers.start(ELS_EVENT_ROUTES=json.dumps(routes))
    until(lambda: read_routes(valkey, workers.queue), what="the worker has noted its routes")
    yield routed_as(Settings(queue=workers.queue), read_routes(valkey, workers.queue))
    workers.stop()
    with workers.broker() as connection:
        Queue(queue).bind(connection.default_channel).delete()


def look(workers, settings):
    with workers.broker() as connection:
        [queue] = event_queues(connection, types_by_queue(settings))
    return queue


def test_an_untaken_event_is_seen_and_explained(workers, routed, conn, valkey, events_of):
    assert look(workers, routed).messages == 0
    batch = make.new_batch()
    workers.send("els.register_batch", make.registration(batch, 1)).get(timeout=30)
    workers.send("els.assign_content", make.content(batch)).get(timeout=30)
    until(lambda: look(workers, routed).messages == 2, what="both events are delivered")
    conn.execute(  # of each batch, so that the order stays
        "UPDATE event_outbox SET published_at = published_at - interval '2 minutes'"
    )

    def causes():
        receivers = read_receivers(Settings(queue=workers.queue), valkey, workers.broker_url)
        told = explain(conn, Slots(valkey), batch, Heartbeat(["w"], None, 0), receivers)
        return [cause for cause in told.causes if cause.code == "event_not_taken"]

    [cause] = causes()
    assert f"in queue {routed.queue}.nlp, where 2 wait" in cause.title
    assert cause.since == events_of(batch)[0]["published_at"]
    workers.take(".nlp")
    assert causes() == []


@pytest.mark.skipif("config.getoption('--broker') == 'redis'", reason="Redis knows no consumers")
def test_rabbitmq_says_who_consumes(workers, routed):
    workers.send("els.register_batch", make.registration(batch := make.new_batch(), 1)).get(30)
    workers.send("els.cancel_batch", make.cancellation(batch)).get(30)
    until(lambda: look(workers, routed).messages == 1, what="the event is delivered")

    alone = look(workers, routed).receivers
    with workers.broker() as connection, connection.channel() as channel:
        queue = Queue(f"{routed.queue}.nlp", no_declare=True)
        with Consumer(channel, [queue], callbacks=[lambda body, message: None]):
            together = look(workers, routed).receivers

    assert (alone, together) == (0, 1)
