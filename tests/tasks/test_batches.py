"""Messages that one process carries out together: each ends as if Celery had run its task."""

import psycopg
import pytest
from celery import signals
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from core.metrics import counted
from tasks import completion, upstream
from tasks.app import app
from tasks.worker.batching import run_batch
from tests.core import looks
from tests.core.story import texts
from tests.factories import cancellation, content, new_batch, registration
from tests.tasks.conftest import ASSIGN, call

REGISTER, CANCEL = "els.register_batch", "els.cancel_batch"
ASSIGNED = 'els_content_assignment_total{outcome="assigned"}'


@pytest.fixture
def events(send, batch_id):
    """Announce as many contents as the batch, which is registered, has slots."""
    send(REGISTER, registration(batch_id, 3))
    return [content(batch_id, text) for text in texts(3)]


def test_each_message_is_told_of_once(events, batch_id):
    calls = [call(event) for event in events]
    before = counted()

    with capture_logs([merge_contextvars]) as logged:
        results = run_batch([*calls, calls[0]])

    lines = {line["task_id"]: line for line in logged if line["event"] == "assigned"}
    assert [failed for failed, _, _ in results] == [0] * 4
    assert results[0][1] == results[3][1], "a repeat ends as the first did"
    for (_, shown, seconds), each in zip(results[:3], calls, strict=True):
        line = lines[each.task_id]
        assert (line["task"], line["batch_id"]) == (ASSIGN, batch_id)
        assert line["correlation_id"] == each.payload[1]["event"]["correlation_id"]
        assert line["essay_id"] in shown
        assert seconds > 0
    assert counted()[ASSIGNED] - before.get(ASSIGNED, 0) == 3


def test_what_is_linked_to_a_task_follows_it(send, events, conn):
    other = new_batch()
    send(REGISTER, registration(other, 1))
    link = app.tasks[CANCEL].signature(kwargs={"event": cancellation(other)}, immutable=True)

    run_batch([call(event, {"callbacks": [link]}) for event in events])

    assert looks.batch(conn, other)["status"] == "cancelled"


@pytest.mark.parametrize("signal", ["task_prerun", "task_success", "task_postrun"])
def test_signals_tell_of_each_task_where_somebody_listens(events, signal):
    told = []

    def listen(sender, **_):
        told.append(sender.name)

    receiver = getattr(signals, signal)
    receiver.connect(listen)
    try:
        run_batch([call(event) for event in events])
    finally:
        receiver.disconnect(listen)

    assert told.count(ASSIGN) == 3


def test_what_could_not_follow_for_all_together_follows_for_each(
    events, batch_id, conn, monkeypatch
):
    lost = [psycopg.OperationalError("the connection is lost")]

    def after_commit(batches):
        if lost:
            raise lost.pop()
        completion.after_commit(batches)

    monkeypatch.setattr(upstream, "after_commit", after_commit)

    run_batch([call(event) for event in events])

    assert "BatchEssaysReady" in looks.types(conn, batch_id)
