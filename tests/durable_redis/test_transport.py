"""The transport beside Kombu's stock one, which senders keep."""

import base64
import json
import random
import re
import signal
import ssl
import statistics
import time
from uuid import uuid4

import pytest
import redis
from kombu import Connection, transport
from kombu.asynchronous import Hub
from kombu.pidbox import Mailbox

import durable_redis
from durable_redis.channel import Channel
from durable_redis.qos import URGENT
from durable_redis.unacked import Batching
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port
from tests.durable_redis.crew import (
    KEEP,
    MARGIN_S,
    OURS,
    PREFIX,
    QUEUE,
    STOCK,
    URL,
    VISIBILITY_S,
    channel_on,
    take,
)
from tests.live.conftest import until


def a_copy_of(payload, **changes):
    return json.dumps({**json.loads(payload), **changes}).encode()


def encoded(body):
    return base64.b64encode(body.encode()).decode()


# --- killed workers ----------------------------------------------------------------------------


@pytest.mark.crash
def test_a_worker_killed_between_take_and_run_loses_nothing(place, run):
    with place.start_paused():
        place.send(1, 2, 3)
        doomed = place.start(CRASH_AT="taken")
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
        doomed = place.start(CRASH_AT="restoring")
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

        moved = [c.requeue(tag, note, age_s=VISIBILITY_S) for c in (first, second)]

    assert moved == [True, False]
    assert place.client.llen(QUEUE) == 1


def test_what_a_dead_worker_held_comes_back_though_the_index_was_deleted(place):
    place.send(1, 2)
    with channel_on() as channel:
        assert channel.basic_get(QUEUE)
        place.client.delete("unacked_index")
        assert channel.basic_get(QUEUE)
    place.start()

    place.all_have_run(2)

    assert sorted(place.numbers()) == [1, 2]


def test_a_user_who_may_not_count_entries_restores_what_is_overdue(place):
    rights = ["+@all", "-hlen", "-zcard", "-hkeys"]
    place.client.acl_setuser("older", True, True, commands=rights, keys=["*"], channels=["*"])
    place.send(1)
    with channel_on() as dead:
        assert dead.basic_get(QUEUE)

    place.start(url=re.sub("//.*@", "//older:any@", URL))

    place.all_have_run(1)
    place.client.acl_deluser("older")


def test_a_slow_restorer_leaves_a_message_that_is_in_work_again(place):
    place.send(1)
    with channel_on(visibility_timeout=1) as channel:
        assert channel.basic_get(QUEUE)
        channel.qos.restore_by_tag(*channel.qos._delivered)
        assert channel.basic_get(QUEUE)
        [(tag, note)] = until(lambda: channel.unacked.overdue(1, 10), what="it is overdue")
        channel.qos.restore_by_tag(tag)
        assert channel.basic_get(QUEUE)

        moved = channel.requeue(tag, note, age_s=1)

        assert channel.unacked.entry(tag) == note, "the same bytes, but younger"
        assert not moved


# --- what is fetched---------------------------------------------------------------------------


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


def test_a_message_whose_entry_cannot_be_written_stays_in_its_list(place):
    place.send(1)
    place.client.set("unacked", "not a hash")

    with channel_on() as channel, pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        channel.basic_get(QUEUE)

    assert place.client.llen(QUEUE) == 1


def test_copies_of_a_message_have_an_entry_each(place):
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


def test_a_message_that_comes_again_to_its_holder_leaves_the_prefetch_window(place):
    place.send(1)
    with channel_on() as channel:
        taken = []
        channel.basic_qos(prefetch_count=2)
        channel.basic_consume(QUEUE, False, taken.append, "tag")
        channel.connection.client.drain_events(timeout=5)
        tag = taken[0].delivery_tag
        assert channel.requeue(tag, place.client.hget("unacked", tag)), "as if it were overdue"
        channel.connection.client.drain_events(timeout=5)
        for message in taken:
            channel.basic_ack(message.delivery_tag)

        place.send(2, 3)
        for _ in range(2):
            channel.connection.client.drain_events(timeout=5)
        for message in taken:
            channel.basic_ack(message.delivery_tag)

    assert [m.payload[0][0] for m in taken] == [1, 1, 2, 3]
    assert place.is_quiet()


