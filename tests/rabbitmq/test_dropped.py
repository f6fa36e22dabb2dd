"""What RabbitMQ or a worker drops becomes a dead letter."""

import json
import subprocess
import time
from uuid import uuid4

import pytest
from amqp.exceptions import NotFound
from kombu import Producer, Queue

from tasks.worker.amqp import Channel
from tasks.worker.amqp_dropped import DROPPED, dead_queue, drop
from tasks.worker.amqp_policy import policy_commands
from tests import factories as make
from tests.live.conftest import until

OURS = "tasks.worker.amqp:Transport"


def set_up(workers):
    """Let a worker declare its queues, the one of dropped messages last."""
    workers.start()
    workers.ready(1)
    until(lambda: has_queue_of_dropped(workers), what="dropped messages have a queue")
    workers.stop()


def has_queue_of_dropped(workers):
    try:
        workers.depth(".dead")
    except NotFound:
        return False
    return True


def test_a_message_that_expires_becomes_a_dead_letter(policed, letters):
    event = make.content(make.new_batch())
    set_up(policed)

    policed.send("els.assign_content", event, expires=0.5)
    policed.start()
    [letter] = until(letters, what="the letter is written")

    assert (letter["code"], letter["body"]) == ("EXPIRED", event)


def test_a_policy_for_all_queues_drops_no_dead_letter(policed, node, letters):
    """An administrator sets it with the default priority, and sees no harm in it."""
    event = make.content(make.new_batch())
    set_up(policed)
    careless = (f"{policed.queue}-a", f"^{policed.queue}", json.dumps({"message-ttl": 100}))
    node.ctl("set_policy", *careless, "--apply-to", "queues")

    policed.send("els.assign_content", event, expires=0.2)
    until(lambda: policed.depth(".dead") == 1, what="it expires")
    time.sleep(1)  # longer than it would live there
    policed.start()
    [letter] = until(letters, what="the letter is written")

    assert (letter["code"], letter["body"]) == ("EXPIRED", event)
    node.ctl("clear_policy", careless[0])


def test_a_tick_that_expires_leaves_no_dead_letter(policed, letters):
    event = make.content(make.new_batch())
    set_up(policed)

    policed.upstream.send_task("els.sweep", queue=policed.queue, expires=0.2)
    policed.send("els.assign_content", event, expires=0.5)
    policed.start()
    until(letters, what="the letter of the content is written")

    assert [letter["task"] for letter in letters()] == ["els.assign_content"]
    assert policed.depth(".dead") == 0


def test_a_message_at_the_delivery_limit_is_put_back(policed, node, outcome_of, letters):
    """RabbitMQ counts requeues, which are no deaths of workers."""
    event = make.content(make.new_batch())
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1}
    with node.connection() as connection:
        channel = connection.channel()
        dead_queue(policed.queue).bind(channel).declare()  # else RabbitMQ tries again after minutes
        channel.queue_declare(policed.queue, durable=True, auto_delete=False, arguments=arguments)
        body = [[], {"event": event}, {}]
        headers = {"task": "els.assign_content", "id": str(uuid4())}
        Producer(channel).publish(
            body, routing_key=policed.queue, serializer="json", headers=headers
        )
        for _ in range(2):
            until(Queue(policed.queue).bind(channel).get).requeue()

    policed.start()

    assert until(lambda: outcome_of(event), what="it is executed")["outcome"] == "pending"
    assert letters() == []


@pytest.fixture
def limited(policed, node):
    """Give the queue a limit, as an administrator does."""

    def limit(**definition):
        given = json.dumps({name.replace("_", "-"): value for name, value in definition.items()})
        what = (policed.queue, f"^{policed.queue}$", given, "--apply-to", "queues")
        node.ctl("set_operator_policy", *what)

    yield limit
    node.ctl("clear_operator_policy", policed.queue)


def test_a_message_that_kills_its_workers_is_poison_though_rabbitmq_redelivers_none(
    policed, limited, letters
):
    event = make.registration(make.new_batch())
    set_up(policed)
    limited(delivery_limit=0)

    policed.start(ELS_CRASHPOINT="before_commit")
    policed.send("els.register_batch", event)
    [letter] = until(letters, 60, "the letter is written")

    assert (letter["code"], letter["body"]) == ("POISON_MESSAGE", event)


