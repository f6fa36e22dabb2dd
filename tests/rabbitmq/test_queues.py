"""The queues of the service on RabbitMQ: what is ours waits apart, and is counted."""

import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from kombu import Queue

from core.settings import Settings
from ops.heartbeat import UNANSWERED, ask_waiting
from tests import factories as make
from tests.live.conftest import until

LATER_S = 4
CHECK = ".check-"  # in the names of what workers watch and check by
SEND = f"""
from tasks.completion import seal_books
seal_books.apply_async(kwargs={{"batches": []}}, countdown={LATER_S}, ignore_result=False)
"""


@pytest.fixture
def declared(workers):
    """The queues, as a worker has declared them."""
    process = workers.start()
    workers.ready(1)
    process.terminate()
    process.wait(20)
    return Settings(queue=workers.queue).queues


def test_every_queue_of_a_worker_is_replicated_and_reached_by_its_own_exchange(declared, node):
    types = dict(
        line.split("\t") for line in node.ctl("list_queues", "name", "type").splitlines()[1:]
    )
    rows = node.ctl("list_bindings", "source_name", "destination_name").splitlines()
    sources = {
        queue: {
            s
            for s, d in (r.split("\t") for r in rows if "\t" in r)
            if d == queue and CHECK not in s
        }
        for queue in declared
    }
    control, internal, els = declared

    assert {types[queue] for queue in declared} == {"quorum"}
    assert sources[control] - {""} == {control}
    assert sources[internal] - {""} == {internal}
    assert sources[els] - {""} == {els, "celery_delayed_delivery"}


def test_what_waits_is_counted_on_all_queues(declared, workers, node):
    workers.send("els.register_batch", make.registration(make.new_batch()))
    with node.connection() as connection:
        for queue in declared[:2]:
            connection.Producer().publish({}, routing_key=queue)

    until(workers.depth, what="the message is there")

    assert ask_waiting(node.url, declared) == (3, None)
    with pytest.raises(UNANSWERED):
        ask_waiting("amqp://127.0.0.1:1//", declared)


def test_a_step_of_the_chord_that_is_to_wait_is_held_by_a_worker(declared, workers, node):
    settings = {"ELS_BROKER_URL": node.url, "ELS_QUEUE": workers.queue}
    sent = subprocess.run(
        [sys.executable, "-W", "error", "-c", SEND],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    with node.connection() as connection:
        queue = Queue(declared[1]).bind(connection.channel())
        message = until(queue.get, what="the message waits")
        eta = datetime.fromisoformat(message.headers["eta"])
        message.requeue()

    workers.start()
    workers.upstream.AsyncResult(message.headers["id"]).get(timeout=30)

    assert datetime.now(UTC) >= eta
    assert sent.stderr == ""