def test_urgent_queues_go_before_all_that_waits_in_others(place):
    taken = []
    with channel_on(urgent_queues=("first", "second")) as channel:
        for queue in (QUEUE, "other", "second", "first"):
            for number in range(2):
                place.upstream.send_task("run", [number], queue=queue)
            channel.basic_consume(queue, True, lambda _, queue=queue: taken.append(queue), queue)
        for _ in range(8):
            channel.connection.client.drain_events(timeout=5)

    assert taken[:4] == ["first", "first", "second", "second"]
    assert {*taken[4:6]} == {*taken[6:]} == {QUEUE, "other"}, "these by turns"


def test_urgent_queues_have_a_prefetch_window_of_their_own(place):
    taken = []
    with channel_on(urgent_queues=("urgent",), visibility_timeout=60) as channel:

        def drain(*due):
            for _ in due:
                channel.connection.client.drain_events(timeout=5)
            with pytest.raises(TimeoutError):
                channel.connection.client.drain_events(timeout=0.3)
            assert [m.delivery_info["routing_key"] for m in taken[-len(due) :]] == list(due)

        channel.basic_qos(prefetch_count=2)
        for queue in (QUEUE, "urgent"):
            channel.basic_consume(queue, False, taken.append, queue)
        place.send(1, 2, 3, 4)
        drain(QUEUE, QUEUE)
        channel.basic_ack(taken[0].delivery_tag)
        drain(QUEUE)
        for number in range(2 * URGENT + 1):
            place.upstream.send_task("run", [number], queue="urgent")
        drain(*["urgent"] * 2 * URGENT)
        channel.basic_ack(taken[1].delivery_tag)
        drain(QUEUE)
        channel.basic_ack(taken[3].delivery_tag)
        drain("urgent")
        for message in taken:
            channel.basic_ack(message.delivery_tag)

    assert place.is_quiet()


def test_a_batch_is_fetched_at_once_and_counts_as_one(place):
    place.send(*range(3))
    place.upstream.send_task("walk", [3], queue=QUEUE)
    place.send(4)
    place.upstream.send_task("other", queue=QUEUE)
    place.send(5)
    with channel_on(batching=Batching(("run", "walk"), 3, 10**6), visibility_timeout=60) as channel:
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


def test_a_batch_has_a_size_and_a_single_message_may_have_any_size(place):
    place.send("a" * 5_000, "b" * 100, "c" * 100, "d" * 5_000, "e")
    with channel_on(batching=Batching(("run",), 9, 3_000), visibility_timeout=60) as channel:
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


def test_a_malformed_message_behind_a_batch_stays_and_is_kept(place):
    place.send(1, 2)
    place.client.lpush(QUEUE, payload := uuid4().hex)
    with channel_on(batching=Batching(("run",), 9, 10**6), on_malformed=KEEP) as channel:
        taken = []
        channel.basic_qos(prefetch_count=2)
        channel.basic_consume(QUEUE, False, taken.append, "tag")
        channel.connection.client.drain_events(timeout=5)
        waiting = place.client.lrange(QUEUE, 0, -1)
        channel.connection.client.drain_events(timeout=5)
        channel.basic_cancel("tag")

    assert (len(taken), waiting) == (2, [payload.encode()])
    assert not place.client.exists(QUEUE, f"{QUEUE}.malformed")
    assert place.client.hkeys("kept") == [payload.encode()]


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


def test_a_lost_connection_may_be_closed_twice_and_keeps_what_is_acknowledged(tmp_path):
    """Celery does so: the first time a reply is due, and something is to be acknowledged."""
    server = Valkey(tmp_path / "valkey", free_port(), "password")
    server.start()
    try:
        connection = Connection(server.url, transport=OURS)
        channel = connection.default_channel
        channel.basic_publish(channel.prepare_message("1"), "", QUEUE)
        taken = channel.basic_get(QUEUE)
        connection.transport.register_with_event_loop(connection.connection, Hub())
        Mailbox("celery").Node("worker", channel=connection.channel()).listen(callback=print)
        channel.basic_consume(QUEUE, False, print, "tag")
        connection.transport.cycle.on_poll_start()
        taken.ack()
        server.stop()

        connection.collect()
        connection.close()

        server.start()
        with Connection(server.url, transport=OURS) as again, redis.from_url(server.url) as client:
            assert client.hlen("unacked") == 1
            again.default_channel.qos.flush()
            assert not client.exists(QUEUE, "unacked", "unacked_index")
    finally:
        server.stop()


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


def test_an_idle_worker_gets_a_message_at_once(place):
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


