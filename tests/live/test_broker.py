"""The broker that loses nothing, beside Kombu's stock transport, which producers keep."""

import base64
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from uuid import NAMESPACE_OID, uuid4, uuid5

import pytest
import redis
from celery import Celery, current_app
from kombu import Connection, Producer, transport
from kombu.transport import redis as stock_redis

from core import db
from core.db.dead_letters import DeadLetter
from ops.stack.embedded import leashed
from tasks import broker
from tests.live.conftest import until

VISIBILITY_S = 2
MARGIN_S = 5  # a dead worker's messages are back within the visibility timeout and this
QUEUE = "broker"
PREFIX = "prefix."
OURS, STOCK = "tasks.broker:Transport", "kombu.transport.redis:Transport"
URL = os.environ["ELS_REDIS_URL"].removesuffix("/0") + "/5"


def app_on(transport_name):
    app = Celery(transport_name, broker=os.environ.get("BROKER", URL), set_as_current=False)
    app.conf.update(
        broker_transport=transport_name,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_S,
            "on_junk": f"{__name__}:keep_junk",
            **({} if transport_name == OURS else {"unacked_restore_interval": 1}),
            **({} if transport_name == OURS else {"unacked_restore_throttle": 1}),
        },
        broker_connection_retry_on_startup=True,
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
    )
    app.task(name="run")(run)
    app.task(name="stay")(stay)
    return app


def run(number):
    """Write down that a message has run."""
    with redis.Redis.from_url(URL) as client:
        request = current_app.current_task.request
        lost = broker.lost_workers(request)
        line = {"number": number, "at": time.time(), "info": request.delivery_info, "lost": lost}
        client.rpush("ran", json.dumps(line))


def stay(number, seconds):
    """Take a while, and write down that a message has run."""
    time.sleep(seconds)
    run(number)


def keep_junk(queue, payload, why):
    """Write a dead letter, as the service does."""
    with redis.Redis.from_url(URL) as client:
        if client.exists("no dead letters"):
            raise OSError("the database is away")
    letter = DeadLetter(
        task="unknown",
        task_id=str(uuid5(NAMESPACE_OID, payload.hex())),
        batch_id=None,
        body=json.dumps({"not_json": base64.b64encode(payload).decode()}),
        code="VALIDATION_ERROR",
        message=f"{queue}: {why}",
    )
    with db.connect_once(os.environ["ELS_DATABASE_URL"]) as conn:
        db.dead_letters.add(conn, letter)


ours, stock = app_on(OURS), app_on(STOCK)


