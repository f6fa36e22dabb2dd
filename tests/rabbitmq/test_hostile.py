"""What nobody should send, on RabbitMQ: it ends no worker, takes no memory, and is kept."""

import sys
from datetime import UTC, datetime

import pytest
from amqp import basic_message

from tasks.worker.amqp_dropped import dead_name
from tests import factories as make
from tests.hostile import (
    BOMBS,
    HEADERS,
    HOSTILE,
    LINK,
    MIB,
    Hostile,
    assert_says_what_is_wrong,
    compressed,
    ends_of,
    nest,
    with_wrong,
)
from tests.live.conftest import until
from tests.live.test_hostile import MOST_MEMORY, children, peaks
from tests.rabbitmq.conftest import RabbitWorkers

# RabbitMQ's own limits come first: on a message, and on its headers.
IMPOSSIBLE = {"far too large", "a long task", "a long id", "others' ids", "many headers"}

REFUSED = {"NaN"}  # RabbitMQ ends a connection with INTERNAL_ERROR


@pytest.fixture(scope="module")
def hostile_worker(database_url, tmp_path_factory, node):
    workers = RabbitWorkers(tmp_path_factory.mktemp("hostile"), node)
    workers.start()
    yield workers.ready(1)
    workers.close()


@pytest.fixture
def push(hostile_worker, node):
    """Put a message into the queue as it is."""

    def pushed(hostile: Hostile, queue="", **properties):
        headers, body, _ = hostile.build()
        message = basic_message.Message(
            body,
            application_headers=headers,
            content_type=hostile.content_type,
            content_encoding=hostile.content_encoding,
            **{"reply_to": "somebody", "delivery_mode": 2, **properties},
        )
        with node.connection() as connection:
            routing_key = queue or hostile_worker.queue
            connection.default_channel.basic_publish(message, routing_key=routing_key)

    return pushed


def assert_works(worker, outcome_of):
    event = make.registration(make.new_batch(), 1)
    worker.send("els.register_batch", event)
    until(lambda: outcome_of(event), what="a good message is executed")


@pytest.mark.parametrize("method", ["gzip", "xz"])
def test_a_compressed_message_takes_no_memory(hostile_worker, push, letters, outcome_of, method):
    push(Hostile("VALIDATION_ERROR", {"compression": method}, compressed(BOMBS[method]())))

    [letter] = until(letters, what="it is kept")
    assert (letter["code"], letter["task"]) == ("VALIDATION_ERROR", "els.assign_content")
    assert_works(hostile_worker, outcome_of)
    assert max(peaks(hostile_worker)) < 300 * MIB


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - IMPOSSIBLE))
def test_a_hostile_message_is_kept_or_harmless(
    hostile_worker, push, valkey, letters, outcome_of, name
):
    hostile, before = HOSTILE[name], children(hostile_worker)

    push(hostile)

    if hostile.code:
        assert until(letters, 15, "it is kept")[0]["code"] == hostile.code
    assert_works(hostile_worker, outcome_of)
    assert hostile.code or not letters()
    assert children(hostile_worker) == before, "a process of the pool died"
    assert not valkey.exists(LINK["options"]["queue"])
    assert max(peaks(hostile_worker)) < MOST_MEMORY


@pytest.mark.parametrize("header", HEADERS)
def test_no_value_of_a_header_ends_a_worker(hostile_worker, push, conn, outcome_of, header):
    messages, before = with_wrong(header, but=REFUSED), children(hostile_worker)

    for each in messages:
        push(each)

    batches = [each.batch for each in messages]
    until(lambda: len(ends_of(conn, batches)) == len(batches), 20, "each message ends")
    assert_works(hostile_worker, outcome_of)
    for letter in ends_of(conn, batches).values():
        if "code" in letter:
            assert_says_what_is_wrong(letter, header)
    assert hostile_worker.processes[0].poll() is None
    assert children(hostile_worker) == before, "a process of the pool died"


@pytest.mark.parametrize("header", ["task", "id", "x-death", "eta", "compression"])
def test_no_header_of_a_dropped_message_ends_a_worker(
    hostile_worker, push, conn, outcome_of, header
):
    messages = with_wrong(header, but=REFUSED)

    for each in messages:
        push(each, dead_name(hostile_worker.queue))

    batches = [each.batch for each in messages]
    until(lambda: len(ends_of(conn, batches)) == len(batches), 20, "each message is kept")
    assert_works(hostile_worker, outcome_of)
    assert hostile_worker.processes[0].poll() is None


UNREADABLE = {
    "nested deeply": ({"eta": nest(3_000)}, {}),
    "no UTF-8": ({}, {"correlation_id": b"\xff\xfe"}),
    "a time without end": ({"eta": datetime.max.replace(tzinfo=UTC)}, {}),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_no_client_can_read_is_kept(hostile_worker, push, letters, outcome_of, name):
    headers, properties = UNREADABLE[name]
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # of the sender
    try:
        push(Hostile(None, headers), **properties)
    finally:
        sys.setrecursionlimit(before)

    [letter] = until(letters, 15, "it is kept")
    assert letter["code"] == "MALFORMED_MESSAGE"
    assert_works(hostile_worker, outcome_of)
