"""Several real workers at once: what eager mode cannot show."""

import base64
import json
import os
import time
from collections import Counter
from random import Random

import pytest
import redis

from core.signs import heartbeat
from tasks.worker.monitoring import FLUSHED_EVERY_S
from tests import factories as make
from tests.live.conftest import until

BACKLOG = 400  # registrations: more than a second's work


def test_twenty_deliveries_of_one_content_take_one_slot(five, conn, assert_invariants):
    batch = make.new_batch()
    five.send("els.register_batch", make.registration(batch, 3)).get(timeout=30)
    same = make.content(batch, "text-1")
    others = [make.content(batch, "text-1") for _ in range(10)]

    values = five.values([five.send("els.assign_content", event) for event in [same] * 10 + others])

    assert len({value["essay_id"] for value in values}) == 1
    assert {value["outcome"] for value in values} == {"assigned"}
    taken = conn.execute(
        "SELECT count(text_storage_id) AS n FROM essay_states WHERE batch_id = %s",
        [batch],
    ).fetchone()
    assert taken["n"] == 1
    assert_invariants(batch)


@pytest.mark.parametrize(("slots", "contents"), [(15, 30), (100, 100)])
def test_no_content_is_assigned_beyond_the_slots_and_none_is_refused_within(
    five, conn, events_of, assert_invariants, slots, contents
):
    batch = make.new_batch()
    five.send("els.register_batch", make.registration(batch, slots)).get(timeout=30)
    sent = [
        five.send("els.assign_content", make.content(batch, f"text-{n}")) for n in range(contents)
    ]

    values = five.values(sent)

    outcomes = [value["outcome"] for value in values]
    assert outcomes.count("assigned") == slots
    assert outcomes.count("excess") == contents - slots
    assert len({v["essay_id"] for v in values if "essay_id" in v}) == slots
    excess = events_of(batch, "ExcessContentProvisioned")
    assert len({e["data"]["text_storage_id"] for e in excess}) == len(excess) == contents - slots
    until(lambda: events_of(batch, "BatchEssaysReady"), what="the batch is ready")
    until(lambda: all(e["published_at"] for e in events_of(batch)), what="all is delivered")
    assert_invariants(batch)


def _upload(way: str, batch: str, texts: list[str]):
    """Announce texts singly, in bulk, or half and half."""
    single = {"singly": texts, "bulk": [], "mixed": texts[:13]}[way]
    bulk = [text for text in texts if text not in single]
    messages = [("els.assign_content", make.content(batch, text)) for text in single]
    if bulk:
        messages += [
            ("els.assign_contents", make.contents(batch, bulk[:7])),
            ("els.assign_contents", make.contents(batch, bulk[5:])),
        ]
    return messages


@pytest.mark.parametrize("way", ["singly", "bulk", "mixed"])
def test_thirty_batches_on_five_workers_are_each_ready_once_with_25_essays(
    five, events_of, assert_invariants, way
):
    random = Random(way)
    batches = [make.new_batch() for _ in range(30)]
    messages = []
    for batch in batches:
        messages.append(("els.register_batch", make.registration(batch, 25)))
        uploads = _upload(way, batch, [f"text-{n}" for n in range(25)])
        messages += uploads + random.sample(uploads, 2)
    random.shuffle(messages)

    sent = [five.send(task, event) for task, event in messages]
    five.values(sent, 120)

    for batch in batches:
        until(lambda batch=batch: events_of(batch, "BatchEssaysReady"), what=f"{batch} is ready")
        until(
            lambda batch=batch: all(e["published_at"] for e in events_of(batch)),
            what=f"the events of {batch} are delivered",
        )
    for batch in batches:
        ready = events_of(batch, "BatchEssaysReady")
        assert [len(e["data"]["ready_essays"]) for e in ready] == [25]
        assert len(events_of(batch, "BatchContentProvisioningCompleted")) == 1
    assert_invariants(*batches)


def test_bad_input_is_kept_and_disturbs_nobody(five, conn, events_of):
    batch = make.new_batch()
    five.send("els.register_batch", make.registration(batch, 1)).get(timeout=30)
    bad = make.content(batch, "text-1", file_size_bytes=-1, surprise={"a": ["b"]})

    refused = five.send("els.assign_content", bad)
    value = refused.get(timeout=30)
    five.send("els.assign_content", make.content(batch, "text-2")).get(timeout=30)

    assert (value["outcome"], value["code"]) == ("dead_letter", "VALIDATION_ERROR")
    letter = conn.execute("SELECT * FROM dead_letters WHERE task_id = %s", [refused.id]).fetchone()
    assert letter["body"] == bad
    assert letter["code"] == "VALIDATION_ERROR"
    assert letter["batch_id"] == batch
    assert "file_size_bytes" in letter["message"]
    until(lambda: events_of(batch, "BatchEssaysReady"), what="the batch is ready")


