"""Single contents that wait are carried out together, and each stays a message of its own."""

import os
import signal
from contextlib import contextmanager

import psutil
import psycopg
import pytest

from tasks.app import AT_ONCE
from tests import factories as make
from tests.live.conftest import until

ASSIGN = "els.assign_content"
WAITING = "FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
PREFORK = "worker --pool prefork --concurrency 1"


@pytest.fixture
def moments(conn):
    """The commits in which the contents of a batch got their slots."""

    def read(batch):
        rows = conn.execute(
            "SELECT assigned_at, count(*) AS n FROM essay_states"
            " WHERE batch_id = %s AND assigned_at IS NOT NULL GROUP BY 1",
            [batch],
        )
        return {row["assigned_at"]: row["n"] for row in rows}

    return read


@contextmanager
def nobody_places(batch):
    """Hold the batch's row, for which every placing waits."""
    with psycopg.connect(os.environ["ELS_DATABASE_URL"]) as other:
        other.execute("SELECT 1 FROM batch_essay_trackers WHERE batch_id = %s FOR UPDATE", [batch])
        yield


def one_waits(conn):
    """Tell whether a statement waits for a lock."""
    return conn.execute(f"SELECT pid {WAITING}").fetchone()


def registered(lifecycle, slots):
    batch = make.new_batch()
    make.take(lifecycle, "els.register_batch", make.registration(batch, slots))
    return batch


@contextmanager
def in_the_middle(workers, conn, batch):
    """Let a worker of one process take 20 contents; give it while they wait to be placed."""
    for n in range(20):
        workers.send(ASSIGN, make.content(batch, f"text-{n}"))
    with nobody_places(batch):
        worker = workers.start(command=PREFORK)
        until(lambda: one_waits(conn), what="a process of the pool is in the middle of it")
        yield worker


@pytest.mark.parametrize("kind", ["prefork", "solo"])
def test_what_waits_is_placed_by_few_commits(
    workers, lifecycle, events_of, moments, valkey, assert_invariants, kind
):
    batch = registered(lifecycle, 2 * AT_ONCE)
    sent = [workers.send(ASSIGN, make.content(batch, f"text-{n}")) for n in range(2 * AT_ONCE)]

    workers.start(command=f"worker --pool {kind} --concurrency 1")
    values = workers.values(sent)
    until(lambda: events_of(batch, "BatchEssaysReady"), what="the batch is ready")
    if not workers.on_rabbitmq:
        until(lambda: not valkey.exists("unacked", workers.queue), what="all is acknowledged")

    assert {value["outcome"] for value in values} == {"assigned"}
    assert len({value["essay_id"] for value in values}) == 2 * AT_ONCE
    if workers.on_rabbitmq:  # it pushes messages while the worker begins with the first
        assert len(moments(batch)) < AT_ONCE / 2
    else:
        assert len(moments(batch)) == 3  # some 150 of these have the bytes of a job
        assert max(moments(batch).values()) <= AT_ONCE
    assert len(events_of(batch, "BatchEssaysReady")) == 1
    assert_invariants(batch)


def test_each_message_has_its_own_outcome(workers, lifecycle, conn, events_of, assert_invariants):
    batch, small, cancelled = (registered(lifecycle, n) for n in (20, 2, 1))
    make.take(lifecycle, "els.cancel_batch", make.cancellation(cancelled))
    unknown = make.new_batch()
    twice = make.content(batch, "text-twice")
    sent = {
        "assigned": [make.content(batch, f"text-{n}") for n in range(10)] + [twice, twice],
        "full": [make.content(small, f"text-{n}") for n in range(4)],
        "closed": [make.content(cancelled)],
        "pending": [make.content(unknown)],
        "dead_letter": [
            make.content(batch, "text-bad", file_size_bytes=-1),
            {**twice, "original_file_name": "another body.txt"},
        ],
    }
    sent = {name: [workers.send(ASSIGN, event) for event in each] for name, each in sent.items()}

    workers.start(command=PREFORK)
    outcomes = {
        name: sorted(value["outcome"] for value in workers.values(each))
        for name, each in sent.items()
    }

    until(lambda: events_of(small, "BatchEssaysReady"), what="the full batch is announced")

    assert outcomes == {
        "assigned": ["assigned"] * 12,
        "full": ["assigned", "assigned", "excess", "excess"],
        "closed": ["closed"],
        "pending": ["pending"],
        "dead_letter": ["dead_letter"] * 2,
    }
    letters = conn.execute(
        "SELECT code FROM dead_letters WHERE task_id = ANY(%s)",
        [[result.id for result in sent["dead_letter"]]],
    )
    assert sorted(row["code"] for row in letters) == ["IDEMPOTENCY_CONFLICT", "VALIDATION_ERROR"]
    assert_invariants(batch, small, unknown)


