"""Several beats: one leads, the others stand by; the leader is killed, paused, stopped, flushed."""

import json
import os
import signal
import time

import pytest
import redis

from core.signs import beats, heartbeat
from ops.signs import read_beats
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port
from tests.live.conftest import until

# A lease (5 s), a turn of who stands by (1 s), and what two busy cores add.
TAKEN_OVER_S = 15
TICKS = {"els.sweep", "els.relay"}


@pytest.fixture
def start(workers):
    """Start so many beats; return them by process id once each has shown itself."""

    def beats_of(count, **settings):
        env = {"ELS_SWEEP_EVERY": "1", "ELS_RELAY_EVERY": "1", **settings}
        started = [workers.start("--pidfile=", command="beat", **env) for _ in range(count)]
        return {each.pid: each for each in started}

    return beats_of


@pytest.fixture
def leader(workers, valkey):
    """Return the process id of the beat that leads; None: the lease is free."""

    def pid(client=valkey):
        found = client.get(beats.LEADER.format(queue=workers.queue))
        return found and int(found.partition("#")[0].rpartition(":")[2])

    return pid


@pytest.fixture
def begun(workers, valkey):
    """Begin the ticks that wait, as a worker does; return their tasks."""

    def begin(elsewhere=None):
        """`elsewhere`: the broker is the Redis of this client."""
        if elsewhere is None:
            tasks = workers.take(".control")
        else:
            messages = iter(lambda: elsewhere.rpop(f"{workers.queue}.control"), None)
            tasks = [json.loads(message)["headers"]["task"] for message in messages]
        for task in tasks:
            heartbeat.tick_begun(elsewhere or valkey, workers.queue, task)
        return tasks

    return begin


@pytest.fixture
def three(start, workers, valkey, leader, begun):
    """Three beats, one of which leads."""
    started = start(3)
    seen = lambda: read_beats(valkey, workers.queue)  # noqa: E731
    until(lambda: len(seen().standing_by) == 2, what="two beats stand by")
    until(lambda: {*begun()} & TICKS, what="the leader ticks")
    assert leader() in started
    return started


def wait_for_ticks(begun, timeout_s=TAKEN_OVER_S):
    seen = set()
    until(lambda: seen.update(begun()) or seen >= TICKS, timeout_s, "both tasks tick")


def relays_within(seconds, begun):
    since, relays = time.monotonic(), 0
    while time.monotonic() - since < seconds:
        relays += begun().count("els.relay")
        time.sleep(0.02)
    return relays


def test_three_beats_tick_as_often_as_one(three, begun):
    begun()

    assert 3 <= relays_within(5, begun) <= 7


def test_another_beat_leads_within_seconds_of_a_leaders_death(three, leader, begun, workers):
    for _ in range(2):
        dead = leader()
        three.pop(dead).kill()
        begun()
        wait_for_ticks(begun)
        until(lambda: leader() in three, what="one of the others leads")

    log = (workers.logs / "0.log").read_text() + (workers.logs / "1.log").read_text()
    assert "beat_leads" in log


def test_a_leader_that_was_paused_stands_by_when_it_wakes(three, leader, begun):
    paused = leader()
    os.kill(paused, signal.SIGSTOP)
    try:
        begun()
        wait_for_ticks(begun)
        after = until(lambda: leader() not in (None, paused) and leader(), what="another leads")
    finally:
        os.kill(paused, signal.SIGCONT)
    relays = relays_within(5, begun)

    assert relays <= 8  # one more than its pace allows: a tick that was on its way
    assert (leader(), three[paused].poll()) == (after, None)


def test_a_leader_that_is_told_to_end_hands_over_at_once(three, leader, begun):
    ending = three[leader()]

    ending.terminate()
    assert ending.wait(10) == 0
    since = time.monotonic()
    until(lambda: leader() in {*three} - {ending.pid}, what="another leads")

    assert time.monotonic() - since < beats.LEASE.total_seconds()
    wait_for_ticks(begun)


def test_a_flush_leaves_one_leader(three, leader, begun, valkey):
    for _ in range(3):
        valkey.flushdb()
        until(lambda: leader() in three, what="a beat leads")
    begun()

    assert 3 <= relays_within(5, begun) <= 8


@pytest.mark.redis_only("its broker is a Valkey of its own")
def test_beats_tick_while_redis_does_not_say_who_leads(start, workers, begun, tmp_path):
    broker = Valkey(tmp_path / "broker", free_port(), "test-password")
    broker.start()
    try:
        away = f"redis://127.0.0.1:{free_port()}/0"
        start(2, ELS_REDIS_URL=away, ELS_BROKER_URL=broker.url)
        with redis.Redis.from_url(broker.url, decode_responses=True) as client:
            wait_for_ticks(lambda: begun(client), 30)
    finally:
        broker.stop()
