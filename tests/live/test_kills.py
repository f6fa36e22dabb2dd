"""Workers killed with SIGKILL at the worst places. The batch becomes ready, once."""

import signal

import pytest

from core.crash import POINTS
from tests import factories as make
from tests.live.conftest import until

READY_WITHIN_S = 15  # of the kill, where messages are redelivered after 5 s
ON_THE_WAY = [point for point in POINTS if point not in {"sweeping", "restoring"}]


@pytest.mark.crash
@pytest.mark.parametrize("point", ON_THE_WAY)
def test_a_batch_becomes_ready_once_when_its_worker_is_killed(
    workers, tmp_path, events_of, assert_invariants, point, run
):
    batch = make.new_batch()
    doomed = workers.start(ELS_CRASHPOINT=point)
    workers.ready(1)  # else it might take the other's greeting for its message, and die of that
    workers.stand_by()
    workers.ready(2)
    early = make.content(batch, "text-0")
    for task, event in [
        ("els.assign_content", early),
        ("els.register_batch", make.registration(batch, 5)),
        *(("els.assign_content", make.content(batch, f"text-{n}")) for n in range(1, 5)),
        ("els.assign_content", early),
    ]:
        workers.send(task, event)
    until(lambda: doomed.poll() is not None, what=f"the worker dies at {point}")

    workers.take_over()
    workers.start("--schedule", str(tmp_path / "beat"), "--pidfile=", command="beat")
    until(
        lambda: events_of(batch, "BatchEssaysReady"),
        READY_WITHIN_S,
        f"the batch is ready after {point}",
    )
    until(lambda: all(e["published_at"] for e in events_of(batch)), what="all is delivered")

    assert doomed.returncode == -signal.SIGKILL
    assert [e["data"]["ready_count"] for e in events_of(batch, "BatchEssaysReady")] == [5]
    assert_invariants(batch)


def test_a_full_batch_whose_chord_got_lost_is_announced_by_beat(
    workers, tmp_path, lifecycle, events_of, assert_invariants
):
    batch = make.new_batch()
    make.take(lifecycle, "els.register_batch", make.registration(batch, 2))
    make.take(lifecycle, "els.assign_contents", make.contents(batch, ["text-1", "text-2"]))

    workers.start()
    workers.start("--schedule", str(tmp_path / "beat"), "--pidfile=", command="beat")
    until(lambda: events_of(batch, "BatchEssaysReady"), what="the batch is announced")
    until(lambda: all(e["published_at"] for e in events_of(batch)), what="all is delivered")

    assert_invariants(batch)


@pytest.mark.crash
def test_a_sweep_killed_in_the_middle_is_made_up_for(
    workers, tmp_path, lifecycle, events_of, assert_invariants, run
):
    batch = make.new_batch()
    make.take(lifecycle, "els.register_batch", make.registration(batch, 2))
    make.take(lifecycle, "els.assign_contents", make.contents(batch, ["text-1", "text-2"]))
    doomed = workers.start(ELS_CRASHPOINT="sweeping")
    workers.stand_by()
    workers.ready(2)
    workers.start("--schedule", str(tmp_path / "beat"), "--pidfile=", command="beat")
    until(lambda: doomed.poll() is not None, what="the worker dies in the sweep")

    workers.take_over()
    until(lambda: events_of(batch, "BatchEssaysReady"), READY_WITHIN_S, "the batch is announced")
    until(lambda: all(e["published_at"] for e in events_of(batch)), what="all is delivered")

    assert_invariants(batch)


def test_a_message_that_kills_its_worker_at_every_delivery_becomes_a_dead_letter(workers, conn):
    batch = make.new_batch()
    workers.start(
        command="worker --pool prefork --concurrency 1",
        ELS_CRASHPOINT="claimed",
        ELS_VISIBILITY_TIMEOUT="60",  # a child is missed at once; only a lost worker is waited for
    )
    workers.ready(1)
    event = make.content(batch)

    poison = workers.send("els.assign_content", event)
    letter = until(
        lambda: conn.execute(
            "SELECT * FROM dead_letters WHERE task_id = %s", [poison.id]
        ).fetchone(),
        timeout_s=90,  # five lives and deaths of a worker process
        what="the message is parked",
    )
    value = workers.send("els.register_batch", make.registration(batch, 1)).get(timeout=30)

    assert (letter["code"], letter["body"]) == ("POISON_MESSAGE", event)
    assert letter["deliveries"] == 5
    assert value["outcome"] == "registered"


def test_a_message_that_kills_a_whole_worker_each_time_becomes_a_dead_letter(workers, conn):
    batch = make.new_batch()
    event = make.content(batch)
    poison = workers.send("els.assign_content", event)

    for _ in range(5):
        doomed = workers.start(ELS_CRASHPOINT="claimed")
        until(lambda doomed=doomed: doomed.poll() is not None, what="the message kills its worker")
    workers.start(ELS_CRASHPOINT="claimed")
    letter = until(
        lambda: conn.execute(
            "SELECT * FROM dead_letters WHERE task_id = %s", [poison.id]
        ).fetchone(),
        what="the message is parked",
    )
    value = workers.send("els.register_batch", make.registration(batch, 1)).get(timeout=30)

    assert (letter["code"], letter["body"]) == ("POISON_MESSAGE", event)
    assert letter["deliveries"] == 5
    assert value["outcome"] == "registered"