@pytest.mark.parametrize(
    "url", ["redis://host/0", "rediss://host/0", "redis+socket:///a/b", "sentinel://host/0"]
)
def test_install_makes_each_redis_url_ours(monkeypatch, url):
    stock = {"redis": STOCK, "rediss": STOCK, "sentinel": STOCK.replace(":", ":Sentinel")}
    monkeypatch.setattr(transport, "TRANSPORT_ALIASES", stock)
    monkeypatch.setattr(transport, "_transport_cache", {})
    before = Connection(url).get_transport_cls()

    durable_redis.install()

    ours = Connection(url).get_transport_cls()
    assert not issubclass(before, durable_redis.Transport)
    assert issubclass(ours, durable_redis.Transport)
    assert issubclass(ours.Channel, Channel)


def test_a_bare_url_with_tls_is_verified(monkeypatch):
    monkeypatch.setattr(transport, "TRANSPORT_ALIASES", {})
    monkeypatch.setattr(transport, "_transport_cache", {})
    durable_redis.install()

    connection = Connection("rediss://host/0")
    clone = connection.clone()

    assert connection.transport.client.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert clone.transport.client.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}


def test_verification_is_turned_off_by_name():
    url = "rediss://host/0?ssl_cert_reqs=none&ssl_check_hostname=false"

    assert Connection(url).transport.client.ssl["ssl_cert_reqs"] == ssl.CERT_NONE


@pytest.mark.parametrize(
    "url",
    ["rediss://host/0", "rediss:///0", "rediss://user:word@host:7/0", "rediss://a;rediss://b"],
)
@pytest.mark.parametrize("asked", [False, True])
def test_a_bare_url_with_tls_is_verified_where_the_transport_is_named(url, asked):
    connection = Connection(url, transport=OURS, ssl=asked)

    for each in (connection, connection.clone()):
        assert each.transport.client.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}


def test_a_plain_url_stays_plain_where_the_transport_is_named():
    assert not Connection("redis://host/0", transport=OURS).transport.client.ssl


@pytest.mark.parametrize(
    ("urls", "named"),
    [
        ("redis://a;redis://b;redis://c", OURS),
        ("rediss://a;rediss://b", OURS),
        ("sentinel://a;sentinel://b", "durable_redis:SentinelTransport"),
    ],
)
def test_the_next_url_of_a_list_keeps_the_transport_that_was_named(urls, named):
    connection = Connection(urls, transport=named)
    first = connection.transport

    for _ in range(3):
        connection.maybe_switch_next()

        assert type(connection.transport) is type(first)
        assert type(connection.clone().transport) is type(first)
        assert bool(connection.ssl) == ("rediss" in urls)


# --- malformed messages ------------------------------------------------------------------------


def test_malformed_messages_are_kept_and_the_messages_around_them_run(place):
    place.send(0)
    good = place.client.lindex(QUEUE, 0)
    headers, properties = (json.loads(good)[name] for name in ("headers", "properties"))
    untagged = {k: v for k, v in properties.items() if k != "delivery_tag"}
    mark = uuid4().hex
    malformed = [
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
    ]
    for number, payload in enumerate(malformed, start=1):
        place.client.lpush(QUEUE, payload)
        place.send(number)

    worker = place.start()
    place.all_have_run(len(malformed) + 1)

    kept = place.client.hgetall("kept")
    assert sorted(place.numbers()) == list(range(len(malformed) + 1))
    assert kept.keys() == set(malformed)
    assert all(reason.startswith(f"{QUEUE}: ".encode()) for reason in kept.values())
    assert not place.client.exists(f"{QUEUE}.malformed")
    assert worker.poll() is None


def test_a_message_whose_header_has_half_of_a_surrogate_pair_runs(place):
    place.send(0)
    good = place.client.lpop(QUEUE)
    place.client.lpush(QUEUE, good.replace(b'"origin": "', b'"origin": "\\ud800'))

    place.start()
    place.all_have_run(1)

    assert not place.client.exists("kept", f"{QUEUE}.malformed")


def test_a_malformed_message_waits_until_it_can_be_kept(place):
    payload = uuid4().bytes
    place.client.set("no dead letters", 1)
    place.client.lpush(QUEUE, payload)
    worker = place.start()
    place.send(1)
    place.all_have_run(1)

    assert place.client.lrange(f"{QUEUE}.malformed", 0, -1) == [payload]
    place.client.delete("no dead letters")
    until(lambda: not place.client.exists(f"{QUEUE}.malformed"), what="the message is kept")

    assert place.client.hexists("kept", payload)
    assert worker.poll() is None
