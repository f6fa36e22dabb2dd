"""The steps of a batch in short: build the event, take the step, return the task's value."""

from tests.factories import (
    amendment,
    association,
    cancellation,
    confirmation,
    content,
    contents,
    registration,
    rejection,
    take,
)


def register(lifecycle, batch_id, essays=3, **fields):
    return take(lifecycle, "els.register_batch", registration(batch_id, essays, **fields)).value


def assign(lifecycle, batch_id, text="text-1", **fields):
    return take(lifecycle, "els.assign_content", content(batch_id, text, **fields)).value


def upload(lifecycle, batch_id, texts, **fields):
    return take(lifecycle, "els.assign_contents", contents(batch_id, texts, **fields)).value


def reject(lifecycle, batch_id, file="file-1", **fields):
    return take(lifecycle, "els.reject_content", rejection(batch_id, file, **fields)).value


def confirm(lifecycle, batch_id, students, **fields):
    """Confirm essay id to student id."""
    told = [association(essay, student) for essay, student in students.items()]
    return take(lifecycle, "els.confirm_students", confirmation(batch_id, told, **fields)).value


def cancel(lifecycle, batch_id, reason="teacher asked"):
    return take(lifecycle, "els.cancel_batch", cancellation(batch_id, reason)).value


def amend(lifecycle, batch_id, **fields):
    return take(lifecycle, "els.amend_batch", amendment(batch_id, **fields)).value


def texts(count, start=0):
    return [f"text-{number:06d}" for number in range(start, start + count)]


def fill(lifecycle, batch_id, essays=3, **fields):
    """Register a batch and give every slot a content; nobody announces it yet."""
    register(lifecycle, batch_id, essays, **fields)
    count = essays if isinstance(essays, int) else len(essays)
    for start in range(0, count, 500):
        upload(lifecycle, batch_id, texts(min(500, count - start), start))
