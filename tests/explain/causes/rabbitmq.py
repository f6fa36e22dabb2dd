"""What is wrong with RabbitMQ, or lies there."""

from kombu import Queue

from tests import factories as make
from tests.explain.cause import cause
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


@cause("broker_unreachable", says=["403"], never=["is down"])
def its_password_is_wrong(rabbitmq):
    url = rabbitmq.node.url.replace("guest:guest", "guest:wrong")
    yield rabbitmq.insert_batch(), {"ELS_BROKER_URL": url}