def test_uploads_share_a_commit_up_to_a_size(workers, lifecycle, moments, assert_invariants):
    batch = registered(lifecycle, 3_040)
    texts = [f"text-{n}" for n in range(3_040)]
    small = [texts[start : start + 10] for start in range(0, 40, 10)]
    for those in (*small[:2], texts[40:], *small[2:]):
        workers.send("els.assign_contents", make.contents(batch, those))

    workers.start(command=PREFORK)
    until(lambda: sum(moments(batch).values()) == 3_040, what="all contents are placed")

    assert sorted(moments(batch).values()) == [20, 20, 3_000]
    assert_invariants(batch)


def test_uploads_that_wait_in_the_worker_share_a_commit_up_to_a_size_too(
    workers, lifecycle, conn, moments, assert_invariants
):
    batch = registered(lifecycle, 5_400)
    for start in range(0, 5_400, 1_800):
        texts = [f"text-{n}" for n in range(start, start + 1_800)]
        workers.send("els.assign_contents", make.contents(batch, texts))

    with nobody_places(batch):
        workers.start(command=f"{PREFORK} --prefetch-multiplier 3")
        until(lambda: not workers.waiting(), what="the worker holds them all")
        until(lambda: one_waits(conn), what="its process is at the first one")
    until(lambda: sum(moments(batch).values()) == 5_400, what="all contents are placed")

    assert [*moments(batch).values()] == [1_800] * 3
    assert_invariants(batch)


@pytest.mark.parametrize("victim", ["process", "worker"])
def test_all_survive_who_carries_them_out_and_then_run_alone(
    workers, lifecycle, conn, events_of, moments, assert_invariants, victim
):
    batch = registered(lifecycle, 20)

    with in_the_middle(workers, conn, batch) as doomed:
        [child] = psutil.Process(doomed.pid).children()
        for process in [child] if victim == "process" else [psutil.Process(doomed.pid), child]:
            process.send_signal(signal.SIGKILL)
        conn.execute(
            f"SELECT pg_terminate_backend(pid) {WAITING}"
        )  # as if it saw the death at once
    if victim == "worker":
        workers.start(command=PREFORK)
    until(lambda: events_of(batch, "BatchEssaysReady"), 60, "the batch is ready")

    assert len(events_of(batch, "BatchEssaysReady")) == 1
    assert set(moments(batch).values()) == {1}, "by one commit each"
    letters = conn.execute("SELECT count(*) AS n FROM dead_letters WHERE batch_id = %s", [batch])
    assert letters.fetchone() == {"n": 0}
    assert_invariants(batch)


@pytest.mark.crash
@pytest.mark.parametrize("point", ["taken", "claimed", "committed", "before_ack"])
def test_a_batch_becomes_ready_once_when_many_messages_die_together(
    workers, lifecycle, events_of, assert_invariants, point, run
):
    batch = registered(lifecycle, AT_ONCE)
    for n in range(AT_ONCE):
        workers.send(ASSIGN, make.content(batch, f"text-{n}"))
    doomed = workers.start(ELS_CRASHPOINT=point)
    until(lambda: doomed.poll() is not None, what=f"the worker dies at {point}")

    workers.start()
    until(lambda: events_of(batch, "BatchEssaysReady"), 60, f"the batch is ready after {point}")
    until(lambda: all(e["published_at"] for e in events_of(batch)), what="all is delivered")

    assert doomed.returncode == -signal.SIGKILL
    assert len(events_of(batch, "BatchEssaysReady")) == 1
    assert_invariants(batch)


def test_a_worker_that_is_told_to_end_finishes_what_it_carries_out(
    workers, lifecycle, conn, moments, valkey, assert_invariants
):
    batch = registered(lifecycle, 30)

    with in_the_middle(workers, conn, batch) as worker:
        worker.terminate()
    worker.wait(30)

    assert not [note for note in valkey.hvals("unacked") if workers.queue in note]
    assert (sum(moments(batch).values()), workers.waiting()) == (20, 0)
    assert_invariants(batch)
