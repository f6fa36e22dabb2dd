"""What is wrong with RabbitMQ, or lies there."""

import json
from contextlib import contextmanager

from kombu import Queue
from kombu.transport.native_delayed_delivery import level_name

from tests import factories as make
from tests.explain.cause import cause
from tests.explain.causes.workers import giving_no_sign, named_by_its_consumer
from tests.explain.place import WAIT_S
from tests.live.conftest import until
from tests.rabbitmq.node import sender

WAITING = "waiting_for_contents"


@cause(
    "no_worker",
    says=["1 message waits in the queue celery, which nobody takes from", "whose they are"],
    never=["no dead letter"],
)
def its_content_lies_in_the_default_queue(rabbitmq):
    batch = rabbitmq.insert_batch()
    with rabbitmq.node.connection() as connection:
        queue = Queue("celery", channel=connection.default_channel)
        queue.declare()
        connection.Producer().publish({}, routing_key="celery")
        until(lambda: queue.queue_declare(passive=True).message_count, 20, "it lies there")
        yield batch
        queue.delete()


@cause("no_worker", says=["1 message waits in the queue els-", "no worker has it open"])
def no_worker_takes_its_content(rabbitmq):
    batch = rabbitmq.insert_batch()
    event = make.content(batch)
    app = sender(rabbitmq.node.url)
    app.send_task("els.assign_content", kwargs={"event": event}, queue=rabbitmq.queue)
    yield batch


@cause("foreign_consumer", says=["(celery@legacy-"], never=["2 consumers"], step="cancel_consumer")
def another_program_takes_its_messages(rabbitmq):
    rabbitmq.run()
    batch = rabbitmq.register()
    with rabbitmq.another_program():
        yield batch


@contextmanager
def consuming(rabbitmq):
    """Take from the queue, as a script that is no Celery worker."""
    with rabbitmq.node.connection() as connection:
        queue = Queue(rabbitmq.queue, channel=connection.default_channel)
        queue.consume(no_ack=False)
        yield


@cause(
    WAITING,
    says=["2 consumers take from the queue els-", "1 worker of this service gives a sign of life"],
    never=["no dead letter"],
    step="rabbitmqctl list_consumers",
)
def a_script_takes_its_messages(rabbitmq):
    rabbitmq.run()
    batch = rabbitmq.register()
    with consuming(rabbitmq):
        yield batch


@named_by_its_consumer
def its_worker_uses_another_redis(rabbitmq):
    with giving_no_sign(rabbitmq) as batch:
        yield batch


@cause(
    WAITING,
    says=["RabbitMQ holds 1 message for over 17 minutes", "`countdown` in seconds"],
    never=["no dead letter"],
)
def its_content_waits_for_a_countdown_in_milliseconds(rabbitmq):
    rabbitmq.run()
    batch = rabbitmq.register()
    sender(rabbitmq.node.url).send_task(
        "els.assign_content",
        kwargs={"event": make.content(batch)},
        queue=rabbitmq.queue,
        countdown=60_000,
    )
    yield batch
    with rabbitmq.node.connection() as connection:
        for level in range(28):
            connection.default_channel.queue_purge(level_name(level))


@cause(
    "no_worker",
    says=["1 message waits in the queue els-", "of the virtual host /, which nobody takes from"],
    never=["no dead letter"],
)
def its_sender_names_no_virtual_host(rabbitmq):
    rabbitmq.node.ctl("add_vhost", "school")
    rabbitmq.node.ctl("set_permissions", "-p", "school", "guest", ".*", ".*", ".*")
    batch = rabbitmq.insert_batch()
    app = sender(rabbitmq.node.url)
    event = make.content(batch)
    app.send_task("els.assign_content", kwargs={"event": event}, queue=rabbitmq.queue)
    yield batch, {"ELS_BROKER_URL": f"{rabbitmq.node.url.rstrip('/')}/school"}


@cause(
    "server_refuses",
    says=["The broker refuses writes", "keeps senders waiting", "memory or disk"],
    step="rabbitmq-diagnostics alarms",
)
def an_alarm_keeps_senders_waiting(rabbitmq):
    batch = rabbitmq.insert_batch()
    rabbitmq.node.ctl("set_vm_memory_high_watermark", "0.0001")
    yield batch
    rabbitmq.node.ctl("set_vm_memory_high_watermark", "0.4")


