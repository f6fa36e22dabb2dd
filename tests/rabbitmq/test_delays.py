"""A countdown or eta of any length is honoured on RabbitMQ, and stops no other message."""

import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from kombu.transport.native_delayed_delivery import calculate_routing_key

from core.slots import Slots
from tests import factories as make
from tests.live.conftest import until

SLOTS = 3
LATE_S = 3  # a second of rounding, and a slow machine


@pytest.fixture
def batch(worker, outcome_of):
    batch = make.new_batch()
    registration = make.registration(batch, SLOTS)
    worker.send("els.register_batch", registration)
    until(lambda: outcome_of(registration), what="the batch is registered")
    return batch


@pytest.mark.parametrize("wait_s", [0.3, 1.7, 4, 9.5])
def test_an_eta_is_honoured(worker, batch, outcome_of, wait_s):
    event = make.content(batch)

    eta = worker.send_with_eta("els.assign_content", event, wait_s)
    outcome = until(lambda: outcome_of(event), wait_s + 10, "the content is placed")
    placed = datetime.now(UTC)

    assert outcome["outcome"] == "assigned"
    assert 0 <= (placed - eta).total_seconds() < LATE_S


@pytest.mark.parametrize("wait_s", [1, 1.7, 6])
def test_a_countdown_of_a_documented_sender_is_honoured(worker, batch, outcome_of, wait_s):
    event = make.content(batch)
    sent = time.monotonic()

    worker.send("els.assign_content", event, countdown=wait_s)
    outcome = until(lambda: outcome_of(event), wait_s + 10, "the content is placed")

    assert outcome["outcome"] == "assigned"
    assert wait_s <= time.monotonic() - sent < wait_s + LATE_S


def test_a_message_that_waits_twice_in_the_same_delay_is_no_cycle(worker, batch, outcome_of):
    """Its sender's clock is ahead: the message comes out of the delays, and has to wait on."""
    event = make.content(batch)
    app, task_id = worker.upstream, str(uuid4())
    eta = datetime.now(UTC) + timedelta(seconds=13.9)
    message = app.amqp.create_task_message(
        task_id, "els.assign_content", (), {"event": event}, eta=eta
    )

    with app.producer_or_acquire() as producer:
        app.amqp.send_task_message(
            producer,
            "els.assign_content",
            message,
            exchange="celery_delayed_27",
            routing_key=calculate_routing_key(7, worker.queue),  # 4, 2, 1 s; then 4, 2 s or so
        )

    outcome = until(lambda: outcome_of(event), 25, "the content is placed")
    assert outcome["outcome"] == "assigned"
    assert datetime.now(UTC) >= eta


def test_a_worker_with_many_far_etas_takes_other_messages(worker, batch, outcome_of):
    for number in range(600):  # a process may hold 200
        event = make.content(batch, f"far-{number}")
        worker.send_with_eta("els.assign_content", event, 3600 + number)
    event = make.content(batch, "now")

    worker.send("els.assign_content", event)

    outcome = until(lambda: outcome_of(event), what="the content is placed")
    assert outcome["outcome"] == "assigned"
    assert worker.depth() == 0


def test_a_retry_after_a_fraction_of_a_second_is_not_lost(worker, batch, valkey, outcome_of):
    """`SlotsInFlight`: others have claimed every slot, and have not placed anything yet."""
    claimants = [f"other-{number}" for number in range(SLOTS)]
    others = Slots(valkey).claim({batch: claimants})[batch]
    event = make.content(batch, "late")

    worker.send("els.assign_content", event)
    until(lambda: _says_in_flight(worker), what="the content waits")
    Slots(valkey).release(batch, others, still_open=True)

    assert until(lambda: outcome_of(event), what="the content is placed")["outcome"] == "assigned"


def _says_in_flight(worker):
    return "slots are claimed" in worker.log() or "retried" in worker.log()
