"""When a worker's event loop heeds a signal to stop."""

import os
import signal

import pytest
from celery.exceptions import WorkerShutdown
from celery.worker import state

from tasks.worker.stopping import stop_between_turns


@pytest.fixture
def heeded(monkeypatch):
    """Handle TERM as Celery's warm shutdown does, and list when."""
    monkeypatch.setattr(state, "should_stop", None)
    heeded = []

    def handler(number, _):
        heeded.append(signal.Signals(number).name)
        state.should_stop = 0

    before = signal.signal(signal.SIGTERM, handler)
    yield heeded
    signal.signal(signal.SIGTERM, before)


def stop(times=1):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_waits_for_the_end_of_a_turn(hub, heeded):
    within = []
    hub.call_soon(lambda: (stop(), within.extend(heeded)))

    with stop_between_turns(hub), pytest.raises(WorkerShutdown):
        next(hub.create_loop())

    assert (within, heeded) == ([], ["SIGTERM"])


def test_a_second_signal_acts_at_once_and_once(hub, heeded):
    within = []
    hub.call_soon(lambda: (stop(2), within.extend(heeded)))

    with stop_between_turns(hub):
        next(hub.create_loop())

    assert within == heeded == ["SIGTERM"]


def test_a_signal_of_a_turn_that_fails_acts_when_the_loop_is_left(hub, heeded):
    def lose_the_connection():
        stop()
        raise ConnectionError

    hub.call_soon(lose_the_connection)

    with pytest.raises(ConnectionError), stop_between_turns(hub):
        next(hub.create_loop())

    assert heeded == ["SIGTERM"]


def test_a_signal_outside_of_the_loop_acts_at_once(hub, heeded):
    with stop_between_turns(hub):
        pass

    stop()

    assert heeded == ["SIGTERM"]
    assert not hub.on_tick
