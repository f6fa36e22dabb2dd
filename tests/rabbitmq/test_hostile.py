"""What nobody should send, on RabbitMQ: it ends no worker, takes no memory, and is kept."""

import psutil
import pytest
from amqp import basic_message

from tests import factories as make
from tests.hostile import BOMBS, HOSTILE, LINK, MIB, Hostile, compressed
from tests.live.conftest import until
from tests.live.test_hostile import MOST_MEMORY, peaks

# RabbitMQ's own limits come first: on a message, and on its headers.
IMPOSSIBLE = {"far too large", "a long task", "a long id", "others' ids", "many headers"}


@pytest.fixture
def push(worker, node):
    """Put a message into the queue as it is."""

    def pushed(hostile: Hostile):
        headers, body, _ = hostile.build()
        message = basic_message.Message(
            body,
            application_headers=headers,
            content_type=hostile.content_type,
            content_encoding=hostile.content_encoding,
            reply_to="somebody",
            delivery_mode=2,
        )
        with node.connection() as connection:
            connection.default_channel.basic_publish(message, routing_key=worker.queue)

    return pushed


def assert_works(worker, outcome_of):
    event = make.registration(make.new_batch(), 1)
    worker.send("els.register_batch", event)
    until(lambda: outcome_of(event), what="a good message is executed")


def children(worker):
    return {p.pid for p in psutil.Process(worker.processes[0].pid).children(recursive=True)}


@pytest.mark.parametrize("method", ["gzip", "xz"])
def test_a_compressed_message_takes_no_memory(worker, push, letters, outcome_of, method):
    push(Hostile("VALIDATION_ERROR", {"compression": method}, compressed(BOMBS[method]())))

    [letter] = until(letters, what="it is kept")
    assert (letter["code"], letter["task"]) == ("VALIDATION_ERROR", "els.assign_content")
    assert_works(worker, outcome_of)
    assert max(peaks(worker)) < 300 * MIB


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - IMPOSSIBLE))
def test_a_hostile_message_is_kept_or_harmless(worker, push, valkey, letters, outcome_of, name):
    hostile, before = HOSTILE[name], children(worker)

    push(hostile)

    if hostile.code:
        assert until(letters, 15, "it is kept")[0]["code"] == hostile.code
    assert_works(worker, outcome_of)
    assert hostile.code or not letters()
    assert children(worker) == before, "a process of the pool died"
    assert not valkey.exists(LINK["options"]["queue"])
    assert max(peaks(worker)) < MOST_MEMORY
