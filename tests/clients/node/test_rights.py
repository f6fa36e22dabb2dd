"""The kit needs no more rights than `els access` gives to a sender and to a receiver."""

import json
import time
from uuid import uuid4

import pytest
from celery import Celery

from core.settings import Route, Settings
from ops.access import rabbitmq_users, user
from tasks.delivery import deliver
from tests import factories as make
from tests.live.conftest import until
from tests.rabbitmq.node import sender
from tests.servers.test_forbidden import Guarded


def a_cancellation():
    return ("els.cancel_batch", {"batch_id": make.new_batch(), "reason": "asked"})


def an_event(batch):
    return {
        "specversion": "1.0",
        "id": str(uuid4()),
        "type": "BatchCancelled",
        "subject": batch,
        "correlationid": str(uuid4()),
        "data": {"batch_id": batch, "reason": "asked"},
    }


@pytest.fixture
def guarded(tmp_path):
    server = Guarded(tmp_path)
    yield server
    server.stop()


def test_the_rights_on_redis_are_enough(guarded, beside):
    neighbours, batch = beside("els"), make.new_batch()
    program = neighbours.sender(guarded.url("sender"))
    program.feed([a_cancellation(), a_cancellation()])
    program.finish()
    assert guarded.admin.llen("els") == 2

    admin = f"redis://:admin-password@127.0.0.1:{guarded.port}/0"
    with Celery("service", broker=admin) as app:
        deliver(app, [an_event(batch)], lambda _: [Route(task="els.event", queue="els.events")])
        held = guarded.admin.rpop("els.events")  # by a receiver that is dead
        entry = f'[{held}, "els.events", "els.events"]'
        guarded.admin.hset("els.events.unacked", "tag", entry)
        guarded.admin.zadd("els.events.unacked_index", {"tag": time.time() - 60})
        deliver(app, [an_event(batch)], lambda _: [Route(task="els.event", queue="els.events")])
    receiver = neighbours.receiver(guarded.url("receiver"))

    until(lambda: len(neighbours.effects(batch)) == 2, 30, "both events are received")
    until(lambda: not guarded.admin.exists("els.events.unacked"), 10, "both are acknowledged")
    receiver.stop()
    assert guarded.refused() == set(), json.dumps(receiver.said)


@pytest.fixture
def accounts(broker):
    """Give the URL of a program on RabbitMQ, with the rights of its user."""
    queue = f"els-{uuid4().hex[:8]}"
    settings = Settings(queue=queue, events_queue=f"{queue}.events")
    users = rabbitmq_users(settings)
    for name, permissions in users.items():
        broker.ctl("add_user", name, "secret")
        broker.ctl("set_permissions", "-p", "/", name, *permissions)
    yield (
        queue,
        lambda program: broker.url.replace("guest:guest", f"{user(settings, program)}:secret"),
    )
    for name in users:
        broker.ctl("delete_user", name)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_the_rights_on_rabbitmq_are_enough(broker, accounts, beside):
    queue, url = accounts
    neighbours, batch = beside(queue), make.new_batch()
    program = neighbours.sender(url("sender"))
    program.feed([a_cancellation()])
    program.says(1)
    said = "els: not sent yet: .*"
    program.says(1, said)  # it may not declare: a worker has to

    app = sender(broker.url)  # declares as the workers do
    app.send_task("els.cancel_batch", queue=queue)
    program.finish()
    until(lambda: "2" in broker.ctl("list_queues", "messages", "name"), 20, "the queue has both")
    receiver = neighbours.receiver(url("receiver"))
    receiver.says(1, "receiving")
    deliver(app, [an_event(batch)], lambda _: [Route(task="els.event", queue=f"{queue}.events")])
    app.close()

    until(lambda: len(neighbours.effects(batch)) == 1, 30, "the event is received")
    receiver.stop()