def test_a_message_that_outlives_a_limit_of_the_queue_is_put_back(
    policed, limited, node, outcome_of, letters
):
    event = make.content(make.new_batch())
    set_up(policed)
    limited(message_ttl=100)

    policed.send("els.assign_content", event)
    until(lambda: policed.depth(".dead") == 1, what="RabbitMQ drops it")
    policed.start()

    assert until(lambda: outcome_of(event), what="it is executed")["outcome"] == "pending"
    assert letters() == []


@pytest.mark.parametrize("key", ["QUEUE", "another"])
def test_a_message_that_finds_no_queue_is_put_back(policed, node, outcome_of, letters, key):
    """Somebody has deleted the binding, or its sender names another one."""
    event = make.content(make.new_batch())
    set_up(policed)
    with node.connection() as connection:
        channel = connection.channel()
        channel.queue_unbind(policed.queue, policed.queue, policed.queue)
        headers = {"task": "els.assign_content", "id": str(uuid4())}
        Producer(channel).publish(
            [[], {"event": event}, {}],
            exchange=policed.queue,
            routing_key=key.replace("QUEUE", policed.queue),
            serializer="json",
            headers=headers,
        )
    until(lambda: policed.depth(".dead") == 1, what="it is kept")

    policed.start()

    assert until(lambda: outcome_of(event), what="it is executed")["outcome"] == "pending"
    assert letters() == []


@pytest.mark.parametrize(
    ("task", "code"), [("els.assign_content", "MALFORMED_MESSAGE"), ("els.none", "UNKNOWN_TASK")]
)
def test_a_message_that_a_worker_rejects_becomes_a_dead_letter(
    workers, node, letters, rejecting, task, code
):
    event = make.content(make.new_batch())
    workers.start()
    workers.ready(1)

    rejecting(workers, task, event).reject()
    [letter] = until(letters, what="the letter is written")

    assert (letter["code"], letter["body"]) == (code, event)


def test_a_rejected_message_that_cannot_be_handed_over_stays(workers, rejecting, node):
    """There is no exchange of the dropped yet."""
    message = rejecting(workers, "els.assign_content", make.content(make.new_batch()))

    message.reject()

    assert until(lambda: workers.depth() == 1, what="the message is back")


@pytest.fixture
def rejecting(node, monkeypatch):
    """Takes a message as a worker does."""
    opened = []

    def take(workers, task, event):
        aside = f"{workers.queue}.aside"
        workers.upstream.conf.broker_transport = OURS
        workers.upstream.conf.task_default_queue = workers.queue
        monkeypatch.setattr(
            Channel, "on_drop", staticmethod(lambda message: drop(workers.upstream, message))
        )
        queue = aside if workers.processes else workers.queue
        workers.upstream.send_task(task, kwargs={"event": event}, queue=queue)
        connection = node.connection(OURS)
        opened.append(connection)
        return until(Queue(queue).bind(connection.channel()).get)

    yield take
    for connection in opened:
        connection.close()


def test_a_worker_names_the_commands_that_set_the_policy(workers, node):
    workers.start()
    until(lambda: "broker_has_no_dead_letter_policy" in workers.log(), what="the worker warns")

    script = f'rabbitmqctl() {{ sh scripts/rabbitmq ctl "{node.folder}" "$@"; }}\n'
    subprocess.run(["sh", "-ec", script + policy_commands(workers.queue)], check=True)
    workers.start()

    until(lambda: "broker_hands_over_what_it_drops" in workers.log(), what="the policy works")


def test_the_script_sets_the_policy_that_a_worker_names(workers, node):
    node.do("policy", workers.queue)
    by_script = [row for row in node.ctl("list_policies").splitlines() if workers.queue in row]
    script = f'rabbitmqctl() {{ sh scripts/rabbitmq ctl "{node.folder}" "$@"; }}\n'

    subprocess.run(["sh", "-ec", script + policy_commands(workers.queue)], check=True)

    assert by_script
    assert by_script == [
        row for row in node.ctl("list_policies").splitlines() if workers.queue in row
    ]


def test_what_the_worker_drops_says_so(workers, node, rejecting):
    with node.connection() as connection:
        dead = dead_queue(workers.queue).bind(connection.channel())
        dead.declare()
        rejecting(workers, "els.assign_content", make.content(make.new_batch())).reject()
        message = until(dead.get, what="the message is handed over")

    assert message.headers[DROPPED] == "rejected"
