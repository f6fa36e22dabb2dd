"""What a worker tells RabbitMQ of messages that end together."""

import struct

import amqp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.worker.amqp import Channel, Connection, Settled


@given(st.permutations(range(1, 30)), st.integers(0, 29))
def test_all_are_settled_up_to_the_first_that_is_not(order, count):
    settled = Settled()
    for tag in order[:count]:
        settled.add(tag)

    assert settled.all_up_to() == min(order[count:], default=30) - 1


@pytest.fixture
def told():
    """The frames of a channel: what each says, of which message, and whether of all before it."""
    return []


@pytest.fixture
def channel(told):
    def write(_type, _channel, method, arguments, _content):
        name = {amqp.spec.Basic.Ack: "ack", amqp.spec.Basic.Reject: "reject"}[method]
        told.append((name, *struct.unpack(">Q?", arguments)))

    connection = Connection()
    connection.frame_writer = write
    return Channel(connection)


def test_messages_behind_which_none_is_left_are_acknowledged_by_one_frame(channel, told):
    channel.acknowledge([3, 1, 2])
    channel.acknowledge([4, 5])

    assert told == [("ack", 3, True), ("ack", 5, True)]


def test_what_still_runs_is_not_acknowledged_with_what_came_after_it(channel, told):
    channel.acknowledge([1, 3, 4])

    assert told == [("ack", 1, True), ("ack", 3, False), ("ack", 4, False)]

    del told[:]
    channel.acknowledge([2, 5])

    assert told == [("ack", 5, True)]


def test_a_message_is_not_acknowledged_twice(channel, told):
    """A broker closes the channel then."""
    channel.acknowledge([2])
    channel.acknowledge([1])

    assert told == [("ack", 2, False), ("ack", 1, True)]


def test_messages_that_end_alone_leave_no_gap(channel, told):
    channel.basic_ack(1)
    channel.basic_reject(2, requeue=True)
    channel.acknowledge([3, 4])

    assert told == [("ack", 1, False), ("reject", 2, True), ("ack", 4, True)]
