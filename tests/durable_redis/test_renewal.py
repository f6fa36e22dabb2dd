"""Messages that are held for longer than the visibility timeout, by workers that live or die."""

import json
import signal
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from celery.concurrency.base import apply_target
from kombu import Connection

import durable_redis
from durable_redis import renewal
from tests.durable_redis.crew import (
    MARGIN_S,
    OURS,
    QUEUE,
    URL,
    VISIBILITY_S,
    channel_on,
)
from tests.live.conftest import until

HELD_S = 3 * VISIBILITY_S
COUNTDOWN_S = 10 * VISIBILITY_S


# --- a worker that lives -----------------------------------------------------------------------


@pytest.mark.outage
@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_what_a_worker_that_lives_has_begun_is_delivered_to_nobody_else(place, pool):
    place.start(pool=pool)
    place.upstream.send_task("stay", [1, HELD_S], queue=QUEUE)
    until(lambda: place.client.hlen("unacked"), what="the message is taken")
    place.start(pool=pool)
    place.send(2)

    place.all_have_run(2)

    assert sorted(place.numbers()) == [1, 2]
    assert [line["info"]["redelivered"] for line in place.ran()] == [False, False]


def test_what_waits_behind_others_stays_with_its_worker(place):
    place.start(pool="prefork", prefetch=4)
    for number in range(4):
        place.upstream.send_task("stay", [number, VISIBILITY_S], queue=QUEUE)
    until(lambda: place.client.hlen("unacked") == 4, what="all are taken")
    place.start(pool="prefork")

    place.all_have_run(4)

    assert place.numbers() == [0, 1, 2, 3], "by one worker, one after the other"


@pytest.mark.outage
def test_a_countdown_beyond_the_visibility_timeout_survives_restarts_and_runs_once(place):
    sent = time.time()
    place.send(1, countdown=COUNTDOWN_S)
    for end in (signal.SIGKILL, signal.SIGQUIT, None):
        before = noted_at(place)
        worker = place.start()
        until(lambda before=before: noted_at(place) > before, what="a worker holds the message")
        if end is not None:
            worker.send_signal(end)
            worker.wait(20)

    place.all_have_run(1)

    (line,) = place.ran()
    assert line["at"] >= sent + COUNTDOWN_S
    assert line["lost"] == 0, "nobody had begun it"


def noted_at(place):
    """Return when the newest note was written or renewed."""
    notes = place.client.zrange("unacked_index", -1, -1, withscores=True)
    return notes[0][1] if notes else 0


def test_a_renewed_message_comes_back_when_its_worker_is_killed(place):
    worker = place.start()
    place.upstream.send_task("stay", [1, 600], queue=QUEUE)
    until(lambda: place.client.hlen("unacked"), what="the message is taken")
    time.sleep(HELD_S)
    assert place.client.hlen("unacked"), "it is held"
    worker.kill()
    killed = time.monotonic()

    with channel_on() as channel:
        until(
            lambda: (channel.qos.restore_visible(), place.client.llen(QUEUE))[1],
            what="the message is back",
        )

    assert time.monotonic() - killed < VISIBILITY_S + MARGIN_S


def test_what_was_begun_before_the_connection_was_lost_runs_once(place):
    worker = place.start(pool="prefork", concurrency=2)
    place.upstream.send_task("stay", [0, HELD_S], queue=QUEUE)
    until(lambda: place.client.hlen("unacked"), what="the message is taken")
    for number in range(1, 40):
        place.send(number)
        if number % 10 == 0:
            for kind in ("normal", "pubsub"):
                place.client.client_kill_filter(skipme=True, _type=kind)
        time.sleep(0.02)
    place.start(pool="prefork")

    place.all_have_run(40)

    assert set(place.numbers()) == set(range(40))
    assert place.numbers().count(0) == 1
    assert b"Connection to broker lost" in (place.logs / "0.log").read_bytes()
    assert worker.poll() is None


# --- the thread --------------------------------------------------------------------------------


def test_all_that_is_held_is_renewed_by_the_clock_of_redis_and_nothing_else(place):
    place.send(1, 2, 3)
    with channel_on() as channel:
        first, second, _ = (channel.basic_get(QUEUE).delivery_tag for _ in range(3))
        place.client.zadd("unacked_index", {first: 1, second: 2})

        channel.unacked.renew([first, "gone"])

    seconds, microseconds = place.client.time()
    assert place.client.zscore("unacked_index", "gone") is None
    assert place.client.zscore("unacked_index", second) == 2
    assert abs(place.client.zscore("unacked_index", first) - seconds - microseconds / 1e6) < 1


def test_a_full_redis_renews_and_puts_back(place):
    place.send(1)
    with channel_on() as channel:
        tag = channel.basic_get(QUEUE).delivery_tag
        place.client.zadd("unacked_index", {tag: 1})
        place.client.config_set("maxmemory", 1)
        try:
            channel.unacked.renew([tag])
            renewed = place.client.zscore("unacked_index", tag)
            channel.qos.restore_by_tag(tag)
        finally:
            place.client.config_set("maxmemory", 0)

    assert renewed > 1
    assert place.client.llen(QUEUE) == 1


