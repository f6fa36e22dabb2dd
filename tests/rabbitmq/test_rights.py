"""What accounts of RabbitMQ with few rights can do, and what they cannot."""

from contextlib import contextmanager

import pytest
from amqp.exceptions import AccessRefused
from celery import Celery
from kombu import Exchange, Queue
from kombu.transport.native_delayed_delivery import calculate_routing_key
from structlog.testing import capture_logs

from ops.signs import read_pauses
from tests import factories as make
from tests.live.conftest import until
from tests.rabbitmq.conftest import RabbitWorkers
from tests.rabbitmq.node import sender

CHAT = r"celeryev.*|.*pidbox"  # task events and remote control


@pytest.fixture
def account(node, workers):
    """Make an account with these rights; return its URL. `QUEUE` stands for the queue's name."""

    def make_one(configure="", write="", read=""):
        rights = [
            f"^({names.replace('QUEUE', workers.queue)})$" for names in (configure, write, read)
        ]
        node.ctl("add_user", workers.queue, "secret")
        node.ctl("set_permissions", workers.queue, *rights)
        return node.url.replace("guest:guest", f"{workers.queue}:secret")

    yield make_one
    node.ctl("delete_user", workers.queue)


def declared_by_another(workers):
    """Have a worker with every right declare all, and leave."""
    first = workers.start()
    workers.ready(1)
    first.terminate()
    first.wait(20)


def test_a_worker_that_may_declare_only_its_queues_takes_messages(workers, account, outcome_of):
    names = rf"QUEUE|QUEUE\..*|{CHAT}"
    event = make.registration(make.new_batch())

    workers.start(ELS_BROKER_URL=account(configure=names, write=".*", read=".*"))
    workers.send("els.register_batch", event)

    assert until(lambda: outcome_of(event), what="it is registered")["outcome"] == "registered"


def test_a_worker_that_may_declare_nothing_uses_what_is_there(
    workers, account, assert_invariants, letters
):
    declared_by_another(workers)
    with workers.broker() as connection:  # their receiver has declared it
        Queue(
            f"{workers.queue}.events",
            Exchange(f"{workers.queue}.events"),
            f"{workers.queue}.events",
        )(connection.default_channel).declare()
    batch = make.new_batch()
    named = r"QUEUE.*|celery.*|.*pidbox"
    few = account(configure=CHAT, write=rf"{named}|amq[.]default", read=named)

    workers.start(ELS_BROKER_URL=few)
    beat = ("--schedule", str(workers.logs / "beat"), "--pidfile=")
    workers.start(*beat, command="beat", ELS_BROKER_URL=few)
    workers.send("els.register_batch", make.registration(batch, 1))
    workers.send("els.assign_content", make.content(batch))

    assert_invariants([batch])
    assert letters() == []


@pytest.mark.parametrize("missing", ["rights", "password", "queues"])
def test_a_worker_whose_account_is_refused_for_a_while_says_so_and_goes_on(
    workers, account, node, valkey, outcome_of, missing
):
    worker = workers.start(ELS_BROKER_URL=account(".*", ".*", ".*"))
    workers.ready(1)
    event, name = make.registration(make.new_batch()), workers.queue
    take, give = {
        "rights": (("clear_permissions", name), ("set_permissions", name, ".*", ".*", ".*")),
        "password": (("change_password", name, "other"), ("change_password", name, "secret")),
        "queues": (("set_vhost_limits", '{"max-queues": 0}'), ("clear_vhost_limits",)),
    }[missing]

    node.ctl(*take)
    node.drop_connections()
    workers.send_for_sure("els.register_batch", event)
    [pause] = until(lambda: refusals_of(valkey, name), what="it says so")
    node.ctl(*give)

    assert until(lambda: outcome_of(event), 30, "it is registered")["outcome"] == "registered"
    until(lambda: not refusals_of(valkey, name), what="it says no more")
    assert any(
        each in pause.outage.error for each in ("AccessRefused", "NotAllowed", "queue limit")
    )
    assert workers.log().count(pause.outage.error) < 10, "it does not ask without a pause"
    assert worker.poll() is None


def refusals_of(valkey, queue):
    return [pause for pause in read_pauses(valkey) if pause.process.startswith(queue)]


def test_a_binding_that_may_not_be_made_is_logged_once(workers, account):
    declared_by_another(workers)
    app = Celery(broker=account(read="QUEUE"), broker_transport="tasks.worker.amqp:Transport")
    with capture_logs() as logged, channel_of(app) as channel:
        for _ in range(3):
            queue = Queue(workers.queue, Exchange(workers.queue), workers.queue)
            queue(channel).queue_bind()
    app.close()

    assert [line["event"] for line in logged] == ["binding_left_as_it_is"]


@pytest.fixture
def outside(workers, account):
    """A service that may send to `els`, and have its messages delayed, and nothing else."""
    declared_by_another(workers)
    app = sender(account(configure="QUEUE", write="QUEUE|celery_delayed_27", read="QUEUE"))
    yield app
    app.close()


@contextmanager
def channel_of(app):
    with app.connection_for_write() as connection:
        yield connection.default_channel


def test_an_outside_sender_reaches_els(workers: RabbitWorkers, outside):
    for countdown in (None, 1):
        outside.send_task("els.register_batch", queue=workers.queue, countdown=countdown)

    assert until(lambda: workers.depth() == 2, what="both are there")


@pytest.mark.parametrize("end", [".internal", ".control", ".dead", ".events"])
def test_an_outside_sender_may_not_write_to_a_queue_of_ours(workers, outside, end):
    for exchange, key in ((workers.queue + end, workers.queue + end), ("", workers.queue + end)):
        with channel_of(outside) as channel:
            message = channel.prepare_message(b"{}")
            with pytest.raises(AccessRefused):
                channel.basic_publish(message, exchange=exchange, routing_key=key)


@pytest.mark.parametrize("end", [".internal", ".control"])
def test_no_delay_leads_an_outside_sender_to_a_queue_of_ours(workers, outside, end):
    with channel_of(outside) as channel:
        for queue in (workers.queue + end, workers.queue):
            channel.basic_publish(
                channel.prepare_message(b"{}"),
                exchange="celery_delayed_27",
                routing_key=calculate_routing_key(1, queue),
            )

    until(lambda: workers.depth() == 1, what="the message for els is there")

    assert workers.depth(end) == 0
