"""What the tasks count, in this process."""

import threading

import pytest

from core.metrics import counted
from tasks.attempts import TRIES
from tasks.maintenance import sweep
from tests.core import conftest as core
from tests.core.story import register
from tests.factories import (
    association,
    cancellation,
    confirmation,
    content,
    contents,
    registration,
    rejection,
)
from tests.tasks.test_outcomes import ASSIGN, CANCEL, CONFIRM, REGISTER, REJECT, UPLOAD

failing_essay = core.failing_essay
ASIDE = ("els_claims", "els_events_published")  # tests of their own look at these


@pytest.fixture
def more():
    """Tell what was counted since; durations by their number alone; without `ASIDE`."""
    before = counted()

    def since(aside=ASIDE):
        return {
            name: value - before.get(name, 0)
            for name, value in counted().items()
            if value != before.get(name, 0)
            and not any(part in name for part in ("_bucket", "_sum", *aside))
        }

    return since


def of(more, metric):
    """Tell what one metric counted since, by label."""
    counts = more(aside=())
    return {name.split('"')[1]: value for name, value in counts.items() if name.startswith(metric)}


def became(outcome, number=1):
    return {f'els_content_assignment_total{{outcome="{outcome}"}}': number}


def test_each_content_of_an_upload_is_counted_by_what_became_of_it(send, more, batch_id):
    send(UPLOAD, contents(batch_id, ["early"]))
    send(REGISTER, registration(batch_id, 4))
    send(REJECT, rejection(batch_id))
    send(UPLOAD, contents(batch_id, ["text-1", "text-2"]))
    send(UPLOAD, contents(batch_id, ["text-2", "text-3"]))
    cancelled = f"{batch_id}-cancelled"
    send(REGISTER, registration(cancelled, 1))
    send(CANCEL, cancellation(cancelled))
    send(ASSIGN, content(cancelled, "late"))

    assert more() == {
        'els_batch_registration_total{outcome="registered"}': 2,
        "els_batch_registration_seconds_count": 2,
        "els_content_assignment_seconds_count": 5,
        "els_batch_readiness_seconds_count": 1,
        **became("pending"),
        **became("failed_slot"),
        **became("assigned", 2),
        **became("excess"),
        **became("closed"),
    }


def test_a_repeat_counts_no_content_again(send, more, batch_id):
    send(REGISTER, registration(batch_id, 2))
    event = content(batch_id, "text-1")

    for _ in range(3):
        send(ASSIGN, event)
    send(ASSIGN, content(batch_id, "text-1"))

    assert more() == {
        'els_batch_registration_total{outcome="registered"}': 1,
        "els_batch_registration_seconds_count": 1,
        "els_content_assignment_seconds_count": 4,
        **became("assigned"),
    }


def test_a_regular_batch_is_ready_once_its_students_are_known(send, more, batch_id):
    send(REGISTER, registration(batch_id, 1, class_id="class-1"))
    send(ASSIGN, content(batch_id, "text-1"))
    unready = more().get("els_batch_readiness_seconds_count")

    send(CONFIRM, confirmation(batch_id, [association("essay-000000")]))

    assert unready is None
    assert more()["els_batch_readiness_seconds_count"] == 1


def test_events_are_counted_by_type_when_the_broker_took_them(send, more, batch_id):
    send(REGISTER, registration(batch_id, 2))
    send(REJECT, rejection(batch_id))
    send(ASSIGN, content(batch_id, "text-1"))
    send(ASSIGN, content(batch_id, "text-2"))

    assert of(more, "els_events_published_total") == {
        "BatchContentProvisioningCompleted": 1,
        "BatchValidationErrors": 1,
        "BatchEssaysReady": 1,
        "ExcessContentProvisioned": 1,
    }


def test_claims_are_counted_by_result(send, more, lifecycle, batch_id):
    event = content(batch_id, "text-1")
    send(REGISTER, registration(batch_id, 2))
    send(ASSIGN, event)
    send(ASSIGN, event)
    send(ASSIGN, content(batch_id, "text-2"))
    send(ASSIGN, content(batch_id, "text-3"))
    first = of(more, "els_claims_total")

    other = f"{batch_id}-flushed"
    send(REGISTER, registration(other, 1))
    lifecycle.slots.client.flushdb()
    send(ASSIGN, content(other, "text-1"))

    assert first == {"new": 2, "held": 1, "none": 1}
    assert of(more, "els_claims_total") == {"new": 3, "held": 1, "none": 2, "stale": 1}


def test_a_registration_that_fails_is_counted_by_sqlstate(send, more, batch_id, failing_essay):
    essay_id, _ = failing_essay

    with pytest.raises(Exception, match="SQLSTATE P0001"):
        send(REGISTER, registration(batch_id, [essay_id]))

    assert more() == {
        'els_batch_registration_total{outcome="dead_letter"}': 1,
        'els_batch_registration_failures_total{sqlstate="P0001"}': TRIES,
        'els_retries_total{sqlstate="P0001"}': TRIES - 1,
    }


def test_a_refused_content_is_counted_as_a_dead_letter(send, more, batch_id):
    send(ASSIGN, {**content(batch_id), "file_size_bytes": -1})

    assert more() == became("dead_letter")


def test_a_retry_is_counted(send, more, batch_id, break_connections):
    send(REGISTER, registration(batch_id, 1))
    break_connections()

    send(ASSIGN, content(batch_id))

    assert more()['els_retries_total{sqlstate="57P01"}'] >= 1
    assert more()['els_content_assignment_total{outcome="assigned"}'] == 1


def test_the_sweep_counts_what_it_mends(more, lifecycle, batch_id):
    register(lifecycle, batch_id)
    lifecycle.slots.client.flushdb()

    sweep.apply().get()

    assert more()['els_sweep_repairs_total{rule="slot_drift"}'] >= 1


def test_in_eager_mode_no_thread_hands_counts_on(send, batch_id):
    send(REGISTER, registration(batch_id, 1))

    assert "els-metrics" not in {thread.name for thread in threading.enumerate()}
