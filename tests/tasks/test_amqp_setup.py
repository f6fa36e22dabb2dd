"""What a worker makes of RabbitMQ's words."""

import re
from pathlib import Path

import pytest

from tasks.worker.amqp import Message
from tasks.worker.amqp_delays import LONGEST_DELAY_S, _routing_key
from tasks.worker.amqp_dropped import DROPPED, OUTLIVED, why_dropped
from tasks.worker.amqp_policy import policies, policy_commands


@pytest.mark.parametrize(
    ("wait_s", "bits"), [(0, "1"), (1, "1"), (40, "101000"), (3600, "111000010000")]
)
def test_a_delay_takes_whole_seconds_and_one_at_least(wait_s, bits):
    *levels, queue = _routing_key(wait_s, "els").split(".")

    assert ("".join(levels).lstrip("0"), len(levels), queue) == (bits, 28, "els")


def test_a_delay_longer_than_the_longest_is_cut():
    assert _routing_key(2 * LONGEST_DELAY_S, "els") == _routing_key(LONGEST_DELAY_S, "els")


DELAYED = {"queue": "celery_delayed_3", "reason": "expired"}
WHY = {
    "it expired": (
        [{"queue": "els", "reason": "expired", "original-expiration": "500"}],
        "expired",
    ),
    "its queue has a time to live": ([{"queue": "els", "reason": "expired"}], OUTLIVED),
    "it was delayed, then rejected": (
        [{"queue": "els", "reason": "rejected"}, DELAYED],
        "rejected",
    ),
    "it was delayed last": ([DELAYED, {"queue": "els", "reason": "rejected"}], "rejected"),
    "it was delayed only": ([DELAYED], "unknown"),
    "nothing is said": (None, "unknown"),
}


@pytest.mark.parametrize(("deaths", "reason"), WHY.values(), ids=WHY.keys())
def test_a_delay_is_no_drop(deaths, reason):
    assert why_dropped({"x-death": deaths}) == reason


def test_a_message_that_a_worker_dropped_says_so_itself():
    deaths = [{"queue": "els", "reason": "expired"}]

    assert why_dropped({DROPPED: "rejected", "x-death": deaths}) == "rejected"


@pytest.mark.parametrize(
    ("name", "queue", "exchange"),
    [
        ("els", "els-quorum", True),
        ("els.internal", "els-quorum", True),
        ("els.check-1", "els-quorum", True),
        ("els.dead", "els-dead", False),
        ("els.events", None, False),
        ("els2", None, False),
        ("celery_delayed_3", None, True),
        ("celery_delayed_delivery", None, True),
        ("celeryev", None, False),
    ],
)
def test_the_policies_cover_what_is_the_services(name, queue, exchange):
    matching = [
        (policy, kind)
        for policy, pattern, _, kind, priority in sorted(policies("els"), key=lambda each: each[4])
        if re.search(pattern, name)
    ]
    of_queues = [policy for policy, kind in matching if kind == "queues"]

    assert (of_queues[-1] if of_queues else None) == queue
    assert (("els-unroutable", "exchanges") in matching) is exchange


class Received:
    """A message as py-amqp has it."""

    body = b"{}"
    delivery_tag = 1

    def __init__(self, headers, redelivered):
        self.properties = {"application_headers": headers}
        self.delivery_info = {"redelivered": redelivered}


@pytest.mark.parametrize(
    ("headers", "redelivered", "lost"),
    [
        ({}, False, None),
        ({"x-delivery-count": 17}, True, 1),
        ({"x-delivery-count": 17}, False, None),  # published again with the old count
    ],
)
def test_a_requeue_is_one_lost_worker_at_most(headers, redelivered, lost):
    message = Message(Received(headers, redelivered))

    assert message.headers.get("x-delivery-count") == lost


@pytest.mark.parametrize("command", policy_commands("els").split(" && "))
def test_the_docs_have_the_commands_that_a_worker_names(command):
    assert command in Path("docs/tasks.md").read_text()