@cause("broker_unreachable", says=["nowhere"], never=["is down"], step="els env")
def the_virtual_host_is_not_there(rabbitmq):
    url = rabbitmq.node.url.rstrip("/")
    yield rabbitmq.insert_batch(), {"ELS_BROKER_URL": f"{url}/nowhere"}


@cause("broker_unreachable", says=["403"], never=["is down", "start it"], step="right user")
def its_password_is_wrong(rabbitmq):
    url = rabbitmq.node.url.replace("guest:guest", "guest:wrong")
    yield rabbitmq.insert_batch(), {"ELS_BROKER_URL": url}


@cause(
    WAITING,
    says=[
        "RabbitMQ drops what no queue is bound for",
        "what a policy limits",
        "another virtual host",
    ],
    never=["does not answer"],
    step="rabbitmqctl list_policies",
)
def its_message_was_purged(rabbitmq):
    rabbitmq.run()
    yield rabbitmq.register()


@cause(
    "server_refuses",
    says=["The broker refuses writes", "access to vhost", "refused for user 'guest'"],
    never=["does not answer", "start it on that host"],
    step="rabbitmqctl set_permissions",
)
def its_user_lost_its_rights(rabbitmq):
    rabbitmq.worker()
    rabbitmq.start_beat()
    batch = rabbitmq.insert_batch()
    rabbitmq.node.ctl("clear_permissions", "-p", "/", "guest")
    rabbitmq.node.drop_connections()
    try:
        until(rabbitmq.pauses, WAIT_S, "the worker is refused")
        yield batch
    finally:
        rabbitmq.node.ctl("set_permissions", "-p", "/", "guest", ".*", ".*", ".*")


def until_it_lacks(rabbitmq, words):
    """Wait until a worker has found this to be wrong with RabbitMQ."""

    def found():
        signs = rabbitmq.signs().signs.values()
        return any(words in each["wrong"] for sign in signs for each in sign.broker_lacks)

    until(found, WAIT_S, f"a worker says: {words}")


def with_policies(rabbitmq):
    """Set ours for its queue, and start a worker and beat."""
    rabbitmq.node.do("policy", rabbitmq.queue)
    rabbitmq.run()
    return rabbitmq.register()


@cause(
    "broker_lacks",
    among=2,
    says=["it has no policy by which it hands over what it drops", "lost: messages that expire"],
    step="rabbitmqctl set_policy",
)
def its_broker_has_no_policies(rabbitmq):
    rabbitmq.run()
    batch = rabbitmq.register()
    until_it_lacks(rabbitmq, "has no policy")
    yield batch


@cause(
    "broker_lacks",
    among=2,
    says=["at the queue els-", "another policy overrules ours"],
    never=["has no policy by which"],
    step="rabbitmqctl list_policies",
)
def a_policy_drops_the_oldest_of_its_queue(rabbitmq):
    name = rabbitmq.queue
    policy = (f"{name}-short", f"^{name}$", json.dumps({"max-length": 100}))
    rabbitmq.node.ctl("set_policy", *policy, "--apply-to", "queues", "--priority", "50")
    batch = with_policies(rabbitmq)
    until_it_lacks(rabbitmq, f"at the queue {name}, ")
    yield batch
    rabbitmq.node.ctl("clear_policy", policy[0])


@cause(
    "broker_lacks",
    among=2,
    says=["a policy limits how long messages wait in els-", "while no worker is there"],
    step="message-ttl",
)
def a_policy_limits_what_it_drops(rabbitmq):
    name = rabbitmq.queue
    policy = (name, f"^{name}", json.dumps({"message-ttl": 300}))
    batch = with_policies(rabbitmq)
    rabbitmq.node.ctl("set_operator_policy", *policy, "--apply-to", "queues")
    rabbitmq.node.drop_connections()
    until_it_lacks(rabbitmq, f"wait in {name}.dead")
    yield batch
    rabbitmq.node.ctl("clear_operator_policy", name)


@cause(
    "broker_lacks",
    says=["has declared the queue els-", "no worker takes messages from a stream"],
    step="rabbitmqctl delete_queue els-",
)
def its_queue_is_a_stream(rabbitmq):
    with rabbitmq.node.connection() as connection:
        connection.channel().queue_declare(
            rabbitmq.queue, durable=True, auto_delete=False, arguments={"x-queue-type": "stream"}
        )
    rabbitmq.node.do("policy", rabbitmq.queue)
    rabbitmq.run()
    until_it_lacks(rabbitmq, "otherwise")
    yield rabbitmq.insert_batch()
