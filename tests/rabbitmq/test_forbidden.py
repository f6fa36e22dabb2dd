"""Who may do what on RabbitMQ: each program does its work, and is refused all else."""

import json
from contextlib import closing
from uuid import uuid4

import pytest
from amqp import basic_message
from amqp.exceptions import AccessRefused, NotFound
from celery import Celery
from kombu import Connection, Exchange, Queue

from core.settings import Settings
from ops.access import rabbitmq_lines, rabbitmq_users, user
from tests import factories as make
from tests.live.conftest import until
from tests.ops.conftest import els
from tests.ops.test_flower import ask
from tests.ops.test_flower import serve as flower
from tests.rabbitmq.node import STOCK


@pytest.fixture
def access(node, workers):
    """Make the users of a queue; give the URL of a program."""
    settings = Settings(queue=workers.queue, events_queue=f"{workers.queue}.events")
    users = rabbitmq_users(settings)
    for name, permissions in users.items():
        node.ctl("add_user", name, "secret")
        node.ctl("set_permissions", "-p", "/", name, *permissions)
    yield lambda program: node.url.replace("guest:guest", f"{user(settings, program)}:secret")
    workers.stop()
    for name in users:
        node.ctl("delete_user", name)


@pytest.fixture
def running(workers, access, tmp_path):
    """A worker and beat with their rights."""
    workers.start(ELS_BROKER_URL=access("worker"), ELS_REMOTE_CONTROL="")
    workers.start(
        "-s",
        str(tmp_path / "b"),
        command="beat",
        ELS_BROKER_URL=access("beat"),
        ELS_SWEEP_EVERY="1",
    )
    return workers


@pytest.fixture
def sender(workers, access):
    """An upstream service as docs/access.md describes it."""
    with closing(Celery("upstream", broker=access("sender"), broker_transport=STOCK)) as app:
        exchange = Exchange(workers.queue, type="topic", no_declare=True)
        app.conf.task_queues = [
            Queue(workers.queue, exchange, routing_key=workers.queue, no_declare=True)
        ]
        app.conf.broker_transport_options = {"confirm_publish": True}
        yield app


def test_with_its_rights_each_program_does_its_work(
    running, sender, node, outcome_of, assert_invariants, valkey
):
    valkey.delete("els:swept_at")
    until(lambda: f"{running.queue}\t" in node.ctl("list_queues", "name", "messages"), 60, "els")
    batch = make.new_batch()
    events = [make.registration(batch, 1), make.content(batch)]

    for task, event in zip(["els.register_batch", "els.assign_content"], events, strict=True):
        sender.send_task(task, kwargs={"event": event}, queue=running.queue, ignore_result=True)

    until(lambda: outcome_of(events[1]), 60, "the content is executed")
    assert_invariants([batch])
    until(lambda: valkey.exists("els:swept_at"), 60, "beat ticks, and the sweep runs")
    refused = [line for line in running.log().splitlines() if "ACCESS_REFUSED" in line]
    assert refused == []


def test_with_its_rights_flower_shows_the_tasks_of_workers(running, sender, access, node):
    batch, own = make.new_batch(), {"ELS_QUEUE": running.queue, "ELS_REMOTE_CONTROL": ""}
    with flower(ELS_BROKER_URL=access("flower"), ELS_FLOWER_AUTH="flower:sesame", **own) as found:
        until(lambda: "celeryev." in node.ctl("list_queues", "name"), 60, "Flower listens")
        sender.send_task(
            "els.register_batch",
            kwargs={"event": make.registration(batch, 2)},
            queue=running.queue,
            ignore_result=True,
        )

        until(lambda: batch in ask(f"{found[0]}/api/tasks")[2], 60, "Flower shows the task")


def test_with_its_rights_a_sender_submits_a_file(running, access, outcome_of, node):
    event = make.registration(make.new_batch(), 1)
    message = json.dumps({"task": "els.register_batch", "event": event})
    urls = {"ELS_BROKER_URL": access("sender"), "ELS_QUEUE": running.queue}
    until(lambda: f"{running.queue}\t" in node.ctl("list_queues", "name", "messages"), 60, "els")

    told = els("submit", "-", "--json", stdin=message, **urls)

    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)
    until(lambda: outcome_of(event), 60, "it is carried out")


@pytest.mark.parametrize(
    ("url", "where"),
    [(None, "/"), ("amqp://h", "/"), ("amqp://h//", "/"), ("amqp://h/els%2Fmine", "els/mine")],
)
def test_the_rights_are_those_in_the_virtual_host_of_the_url(url, where):
    lines = [*rabbitmq_lines(Settings(broker_url=url))]

    assert {line.split()[3] for line in lines if "set_permissions" in line} == {where}


def publish(exchange, key):
    def act(channel):
        channel.confirm_select()
        channel.basic_publish(basic_message.Message("x"), exchange, key)
        channel.queue_declare(f"none-{uuid4().hex}", passive=True)

    return act


def acts(queue):
    """List forbidden acts, by program."""
    own = [queue, f"{queue}.internal", f"{queue}.control", f"{queue}.dead", f"{queue}.events"]

    def of(names, default=True):
        for name in names:
            yield f"consume {name}", lambda c, name=name: c.basic_consume(name)
            yield f"get {name}", lambda c, name=name: c.basic_get(name)
            yield f"purge {name}", lambda c, name=name: c.queue_purge(name)
            yield f"delete {name}", lambda c, name=name: c.queue_delete(name)
            yield (
                f"bind {name}",
                lambda c, name=name: c.queue_bind(name, queue, routing_key="#"),
            )
            if default:
                yield f"publish to {name} by default", publish("", name)

    def put(names):
        for name in names:
            yield f"publish to {name}", publish(name, name)

    more = [
        ("declare a queue", lambda c: c.queue_declare("other")),
        ("declare an exchange", lambda c: c.exchange_declare("other", "direct")),
        ("publish to monitors", publish("celeryev", "worker.heartbeat")),
        ("publish to remote control", publish("celery.pidbox", "")),
        ("delete the exchange", lambda c: c.exchange_delete(queue)),
    ]
    return {
        "sender": [*of(own), *put(own[1:]), *more],
        "ops": [*of(own), *put(own), *more],
        "flower": [*of(own), *put(own), more[0], more[1], more[3], more[4]],
        "beat": [*of(own[:2], default=False), *put([queue, f"{queue}.internal"]), *more],
        "receiver": [*of(own[:4]), *put(own[:4]), *more],
        "worker": [more[0], more[1], more[3]],
    }


@pytest.mark.parametrize("program", sorted(acts("q")))
def test_a_program_is_refused_what_is_not_its_work(running, node, access, program):
    until(lambda: f"{running.queue}.dead" in node.ctl("list_queues", "name"), 60, "all is declared")
    with Connection(access(program), transport=STOCK) as connection:
        each = acts(running.queue)[program]
        allowed = [name for name, act in each if not _refused(connection, act)]

    assert allowed == []


def _refused(connection, act):
    try:
        act(connection.connection.channel())
    except AccessRefused:  # which closes the channel
        return True
    except NotFound:
        pass
    return False


def test_fifty_acts_and_more_are_refused():
    assert sum(map(len, acts("q").values())) >= 50