class Place:
    """An empty database of Valkey, and workers on it."""

    def __init__(self, logs):
        self.client = redis.Redis.from_url(URL)
        self.client.flushdb()
        self.logs = logs
        self.processes = []
        self.upstream = Celery("upstream", broker=URL, set_as_current=False)
        self.upstream.conf.broker_transport = STOCK

    def start(self, app="ours", pool="solo", concurrency=1, prefetch=1, url=URL, **settings):
        command = f"celery -A {__name__}:{app} worker -P {pool} -c {concurrency} -Q {QUEUE}"
        command += f" --prefetch-multiplier {prefetch} -n {uuid4().hex}@broker"
        with (self.logs / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                leashed([sys.executable, "-m", *command.split()], signal.SIGKILL),
                env={**os.environ, "BROKER": url, **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    @contextmanager
    def start_paused(self):
        """Start a worker that runs message 0, and stands still meanwhile."""
        worker = self.start()
        self.send(0)
        self.all_have_run(1)
        worker.send_signal(signal.SIGSTOP)
        os.waitpid(worker.pid, os.WUNTRACED)
        yield
        worker.send_signal(signal.SIGCONT)

    def send(self, *numbers, **options):
        for number in numbers:
            self.upstream.send_task("run", [number], **{"queue": QUEUE, **options})

    def ran(self):
        return [json.loads(line) for line in self.client.lrange("ran", 0, -1)]

    def numbers(self):
        return [line["number"] for line in self.ran()]

    def all_have_run(self, count, timeout_s=30):
        until(lambda: len(self.numbers()) >= count, timeout_s, f"{count} messages have run")
        until(self.is_quiet, what="nothing is unacknowledged")

    def is_quiet(self):
        lists = [QUEUE, *(f"{QUEUE}\x06\x16{step}" for step in (3, 6, 9)), "unacked"]
        return not self.client.exists(*lists, "unacked_index")

    def stop(self):
        for process in self.processes:
            with suppress(ProcessLookupError):  # with its children, which outlive a killed parent
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        self.upstream.close()
        self.client.close()


@pytest.fixture
def place(database_url, tmp_path):
    opened = Place(tmp_path)
    yield opened
    opened.stop()


@contextmanager
def channel_on(transport_name=OURS, **options):
    """Open a channel that leaves what it holds as it is, like a worker that is killed."""
    options = {"visibility_timeout": VISIBILITY_S, **options}
    with Connection(URL, transport=transport_name, transport_options=options) as connection:
        channel = connection.channel()
        channel.do_restore = False
        yield channel


def take(channel, queue=QUEUE):
    """Take a message on a stock channel or ours; return it."""
    taken = []
    channel.basic_qos(prefetch_count=len(channel.qos._delivered) + 1)
    channel.basic_consume(queue, False, taken.append, "tag")
    channel.connection.client.drain_events(timeout=5)
    channel.basic_cancel("tag")
    return taken[0]


def a_copy_of(payload, **changes):
    return json.dumps({**json.loads(payload), **changes}).encode()


def encoded(body):
    return base64.b64encode(body.encode()).decode()


# --- killed workers ----------------------------------------------------------------------------


@pytest.mark.crash
def test_a_worker_killed_between_take_and_run_loses_nothing(place, run):
    with place.start_paused():
        place.send(1, 2, 3)
        doomed = place.start(ELS_CRASHPOINT="taken")
        until(lambda: doomed.poll() is not None, what="the worker dies")
        died = time.time()
        assert (place.client.hlen("unacked"), place.client.llen(QUEUE)) == (1, 2)

    place.all_have_run(4)

    assert doomed.returncode == -signal.SIGKILL
    assert sorted(place.numbers()) == [0, 1, 2, 3]
    assert place.ran()[-1]["at"] < died + VISIBILITY_S + MARGIN_S


@pytest.mark.crash
def test_a_restore_that_is_cut_short_is_completed_by_another_worker(place, run):
    with place.start_paused():
        place.send(1, 2, 3)
        with channel_on() as channel:
            assert all(channel.basic_get(QUEUE) for _ in range(3))
        doomed = place.start(ELS_CRASHPOINT="restoring")
        until(lambda: doomed.poll() is not None, what="the worker dies after the first message")
        died = time.time()
        assert (place.client.hlen("unacked"), place.client.llen(QUEUE)) == (2, 1)

    place.all_have_run(4)

    assert doomed.returncode == -signal.SIGKILL
    assert sorted(place.numbers()) == [0, 1, 2, 3]
    assert all(line["info"]["redelivered"] for line in place.ran() if line["number"])
    assert place.ran()[-1]["at"] < died + MARGIN_S, "all were overdue already"


def test_two_workers_restore_a_message_once(place):
    place.send(1)
    with channel_on() as first, channel_on() as second:
        assert first.basic_get(QUEUE)
        until(lambda: first.unacked.overdue(VISIBILITY_S, 10), what="the message is overdue")
        [(tag, note)] = first.unacked.overdue(VISIBILITY_S, 10)

        moved = [c.put_back(tag, note, age_s=VISIBILITY_S) for c in (first, second)]

    assert moved == [True, False]
    assert place.client.llen(QUEUE) == 1


def test_a_slow_restorer_leaves_a_message_that_is_in_work_again(place):
    place.send(1)
    with channel_on(visibility_timeout=1) as channel:
        assert channel.basic_get(QUEUE)
        channel.qos.restore_by_tag(*channel.qos._delivered)
        assert channel.basic_get(QUEUE)
        [(tag, note)] = until(lambda: channel.unacked.overdue(1, 10), what="it is overdue")
        channel.qos.restore_by_tag(tag)
        assert channel.basic_get(QUEUE)

        moved = channel.put_back(tag, note, age_s=1)

        assert channel.unacked.note(tag) == note, "the same bytes, but younger"
        assert not moved


# --- what is taken -----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", PREFIX], ids=["bare keys", "prefixed keys"])
def test_a_restored_message_differs_by_its_mark_alone(place, prefix):
    options = {"global_keyprefix": prefix}
    with channel_on(STOCK, **options) as producer, channel_on(**options) as channel:
        message = producer.prepare_message("å \x00", headers={"n": 10**30, "f": 0.1, "å": "\x00"})
        message["properties"]["delivery_info"] = {}
        producer.basic_publish(message, "", QUEUE)
        sent = place.client.lindex(prefix + QUEUE, 0)

        tag = channel.basic_get(QUEUE).delivery_tag
        note = place.client.hget(f"{prefix}unacked", tag)
        channel.qos.restore_by_tag(tag)
        once = place.client.lindex(prefix + QUEUE, 0)
        channel.basic_get(QUEUE)
        channel.qos.restore_by_tag(tag)

        assert note == b"[" + sent + b', "", "broker"]'
        assert once.replace(b', "redelivered": true', b"") == sent
        assert once.count(b"redelivered") == 2
        assert place.client.lrange(prefix + QUEUE, 0, -1) == [once]


def test_a_message_that_cannot_be_noted_stays_in_its_list(place):
    place.send(1)
    place.client.set("unacked", "not a hash")

    with channel_on() as channel, pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        channel.basic_get(QUEUE)

    assert place.client.llen(QUEUE) == 1


def test_copies_of_a_message_are_noted_each(place):
    place.send(1)
    place.client.lpush(QUEUE, place.client.lindex(QUEUE, 0))

    with channel_on() as channel:
        tags = [channel.basic_get(QUEUE).delivery_tag for _ in range(2)]
        noted = place.client.hkeys("unacked")
        channel.basic_ack(tags[0])
        left = place.client.hkeys("unacked")
        channel.basic_ack(tags[1])

    assert noted == [tag.encode() for tag in tags]
    assert left == [tags[1].encode()]
    assert place.is_quiet()


def test_the_prefetch_window_is_kept_and_no_ack_leaves_nothing(place):
    place.send(1, 2, 3, 4)
    with channel_on() as channel:
        taken = []
        channel.basic_qos(prefetch_count=2)
        channel.basic_consume(QUEUE, False, taken.append, "tag")
        for _ in range(2):
            channel.connection.client.drain_events(timeout=5)
        with pytest.raises(TimeoutError):
            channel.connection.client.drain_events(timeout=0.3)
        held = place.client.hlen("unacked")
        for message in taken:
            channel.basic_ack(message.delivery_tag)
        channel.basic_cancel("tag")

        channel.basic_consume(QUEUE, True, taken.append, "tag")
        channel.connection.client.drain_events(timeout=5)
        got = channel.basic_get(QUEUE, no_ack=True)

    assert (held, len(taken), got is None) == (2, 3, False)
    assert place.is_quiet()


def test_messages_of_some_tasks_go_before_all_that_wait(place):
    place.send(1, 2)
    with channel_on(go_first=("urgent",)) as channel:
        producer = Producer(channel)
        for task in ("urgent", "other", "urgent"):
            headers = {"task": task, "id": task}
            producer.publish([[], {}, {}], routing_key=QUEUE, headers=headers)
        producer.publish("no task", routing_key=QUEUE)
        tasks = [channel.basic_get(QUEUE, no_ack=True).headers.get("task") for _ in range(6)]

    assert tasks == ["urgent", "urgent", "run", "run", "other", None]


def test_messages_of_some_tasks_are_taken_together_and_count_as_one(place):
    place.send(*range(3))
    place.upstream.send_task("walk", [3], queue=QUEUE)
    place.send(4)
    place.upstream.send_task("other", queue=QUEUE)
    place.send(5)
    with channel_on(take_together=(("run", "walk"), 3, 10**6), visibility_timeout=60) as channel:
        taken, held = [], []
        channel.basic_qos(prefetch_count=2)
        channel.basic_consume(QUEUE, False, taken.append, "tag")
        for _ in range(2):
            channel.connection.client.drain_events(timeout=5)
            held.append((len(taken), place.client.hlen("unacked")))
        with pytest.raises(TimeoutError):
            channel.connection.client.drain_events(timeout=0.3)
        for message in taken[1:3]:
            channel.basic_ack(message.delivery_tag)
        with pytest.raises(TimeoutError):
            channel.connection.client.drain_events(timeout=0.3)
        channel.basic_ack(taken[0].delivery_tag)
        for _ in range(2):
            channel.connection.client.drain_events(timeout=5)
            channel.basic_ack(taken[-1].delivery_tag)
        left = place.client.hlen("unacked")
        channel.basic_cancel("tag")

    assert held == [(3, 3), (5, 5)], "three at once, then up to another task"
    assert [m.payload[0] for m in taken] == [[0], [1], [2], [3], [4], [], [5]]
    assert left == 2


def test_what_is_taken_together_has_a_size_and_one_is_taken_whatever_its_size(place):
    place.send("a" * 5_000, "b" * 100, "c" * 100, "d" * 5_000, "e")
    with channel_on(take_together=(("run",), 9, 3_000), visibility_timeout=60) as channel:
        taken, counts = [], []
        channel.basic_consume(QUEUE, False, taken.append, "tag")
        while len(taken) < 5:
            channel.connection.client.drain_events(timeout=5)
            counts.append(len(taken))
        for message in taken:
            channel.basic_ack(message.delivery_tag)
        channel.basic_cancel("tag")

    assert [m.payload[0][0][0] for m in taken] == ["a", "b", "c", "d", "e"]
    assert counts == [1, 3, 4, 5]
    assert place.is_quiet()


def test_junk_behind_messages_that_are_taken_together_stays_and_is_kept(place, conn):
    place.send(1, 2)
    place.client.lpush(QUEUE, junk := uuid4().hex)
    with channel_on(take_together=(("run",), 9, 10**6), on_junk=f"{__name__}:keep_junk") as channel:
        taken = []
        channel.basic_qos(prefetch_count=2)
        channel.basic_consume(QUEUE, False, taken.append, "tag")
        channel.connection.client.drain_events(timeout=5)
        waiting = place.client.lrange(QUEUE, 0, -1)
        channel.connection.client.drain_events(timeout=5)
        channel.basic_cancel("tag")

    assert (len(taken), waiting) == (2, [junk.encode()])
    assert not place.client.exists(QUEUE, f"{QUEUE}.junk")
    body = json.dumps({"not_json": base64.b64encode(junk.encode()).decode()})
    kept = conn.execute("SELECT 1 FROM dead_letters WHERE body::text = %s", [body])
    assert kept.fetchone()


@pytest.mark.parametrize("strategy", ["round_robin", "priority"])
def test_queues_take_turns_as_kombus_strategies_say(place, strategy):
    orders = []
    for transport_name in (STOCK, OURS):
        for queue in ("a", "b"):
            place.send(1, 2, 3, queue=queue)
        with channel_on(transport_name, queue_order_strategy=strategy) as channel:
            order = []
            for queue in ("a", "b"):
                channel.basic_consume(queue, False, order.append, queue)
            for _ in range(6):
                channel.connection.client.drain_events(timeout=5)
                channel.basic_ack(order[-1].delivery_tag)
        orders.append([message.delivery_info["routing_key"] for message in order])

    assert orders[0] == orders[1]
    assert orders[1] == ([*"ababab"] if strategy == "round_robin" else [*"aaabbb"])


def test_a_channel_that_closes_gives_back_what_it_holds(place):
    place.send(1, 2)
    with channel_on() as channel:
        channel.do_restore = True
        take(channel)

    assert place.client.llen(QUEUE) == 2
    assert not place.client.exists("unacked", "unacked_index")


# --- beside the stock transport ----------------------------------------------------------------


@pytest.mark.parametrize("worker", ["ours", "stock"])
@pytest.mark.parametrize("dead", [OURS, STOCK], ids=["ours dies", "stock dies"])
def test_each_worker_restores_and_runs_what_the_other_took(place, worker, dead):
    place.send(0)
    with channel_on(dead) as channel:
        take(channel)
    for number, priority in [(9, 9), (3, 3), (1, 0), (6, 6)]:
        place.send(number, priority=priority)

    place.start(worker)
    place.all_have_run(5)

    assert [n for n in place.numbers() if n] == [1, 3, 6, 9], "by priority"
    assert [line["info"].get("redelivered") for line in place.ran() if not line["number"]] == [True]


def test_an_idle_worker_is_told_of_a_message(place):
    place.start()
    place.send(0)
    place.all_have_run(1)
    for number in range(1, 21):
        time.sleep(random.uniform(0, 0.1))
        place.send(sent := time.time())
        place.all_have_run(number + 1)
        assert place.ran()[-1]["number"] == sent

    waits = [line["at"] - line["number"] for line in place.ran()[1:]]
    assert statistics.median(waits) < 0.25, "it asks by itself once a second"


@pytest.mark.parametrize("url", ["redis://host/0", "rediss://host/0", "redis+socket:///a/b"])
def test_install_makes_each_redis_url_ours(monkeypatch, url):
    monkeypatch.setattr(transport, "TRANSPORT_ALIASES", {"redis": STOCK, "rediss": STOCK})
    monkeypatch.setattr(transport, "_transport_cache", {})
    before = Connection(url).get_transport_cls()

    broker.install()

    assert (before, Connection(url).get_transport_cls()) == (
        stock_redis.Transport,
        broker.Transport,
    )


# --- junk --------------------------------------------------------------------------------------


def test_junk_becomes_dead_letters_and_the_messages_around_it_run(place, conn):
    place.send(0)
    good = place.client.lindex(QUEUE, 0)
    headers, properties = (json.loads(good)[name] for name in ("headers", "properties"))
    untagged = {k: v for k, v in properties.items() if k != "delivery_tag"}
    mark = uuid4().hex
    junk = [
        f"\x80 not JSON {mark}".encode("latin-1"),
        json.dumps(["a list", mark]).encode(),
        json.dumps({"hello": mark}).encode(),
        json.dumps({"properties": None, "mark": mark}).encode(),
        a_copy_of(good, properties=untagged, mark=mark),
        a_copy_of(good, body="abc", mark=mark),
        a_copy_of(good, headers=["a list"], mark=mark),
        a_copy_of(good, headers={"task": {}, "id": None}, mark=mark),
        a_copy_of(good, properties={**properties, "body_encoding": "rot13"}, mark=mark),
        a_copy_of(good, mark=mark).replace(mark.encode(), b"\x01" + mark.encode()),
        b"[" * 200_000 + mark.encode(),
        a_copy_of(good, body=encoded("[]"), mark=mark),
        a_copy_of(good, body=encoded('["args", {}, {}]'), mark=mark),
        a_copy_of(good, headers={**headers, "timelimit": 5}, mark=mark),
        good.replace(b'"origin": "', b'"origin": "\\ud800' + mark.encode()),
    ]
    for number, payload in enumerate(junk, start=1):
        place.client.lpush(QUEUE, payload)
        place.send(number)

    worker = place.start()
    place.all_have_run(len(junk) + 1)

    ours_only = "SELECT * FROM dead_letters WHERE starts_with(message, %s)"
    rows = conn.execute(ours_only, [f"{QUEUE}: "]).fetchall()
    kept = {base64.b64decode(row["body"]["not_json"]): row for row in rows}
    assert sorted(place.numbers()) == list(range(len(junk) + 1))
    assert [payload for payload in junk if payload not in kept] == []
    assert {kept[payload]["code"] for payload in junk} == {"VALIDATION_ERROR"}
    assert not place.client.exists(f"{QUEUE}.junk")
    assert worker.poll() is None


def test_junk_waits_until_it_can_be_kept(place, conn):
    junk = uuid4().bytes
    place.client.set("no dead letters", 1)
    place.client.lpush(QUEUE, junk)
    worker = place.start()
    place.send(1)
    place.all_have_run(1)

    assert place.client.lrange(f"{QUEUE}.junk", 0, -1) == [junk]
    place.client.delete("no dead letters")
    until(lambda: not place.client.exists(f"{QUEUE}.junk"), what="the junk is kept")

    task_id = str(uuid5(NAMESPACE_OID, junk.hex()))
    assert conn.execute("SELECT 1 FROM dead_letters WHERE task_id = %s", [task_id]).fetchone()
    assert worker.poll() is None
