"""When beat sends a tick, on a clock that the test moves."""

import pytest

from core.signs import heartbeat
from tasks.app import app, settings
from tasks.worker import beat

RELAY, SWEEP = "els.relay", "els.sweep"


@pytest.fixture
def pass_time(monkeypatch):
    """Let so many seconds pass for a scheduler, as beat's loop does."""
    now = [1000.0]
    monkeypatch.setattr(beat, "monotonic", lambda: now[0])

    def passing(scheduler, seconds, each_tick=lambda: None):
        until = now[0] + seconds
        while now[0] < until:
            now[0] += scheduler.tick()
            each_tick()

    return passing


@pytest.fixture
def scheduler():
    app.conf.task_always_eager = False
    opened = beat.Scheduler(app)
    yield opened
    opened.close()
    app.conf.task_always_eager = True


@pytest.fixture
def waiting(messages):
    """Count the ticks of a task that wait."""
    return lambda task: sum(
        each["headers"]["task"] == task for each in messages(settings.control_queue)
    )


@pytest.fixture
def begin(valkey):
    """Begin all ticks that wait, as workers do; return how many these were."""

    def begun():
        for task in (RELAY, SWEEP):
            heartbeat.tick_begun(valkey, settings.queue, task)
        count = valkey.llen(settings.control_queue)
        valkey.delete(settings.control_queue)
        return count

    return begun


def test_beat_sends_each_tick_at_once_and_then_at_its_interval(scheduler, pass_time, begin):
    counts = []
    pass_time(scheduler, 60, lambda: counts.append(begin()))

    relays, sweeps = 60 / settings.relay_every, 60 / settings.sweep_every
    assert counts[:2] == [1, 1]
    assert abs(sum(counts) - relays - sweeps) <= 2


def test_a_tick_has_no_expiry(scheduler, pass_time, messages):
    pass_time(scheduler, 1)

    assert {each["headers"]["expires"] for each in messages(settings.control_queue)} == {None}


def test_ten_minutes_without_workers_leave_a_few_ticks(scheduler, pass_time, waiting):
    pass_time(scheduler, 600)

    assert (waiting(SWEEP), waiting(RELAY)) == (5, 5)


def test_hours_without_workers_leave_a_tick_for_every_five_minutes(scheduler, pass_time, waiting):
    pass_time(scheduler, 2 * 3600)

    assert waiting(SWEEP) <= 4 + 2 * 12


def test_a_tick_that_got_lost_delays_the_next_by_less_than_half_a_minute(
    scheduler, pass_time, valkey, waiting
):
    pass_time(scheduler, 10)
    valkey.delete(settings.control_queue)

    pass_time(scheduler, 30)

    assert waiting(SWEEP) == waiting(RELAY) == 1


def test_beat_ticks_at_its_pace_again_once_workers_are_back(scheduler, pass_time, begin):
    pass_time(scheduler, 900)
    begin()

    counts = []
    pass_time(scheduler, 20, lambda: counts.append(begin()))

    assert sum(counts) >= 20 / settings.relay_every


def test_a_flushed_redis_stops_no_tick(scheduler, pass_time, valkey, waiting):
    pass_time(scheduler, 10)
    valkey.flushdb()

    pass_time(scheduler, settings.sweep_every + 1)

    assert waiting(SWEEP) == waiting(RELAY) == 1


def test_a_new_beat_ticks_at_once_whatever_the_one_before_has_noted(pass_time, scheduler, waiting):
    pass_time(scheduler, 10)
    scheduler.close()
    after = beat.Scheduler(app)

    pass_time(after, 1)

    after.close()
    assert (waiting(SWEEP), waiting(RELAY)) == (2, 2)


def test_a_beat_sends_nothing_while_another_leads(pass_time, scheduler, waiting):
    pass_time(scheduler, 1)
    other = beat.Scheduler(app)

    pass_time(other, 100)

    other.close()
    assert (waiting(SWEEP), waiting(RELAY)) == (1, 1)


@pytest.mark.parametrize("task", [SWEEP, RELAY])
def test_a_task_lets_beat_send_its_next_tick(valkey, task):
    assert heartbeat.may_send_tick(valkey, settings.queue, task)
    assert not heartbeat.may_send_tick(valkey, settings.queue, task)

    app.tasks[task].apply().get()

    assert heartbeat.may_send_tick(valkey, settings.queue, task)