@pytest.mark.redis_only("it reads task events as Redis publishes them")
def test_task_events_are_published_in_batches_and_none_is_missing(workers):
    workers.start(command="worker --pool prefork --concurrency 1")
    workers.ready(1)
    batch = make.new_batch()
    batches = []
    with redis.Redis.from_url(os.environ["ELS_REDIS_URL"]).pubsub() as told:
        told.psubscribe("*celeryev/task.multi")
        told.get_message(timeout=5)
        started = time.monotonic()
        for tick in ("els.sweep", "els.relay"):  # nobody is told of them
            workers.upstream.send_task(tick, queue=workers.queue)
        for n in range(60):
            workers.send("els.assign_content", make.content(batch, f"text-{n}"))

        def succeeded():
            if message := told.get_message(ignore_subscribe_messages=True, timeout=1):
                body = base64.b64decode(json.loads(message["data"])["body"])
                batches.append(json.loads(body))
            return [e for b in batches for e in b if e["type"] == "task-succeeded"][59:]

        until(succeeded, 60, "60 tasks are told to have succeeded")

    told_s = time.monotonic() - started
    types = Counter(event["type"] for events in batches for event in events)
    assert {t: types[f"task-{t}"] for t in ("received", "started", "succeeded")} == {
        "received": 60,
        "started": 60,
        "succeeded": 60,
    }
    assert len(batches) <= told_s / FLUSHED_EVERY_S + 180 / 24 + 2  # 24: as Celery fills a batch


def test_a_backlog_delays_neither_the_sweep_nor_a_full_batch(
    workers, valkey, conn, events_of, tmp_path
):
    valkey.flushdb()
    full, *others = (make.new_batch() for _ in range(1 + BACKLOG))
    workers.send("els.register_batch", make.registration(full, 1))
    workers.send("els.assign_content", make.content(full))
    for batch in others:
        workers.send("els.register_batch", make.registration(batch, 1))
    workers.start("--schedule", str(tmp_path / "beat"), command="beat", ELS_SWEEP_EVERY="0.5")
    until(lambda: workers.waiting(".control"), what="beat has sent a sweep")

    def registered():
        query = "SELECT count(*) AS n FROM batch_essay_trackers WHERE batch_id = ANY(%s)"
        return conn.execute(query, [others]).fetchone()["n"]

    workers.start(command="worker --pool prefork --concurrency 1")
    until(lambda: events_of(full, "BatchEssaysReady"), what="the batch is ready")
    before_ready = registered()
    until(lambda: valkey.exists(heartbeat.SWEPT), what="the sweep has run")
    before_swept = registered()

    assert before_ready < BACKLOG / 2
    assert before_swept < BACKLOG / 2


@pytest.mark.parametrize("task", ["els.sweep", "els.seal_books"])
def test_our_own_tasks_are_carried_out_on_the_queue_of_older_workers_too(workers, conn, task):
    """An older worker, or an older beat, sends them there."""
    workers.start()
    kwargs = {} if task == "els.sweep" else {"batches": []}

    sent = workers.upstream.send_task(task, kwargs=kwargs, queue=workers.queue, ignore_result=False)

    assert isinstance(sent.get(timeout=30), dict)


INTERRUPTED = """
import os
import signal
from concurrent.futures import ThreadPoolExecutor

hand_on = ThreadPoolExecutor._adjust_thread_count

def interrupted(executor):
    assert executor._shutdown_lock.locked()
    os.kill(os.getpid(), signal.SIGTERM)
    hand_on(executor)

ThreadPoolExecutor._adjust_thread_count = interrupted
"""


def test_a_worker_told_to_stop_while_it_holds_a_lock_of_its_pool_ends(workers, tmp_path):
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    options = ("--include", "interrupted")
    process = workers.start(*options, command="worker --pool threads", PYTHONPATH=str(tmp_path))
    workers.ready(1)
    batch = make.new_batch()

    registered = workers.send("els.register_batch", make.registration(batch, 1))

    assert process.wait(15) == 0
    workers.start()
    assert registered.get(timeout=30)["outcome"] == "registered"
