"""Beat as a process of its own, with wrong clocks and with servers that are away or hang."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from core.signs import heartbeat
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port
from tests.live.conftest import until

HOUR_S = 3600
HURT = pytest.mark.redis_only("it hurts a broker of its own, a Valkey")
CLOCK = Path(__file__).parent / "clock"


class Clock:
    """The wall clock of a process, wrong by some seconds, which a test may change as it runs."""

    def __init__(self, folder):
        self.file = folder / "clock"
        self.set(0)
        self.env = {"PYTHONPATH": str(CLOCK), "TEST_CLOCK": str(self.file)}

    def set(self, offset_s):
        new = self.file.with_suffix(".new")
        new.write_text(str(offset_s))
        new.replace(self.file)


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


@pytest.fixture
def beat(workers, tmp_path):
    """Start beat, with a schedule file, which it does not need."""

    def start(**settings):
        settings = {"ELS_SWEEP_EVERY": "1", "ELS_RELAY_EVERY": "1", **settings}
        options = ("--schedule", str(tmp_path / "schedule"), "--pidfile=")
        return workers.start(*options, command="beat", **settings)

    return start


@pytest.fixture
def begun(workers):
    """Begin the ticks that wait, as a worker does; return their tasks."""

    def begin(client, *, elsewhere=False):
        """`elsewhere`: the broker is the Redis of this client."""
        tasks = (
            _popped(client, f"{workers.queue}.control") if elsewhere else workers.take(".control")
        )
        for task in tasks:
            heartbeat.tick_begun(client, workers.queue, task)
        return tasks

    return begin


def _popped(client, queue):
    messages = iter(lambda: client.rpop(queue), None)
    return [json.loads(message)["headers"]["task"] for message in messages]


@pytest.fixture
def failures(tmp_path):
    """Count how often the first process has said that it cannot send ticks."""
    return lambda: (tmp_path / "0.log").read_text().count("ticks_not_sent")


@pytest.fixture
def own_valkey(tmp_path):
    """A server that a test may hurt."""
    server = Valkey(tmp_path / "valkey", free_port(), "test-password")
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S], ids=["set back", "set forward"])
def test_a_beat_that_starts_after_its_clock_was_set_ticks_at_once(
    beat, begun, clock, valkey, tmp_path, ahead_s
):
    clock.set(ahead_s)
    first = beat(**clock.env)
    until(lambda: "els.sweep" in begun(valkey), what="a sweep is sent")
    first.kill()
    first.wait()
    begun(valkey)

    clock.set(0)
    beat(**clock.env)

    sent = []
    until(lambda: sent.extend(begun(valkey)) or {"els.sweep", "els.relay"} <= {*sent})
    assert not [*tmp_path.glob("schedule*")]


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
def test_a_clock_that_is_set_while_beat_runs_neither_stops_nor_bunches_ticks(
    beat, begun, clock, valkey, step_s
):
    beat(**clock.env)
    until(lambda: "els.relay" in begun(valkey), what="beat ticks")

    clock.set(step_s)
    since, relays = time.monotonic(), 0
    while relays < 5:
        relays += begun(valkey).count("els.relay")
        assert time.monotonic() - since < 30, "beat has stopped"
        time.sleep(0.02)

    assert time.monotonic() - since > 3


@pytest.mark.parametrize("behind_s", [30, HOUR_S, -HOUR_S], ids=["30 s", "1 h", "ahead"])
def test_a_worker_carries_out_the_ticks_of_a_beat_whose_clock_is_wrong(
    workers, beat, clock, valkey, behind_s
):
    valkey.flushdb()
    workers.start()
    workers.ready(1)

    clock.set(-behind_s)
    beat(**clock.env)

    until(lambda: valkey.get(heartbeat.SWEPT), what="the sweep has run")


def test_ticks_do_not_pile_up_while_no_worker_begins_them(beat, workers, valkey):
    valkey.config_resetstat()
    beat(ELS_SWEEP_EVERY="0.1", ELS_RELAY_EVERY="0.1")
    commands = lambda: valkey.info("commandstats").get("cmdstat_set", {"calls": 0})  # noqa: E731

    until(lambda: commands()["calls"] > 60, what="30 intervals have passed")

    assert workers.waiting(".control") == 2


def test_two_beats_do_not_hinder_each_other(beat, begun, workers, valkey):
    beats = [beat(), beat()]

    for _ in range(3):
        until(lambda: workers.waiting(".control"), what="a tick is sent")
        begun(valkey)

    assert [each.poll() for each in beats] == [None, None]


@HURT
def test_beat_outlives_a_broker_that_hangs_and_one_that_is_killed(
    beat, begun, failures, own_valkey
):
    with redis.Redis.from_url(own_valkey.url) as client:
        running = beat(ELS_REDIS_URL=own_valkey.url)
        until(lambda: begun(client, elsewhere=True), what="beat ticks")

        own_valkey.process.send_signal(signal.SIGSTOP)
        until(lambda: failures() == 1, what="beat has waited for an answer")
        time.sleep(5)  # of silence: whatever is sent meanwhile, the server finds later
        own_valkey.process.send_signal(signal.SIGCONT)
        late = begun(client, elsewhere=True)
        until(lambda: begun(client, elsewhere=True), 15, "beat ticks after the silence")
        own_valkey.process.kill()
        own_valkey.process.wait()
        until(lambda: failures() == 2, what="beat has met the crash")
        own_valkey.start()
        until(lambda: begun(client, elsewhere=True), 15, "beat ticks after the crash")

    assert len(late) <= 4
    assert running.poll() is None


@HURT
def test_beat_ends_when_it_is_told_to_while_its_broker_hangs(beat, begun, own_valkey):
    with redis.Redis.from_url(own_valkey.url) as client:
        running = beat(ELS_REDIS_URL=own_valkey.url)
        until(lambda: begun(client, elsewhere=True), what="beat ticks")

    own_valkey.process.send_signal(signal.SIGSTOP)
    running.terminate()
    try:
        status = running.wait(10)
    finally:
        own_valkey.process.send_signal(signal.SIGCONT)

    assert status == 0


@HURT
def test_beat_starts_without_a_broker_and_ticks_once_there_is_one(
    beat, begun, failures, own_valkey
):
    own_valkey.stop()
    running = beat(ELS_REDIS_URL=own_valkey.url)
    until(failures, what="beat has tried")

    own_valkey.start()

    with redis.Redis.from_url(own_valkey.url) as client:
        until(lambda: begun(client, elsewhere=True), what="beat ticks")
    assert running.poll() is None


@HURT
def test_beat_ticks_without_the_redis_of_the_slots(beat, begun, own_valkey):
    away = f"redis://127.0.0.1:{free_port()}/0"
    beat(ELS_REDIS_URL=away, ELS_BROKER_URL=own_valkey.url)

    with redis.Redis.from_url(own_valkey.url) as client:
        for _ in range(2):
            until(lambda: "els.sweep" in begun(client, elsewhere=True), what="beat ticks")


@HURT
def test_beat_ticks_where_redis_refuses_to_note_it(beat, begun, own_valkey):
    with redis.Redis.from_url(own_valkey.url) as client:
        client.acl_setuser(
            "default", enabled=True, passwords=["+test-password"], categories=["+@all"],
            commands=["-set"], keys=["*"], channels=["*"],
        )  # fmt: skip
        beat(ELS_REDIS_URL=own_valkey.url)

        for _ in range(2):
            until(lambda: "els.sweep" in begun(client, elsewhere=True), what="beat ticks")


SIGNS = """
import os, sys
import redis
from core.signs import heartbeat
from ops.heartbeat import read_heartbeat
client = redis.Redis.from_url(os.environ["ELS_REDIS_URL"], decode_responses=True)
if sys.argv[1] == "give":
    heartbeat.note_worker(client, "worker@skewed")
    heartbeat.note_sweep(client)
seen = read_heartbeat(client, 0)
print(seen.workers, seen.beat_silent, flush=True)
"""


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S], ids=["ahead", "behind"])
@pytest.mark.parametrize("skewed", ["give", "read"])
def test_signs_of_life_do_not_depend_on_the_clock_of_a_host(slots, valkey, clock, ahead_s, skewed):
    clock.set(ahead_s)
    other = "read" if skewed == "give" else "give"

    told = {}
    for part in ("give", "read"):
        env = os.environ | (clock.env if part == skewed else {})
        command = [sys.executable, "-c", SIGNS, part]
        told[part] = subprocess.run(command, env=env, capture_output=True, text=True, check=True)

    assert told[other].stdout == told[skewed].stdout == "['worker@skewed'] False\n"
