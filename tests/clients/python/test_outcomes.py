"""A sender that asks for results gets what became of its messages, from real workers."""

import os

import pytest
from celery import Celery

from els_client import Sender
from els_client.fake import FakeELS
from tests.factories import essay_ids, new_batch, registration
from tests.hostile import nest
from tests.live.conftest import Workers

pytestmark = pytest.mark.slow


@pytest.fixture
def workers(tmp_path, database_url):
    workers = Workers(tmp_path)
    workers.start()
    yield workers.ready(1)
    workers.close()


def value_of(workers, task, event):
    """Send a message with stock Celery; return the value of its task."""
    redis_url = os.environ["ELS_REDIS_URL"]
    with Celery(broker=redis_url, backend=redis_url, set_as_current=False) as app:
        sent = app.send_task(task, [], {"event": event}, queue=workers.queue, ignore_result=False)
        return sent.get(timeout=30)


def test_a_sender_gets_each_outcome(workers):
    batch_id, url = new_batch(), os.environ["ELS_REDIS_URL"]
    text = {"original_file_name": "x", "file_size_bytes": 1}
    with Sender(url, queue=workers.queue, results=url) as sender:
        sent = [
            sender.register_batch(batch_id, essay_ids(1), course_code="c", user_id="u"),
            sender.assign_content(batch_id, text_storage_id="t", file_upload_id="f", **text),
            sender.assign_content(batch_id, text_storage_id="t", file_upload_id="f", **text),
            sender.cancel_batch("unknown-" + batch_id, reason="r"),
        ]
        values = [each.outcome() for each in sent]

    registered = {"outcome": "registered", "batch_id": batch_id, "slots": 1, "pending_assigned": 0}
    assigned = {"outcome": "assigned", "batch_id": batch_id, "essay_id": essay_ids(1)[0]}
    assert values[:3] == [registered, assigned, assigned]
    assert values[3]["code"] == "UNKNOWN_BATCH"


@pytest.mark.parametrize(("levels", "outcome"), [(98, "registered"), (99, "dead_letter")])
def test_the_fake_reads_as_many_levels_as_the_service(workers, levels, outcome):
    metadata = {"deep": nest(levels - 3)}  # in the object in the event, and an innermost list
    event = registration(new_batch(), 1, metadata=metadata)

    value = value_of(workers, "els.register_batch", event)

    assert value["outcome"] == FakeELS().send("els.register_batch", event)["outcome"] == outcome


def test_the_fake_refuses_an_unknown_task_in_the_words_of_the_service(workers):
    event = registration(new_batch(), 1)

    value = value_of(workers, "els.asign_content", event)
    faked = FakeELS().send("els.asign_content", event)

    assert {**value, "dead_letter": 1} == {**faked, "dead_letter": 1}


def test_an_outcome_that_does_not_come_is_a_timeout(broker):
    with Sender(broker.url, results=broker.url) as sender:
        sent = sender.cancel_batch("b", reason="r")

        with pytest.raises(TimeoutError, match=r"els\.cancel_batch: no outcome within 0\.2 s"):
            sent.outcome(timeout_s=0.2)
