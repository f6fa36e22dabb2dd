"""The completion chord: what is full at once is sealed by one, and each batch is announced once."""

from contextlib import contextmanager

import psycopg
import pytest
from celery.result import denied_join_result

from core import lifecycle as plot
from core.lifecycle import Lifecycle
from ops.heartbeat import read_heartbeat
from tasks.app import app
from tasks.completion import dispatch_completion
from tasks.delivery import redacted_kwargs
from tasks.worker.batching import run_batch
from tests.core import looks
from tests.core.story import fill, register, texts
from tests.factories import cancellation, content, contents, new_batch, registration
from tests.tasks.conftest import call

REGISTER, UPLOAD = "els.register_batch", "els.assign_contents"
DONE = ["BatchContentProvisioningCompleted", "BatchEssaysReady"]


@pytest.fixture
def lifecycle(pool, slots):
    return Lifecycle(pool, slots)


@pytest.fixture
def chords(logged):
    """Read what was dispatched: the batches of each chord, and how many headers it had."""

    def read():
        lines = [line for line in logged if line["event"] == "completion_dispatched"]
        return [(sorted(line["batches"]), line["headers"]) for line in lines]

    return read


def test_batches_that_fill_together_share_a_chord(lifecycle, conn, chords):
    batches = sorted(new_batch() for _ in range(3))
    for batch_id in batches:
        register(lifecycle, batch_id, 2)
    late = new_batch()
    register(lifecycle, late, 2)

    events = [content(b, text) for text in texts(2) for b in batches] + [content(late)]
    run_batch([call(event) for event in events])

    assert chords() == [(batches, 2)]
    for batch_id in batches:
        assert looks.types(conn, batch_id) == DONE
        assert looks.broken(conn, batch_id, at_rest=True) == []
    assert looks.types(conn, late) == []


def test_small_batches_share_a_chord_and_a_large_one_has_a_header_a_range(
    lifecycle, conn, chords, monkeypatch
):
    monkeypatch.setattr(plot, "SLOTS_PER_HEADER", 4)
    a, b, large, c, d, unknown = batches = [new_batch() for _ in range(6)]
    sizes = dict(zip(batches, (1, 2, 9, 1, 3, 2), strict=True))
    for batch_id, size in sizes.items():
        fill(lifecycle, batch_id, size)

    dispatch_completion({**sizes, unknown: None})

    assert chords() == [
        ([large], 3 + 1),
        (sorted([a, b, c]), 1 + 1),
        ([unknown], 1 + 1),
        ([d], 1 + 1),
    ]
    for batch_id in sizes:
        assert looks.types(conn, batch_id) == DONE
        held = looks.held(conn, batch_id)
        assert looks.batch(conn, batch_id)["manifest_sha256"] == looks.manifest(held)


def test_a_batch_that_cannot_be_announced_keeps_no_other_from_it(lifecycle, conn, logged):
    sound, broken, last = batches = [new_batch() for _ in range(3)]
    for batch_id in (sound, last):
        fill(lifecycle, batch_id, 2)
    register(lifecycle, broken, 2)
    conn.execute(
        "UPDATE batch_essay_trackers SET available_slots = 0, full_at = now() WHERE batch_id = %s",
        [broken],
    )

    dispatch_completion(dict.fromkeys(batches, 2))

    assert [looks.types(conn, batch_id) for batch_id in batches] == [DONE, [], DONE]
    left = [line for line in logged if line["event"] == "left_to_the_sweep"]
    assert [(line["log_level"], line["batch_id"]) for line in left] == [("error", broken)]


def test_a_completion_dispatched_again_announces_nothing_more(send, conn, batch_id):
    send(REGISTER, registration(batch_id, 2))
    send(UPLOAD, contents(batch_id, texts(2)))

    dispatch_completion({batch_id: None})

    assert looks.types(conn, batch_id) == DONE


def test_a_completion_dispatched_too_early_announces_nothing(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 2)

    dispatch_completion({batch_id: None})

    assert looks.events(conn, batch_id) == []


def test_a_task_waits_for_no_result_of_the_chord_that_it_dispatches(
    lifecycle, batch_id, monkeypatch
):
    fill(lifecycle, batch_id, 2)
    monkeypatch.setitem(app.conf, "task_always_eager", False)

    with denied_join_result():
        dispatch_completion({batch_id: 2})

    assert app.backend.result_consumer.subscribed_to == set()


@pytest.mark.parametrize("state", ["58030", "40001"])
def test_what_follows_a_commit_gives_no_message_up(send, conn, batch_id, dead_letters, state):
    send(REGISTER, registration(batch_id, 2))

    with never_published(conn, batch_id, state):
        value = send("els.cancel_batch", cancellation(batch_id), task_id=batch_id)

    assert value["outcome"] == "cancelled"
    assert dead_letters(batch_id) == []
    app.tasks["els.relay"].apply().get()
    assert [e["published_at"] is None for e in looks.events(conn, batch_id)] == [False]


@contextmanager
def never_published(conn, batch_id, state):
    """Let the server refuse to mark events of this batch as published."""
    conn.execute(
        "CREATE OR REPLACE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN RAISE EXCEPTION 'the server refuses' USING ERRCODE = '{state}'; END$$"
    )
    conn.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON event_outbox FOR EACH ROW"
        f" WHEN (NEW.batch_id = '{batch_id}') EXECUTE FUNCTION pg_temp.refuse()"
    )
    try:
        yield
    finally:
        conn.execute("DROP TRIGGER refuse ON event_outbox")


def test_somebody_outside_of_a_task_may_wait_for_a_result(batch_id):
    result = app.AsyncResult(batch_id)

    app.backend.add_pending_result(result, start_drainer=False)

    [channel] = app.backend.result_consumer.subscribed_to
    assert batch_id in channel.decode()
    app.backend.remove_pending_result(result)


def test_monitors_see_the_batches_of_a_chord_and_no_more(batch_id):
    assert redacted_kwargs({"batches": [batch_id, "b-2"]}) == f"batches={batch_id},b-2"
    assert redacted_kwargs({"batches": {batch_id: ["", None]}}) == f"batches={batch_id}"
    assert len(redacted_kwargs({"batches": ["x" * 1000] * 100_000})) < 50 * 65 + len("batches=")


def test_a_sweep_that_another_session_locks_out_does_not_count_as_one(
    lifecycle, valkey, database_url, batch_id
):
    fill(lifecycle, batch_id, 2)

    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('sweep', 0))")
        locked_out = app.tasks["els.sweep"].apply().get()
        noted = read_heartbeat(valkey, 0).swept_at
        other.execute("SELECT pg_advisory_unlock_all()")  # closing frees it a moment later
    swept = app.tasks["els.sweep"].apply().get()

    assert (locked_out, noted) == ({}, None)
    assert swept["full_not_announced"] >= 1
    assert read_heartbeat(valkey, 0).swept_at is not None