def test_a_loop_lives_while_it_turns(monkeypatch):
    loop = renewal.MainLoop()
    unborn = loop.alive
    loop.turned()
    turning = loop.alive
    monkeypatch.setattr(renewal, "HANGS_AFTER_S", -1)

    assert (unborn, turning, loop.alive) == (False, True, False)


def test_a_loop_that_does_not_turn_lives_while_it_carries_out_a_task(monkeypatch):
    monkeypatch.setattr(renewal, "HANGS_AFTER_S", -1)
    loop, begun, end = renewal.MainLoop(), threading.Event(), threading.Event()

    def task():
        begun.set()
        end.wait(10)

    def main():
        loop.turned()
        apply_target(task, callback=lambda result: None)
        begun.set()
        end.wait(10)

    thread = threading.Thread(target=main)
    thread.start()
    begun.wait(10)
    carrying_out = loop.alive
    begun.clear()
    end.set()
    begun.wait(10)
    thread.join()

    assert (carrying_out, loop.alive) == (True, False)


# --- what is put back --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        ({}, 1),
        ({"eta": None}, 1),
        ({"eta": "2000-01-01T00:00:00+00:00"}, 1),
        ({"eta": "no time"}, 1),
        ({"eta": 5}, 1),
        ({"eta": "2999-01-01T00:00:00+00:00"}, None),
        ({"eta": "2999-01-01T00:00:00Z"}, None),
        ({"eta": "2999-01-01T00:00:00"}, None),
        ({"eta": "2999-01-01T02:00:00.5+02:00"}, None),
        ({"redelivered": True}, None),
        ({"redelivered": True, "x-delivery-count": 1}, 1),
        ({"redelivered": True, "eta": "2999-01-01", "x-delivery-count": 1}, 1),
    ],
    ids=str,
)
def test_an_overdue_message_counts_as_lost_once_unless_it_waited(place, headers, count):
    with channel_on() as channel:
        message = channel.prepare_message("", headers=headers)
        message["properties"]["delivery_info"] = {}
        channel.basic_publish(message, "", QUEUE)
        tag = channel.basic_get(QUEUE).delivery_tag
        until(lambda: channel.unacked.overdue(VISIBILITY_S, 10), what="the message is overdue")

        channel.requeue(tag, channel.unacked.entry(tag), age_s=VISIBILITY_S)

    back = json.loads(place.client.lindex(QUEUE, 0))
    assert back["headers"].get("x-delivery-count") == count
    assert back["headers"]["redelivered"]
    assert durable_redis.lost_workers(back["headers"]) == (count or 0)


# --- connections that are silent ---------------------------------------------------------------


class Swallower:
    """A proxy that can take bytes in and pass nothing on, and closes nothing meanwhile."""

    def __init__(self, url):
        self.target = urlsplit(url)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sockets = []
        self.dead = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        host = f"127.0.0.1:{self.listener.getsockname()[1]}"
        login = self.target.netloc.rpartition("@")[0]
        return self.target._replace(netloc=f"{login}@{host}").geturl()

    def swallow(self):
        """Pass nothing on between those who are connected now. New connections are served."""
        self.dead.update(self.sockets)

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection((self.target.hostname, self.target.port))
                self.sockets += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source, sink):
        with suppress(OSError):
            while chunk := source.recv(65536):
                if source not in self.dead:
                    sink.sendall(chunk)
            if source not in self.dead:
                sink.shutdown(socket.SHUT_WR)

    def close(self):
        self.listener.close()
        for each in self.sockets:
            each.close()


@pytest.fixture
def swallower():
    opened = Swallower(URL)
    yield opened
    opened.close()


@pytest.mark.outage
@pytest.mark.parametrize("pool", ["solo", "prefork"])
@pytest.mark.parametrize("idle_s", [0, 3], ids=["under load", "idle"])
def test_a_connection_that_is_swallowed_is_replaced_within_30_s(place, swallower, pool, idle_s):
    worker = place.start(url=swallower.url, pool=pool)
    place.send(0)
    place.all_have_run(1)
    time.sleep(idle_s)

    place.send(*range(1, 50))
    swallower.swallow()
    place.send(*range(50, 100))
    swallowed = time.monotonic()
    until(lambda: set(place.numbers()) == set(range(100)), 40, "all have run")

    assert time.monotonic() - swallowed < 30
    assert worker.poll() is None
    until(place.is_quiet, 15, what="nothing is unacknowledged")


def test_who_publishes_on_a_connection_that_is_swallowed_hears_of_it(place, swallower):
    with Connection(swallower.url, transport=OURS) as connection:
        channel = connection.channel()
        message = channel.prepare_message("", headers={})
        channel.basic_publish(message, "", QUEUE)
        swallower.swallow()
        began = time.monotonic()

        with pytest.raises(connection.connection_errors):
            channel.basic_publish(message, "", QUEUE)

    assert time.monotonic() - began < 20
