"""Every event may come again at any time: the same value, and no second row or event."""

import pytest

from tests.core import looks
from tests.core.story import assign, cancel, fill, register, reject, texts, upload
from tests.factories import (
    amendment,
    association,
    cancellation,
    confirmation,
    content,
    contents,
    essay_ids,
    registration,
    rejection,
    take,
)


def cancelled(lifecycle, batch_id):
    register(lifecycle, batch_id)
    cancel(lifecycle, batch_id)


def awaiting_students(lifecycle, batch_id):
    fill(lifecycle, batch_id, 3, class_id="class-1")
    lifecycle.complete(batch_id)


def filled_from_afar(lifecycle, batch_id):
    fill(lifecycle, batch_id)
    assign(lifecycle, batch_id, "text-late")


def nothing(lifecycle, batch_id):
    pass


STUDENTS = [association(essay, f"student-of-{essay}") for essay in essay_ids(3)]
# The first word of a name is the outcome; then what comes before, the task, the event.
CASES = {
    "registered": (nothing, "els.register_batch", registration),
    "registered with waiting contents": (
        lambda lifecycle, b: upload(lifecycle, b, texts(5)),
        "els.register_batch",
        registration,
    ),
    "already_registered": (register, "els.register_batch", registration),
    "assigned": (register, "els.assign_content", content),
    "assigned, the last": (
        lambda lifecycle, b: (register(lifecycle, b), upload(lifecycle, b, texts(2))),
        "els.assign_content",
        content,
    ),
    "assigned, known": (
        lambda lifecycle, b: (register(lifecycle, b), assign(lifecycle, b, "text-1")),
        "els.assign_content",
        content,
    ),
    "pending": (nothing, "els.assign_content", content),
    "excess": (fill, "els.assign_content", content),
    "excess, known": (
        filled_from_afar,
        "els.assign_content",
        lambda b: content(b, "text-late"),
    ),
    "closed": (cancelled, "els.assign_content", content),
    "accepted": (register, "els.assign_contents", lambda b: contents(b, texts(2))),
    "accepted, too many": (register, "els.assign_contents", lambda b: contents(b, texts(9))),
    "accepted, waiting": (nothing, "els.assign_contents", lambda b: contents(b, texts(9))),
    "accepted, closed": (cancelled, "els.assign_contents", lambda b: contents(b, texts(2))),
    "failed_slot": (register, "els.reject_content", rejection),
    "failed_slot, known": (
        lambda lifecycle, b: (register(lifecycle, b), reject(lifecycle, b)),
        "els.reject_content",
        rejection,
    ),
    "pending failure": (nothing, "els.reject_content", rejection),
    "excess failure": (fill, "els.reject_content", rejection),
    "closed failure": (cancelled, "els.reject_content", rejection),
    "confirmed": (awaiting_students, "els.confirm_students", lambda b: confirmation(b, STUDENTS)),
    "amended": (register, "els.amend_batch", amendment),
    "amended, full": (fill, "els.amend_batch", amendment),
    "cancelled": (register, "els.cancel_batch", cancellation),
    "cancelled, known": (cancelled, "els.cancel_batch", cancellation),
    "cancelled, awaiting students": (awaiting_students, "els.cancel_batch", cancellation),
}


def move_on(lifecycle, batch_id):
    """Bring the batch as far as it can get."""
    register(lifecycle, batch_id)
    upload(lifecycle, batch_id, texts(4, start=500))
    lifecycle.complete(batch_id)


@pytest.mark.parametrize("moved", [False, True], ids=["at-once", "much-later"])
@pytest.mark.parametrize("flushed", [False, True], ids=["warm", "flushed"])
@pytest.mark.parametrize("case", CASES)
def test_a_repeat_returns_the_first_value_and_writes_nothing(
    lifecycle, slots, conn, batch_id, case, flushed, moved
):
    prepare, task, build = CASES[case]
    prepare(lifecycle, batch_id)
    event = build(batch_id)
    first = take(lifecycle, task, event).value
    if moved:
        move_on(lifecycle, batch_id)
    before = looks.everything(conn, batch_id)
    if flushed:
        slots.client.flushdb()

    again = [take(lifecycle, task, event).value for _ in range(2)]

    assert first["outcome"] == case.replace(",", "").split()[0]
    assert again == [first] * 2
    assert looks.everything(conn, batch_id) == before
    row = looks.batch(conn, batch_id)
    if row and row["status"] != "cancelled":
        assert slots.free(batch_id) <= looks.open_slots(conn, batch_id)


def test_the_repeat_of_the_last_event_of_a_full_batch_asks_for_its_announcement_again(
    lifecycle, batch_id
):
    fill(lifecycle, batch_id, 2)
    event = content(batch_id, texts(1)[0])
    take(lifecycle, "els.assign_content", event)

    assert take(lifecycle, "els.assign_content", event).full
    lifecycle.complete(batch_id)
    assert not take(lifecycle, "els.assign_content", event).full


def test_the_order_of_fields_makes_no_other_body(lifecycle, conn, batch_id):
    register(lifecycle, batch_id)
    event = content(batch_id)
    first = take(lifecycle, "els.assign_content", event).value

    again = take(lifecycle, "els.assign_content", dict(reversed(event.items()))).value

    assert again == first
    assert looks.count_rows(conn, batch_id)["idempotency_keys"] == 2
