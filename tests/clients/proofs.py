"""What a kit promises, as tests: each kit runs them with its own sender and receiver.

`AWAY_S=600` keeps the broker away for ten minutes, `KILLS` sets how often the receiver is killed.
"""

import os
import random
import time

import psycopg
import pytest

from els_client.inbox import Inbox
from tests import factories as make
from tests.live.conftest import until

AWAY_S = float(os.environ.get("AWAY_S", "5"))  # how long the broker is away
KILLS = int(os.environ.get("KILLS", "50"))
ADDED = ("event_id", "correlation_id", "timestamp", "schema_version", "expected_essay_count")


def draft(event):
    """Leave out what a kit adds."""
    return {name: value for name, value in event.items() if name not in ADDED}


def a_batch(size):
    """Draft a registration and a content for each of its slots."""
    batch = make.new_batch()
    register = ("els.register_batch", draft(make.registration(batch, size)))
    texts = [f"{batch}/text-{number}" for number in range(size)]
    assign = [("els.assign_content", draft(make.content(batch, text))) for text in texts]
    return batch, [register, *assign]


def texts_of(messages):
    return sorted(event["text_storage_id"] for _, event in messages[1:])


def test_a_sender_and_a_receiver_take_a_batch_to_its_readiness(neighbours, broker, outcomes):
    batch, messages = a_batch(5)
    neighbours.receiver(broker.url).says(1, "receiving", 60)
    sender = neighbours.sender(broker.url)

    sender.feed(messages)
    sender.feed(messages)  # again: each is a repeat
    ids = sender.says(2 * len(messages))
    sender.finish()

    [event] = until(lambda: neighbours.ready(batch), 30, "the receiver has the batch")
    assert len(event["data"]["ready_essays"]) == 5
    assert ids[: len(messages)] == ids[len(messages) :]
    assert sorted(outcomes(batch)) == sorted(set(ids))
    assert set(outcomes(batch).values()) == {"registered", "assigned"}
    until(lambda: len(neighbours.slots(batch)) == 5, 30, "the receiver has each content")
    assert neighbours.slots(batch) == texts_of(messages)
    with psycopg.connect(neighbours.database_url) as db:
        assert not Inbox().is_new(db, event), "the Python kit reads the inbox of each kit"
        assert Inbox().missing_before(db, event) == []


@pytest.mark.timeout(AWAY_S + 300)
def test_a_broker_that_is_away_costs_nothing(neighbours, broker, outcomes):
    batch, messages = a_batch(60)
    receiver = neighbours.receiver(broker.url)
    receiver.says(1, "receiving", 60)
    sender = neighbours.sender(broker.url)
    sender.feed(messages[:20])
    sender.says(20)

    broker.stop()
    back_at = time.monotonic() + AWAY_S
    sender.feed(messages[20:40])
    ids = sender.says(40)
    sender.kill()
    sender = neighbours.sender(broker.url)
    sender.feed(messages[40:])
    ids += sender.says(len(messages) - 40)
    until(lambda: time.monotonic() > back_at, AWAY_S + 5, "the broker comes back")
    broker.start()
    sender.finish(120)

    until(lambda: neighbours.ready(batch), 120, "the receiver has the batch")
    assert len(neighbours.ready(batch)) == 1
    assert sorted(outcomes(batch)) == sorted(ids)
    until(lambda: len(neighbours.slots(batch)) >= 60, 60, "the receiver has each content")
    assert neighbours.slots(batch) == texts_of(messages)
    assert receiver.process.poll() is None


@pytest.mark.timeout(300 + 10 * KILLS)
def test_a_receiver_that_is_killed_again_and_again_has_each_effect_once(neighbours, broker):
    size = 20 * KILLS
    batch, messages = a_batch(size)
    sender = neighbours.sender(broker.url)
    sender.feed(messages[:1])

    for number in range(KILLS):
        receiver = neighbours.receiver(broker.url)
        sender.feed(messages[1 + 20 * number : 21 + 20 * number])
        receiver.says(1, "receiving", 60)
        moment = time.monotonic() + random.uniform(0, 0.4)
        until(lambda at=moment: time.monotonic() > at, 5, "the moment to kill it")
        receiver.kill()
    before = len(neighbours.slots(batch))
    sender.finish()
    neighbours.receiver(broker.url)

    until(lambda: len(neighbours.slots(batch)) >= size, 120, "the receiver has each content")
    until(lambda: neighbours.ready(batch), 30, "the receiver has the batch")
    assert neighbours.slots(batch) == texts_of(messages)
    assert len(neighbours.ready(batch)) == 1
    assert before > 0, "no receiver lived long enough to do something"
