"""A worker stops between two turns of its event loop, not within one.

Celery stops a worker in the signal's handler: it ends the pool and gives messages back, wherever
the main thread is. If that holds a lock of the pool, it waits for itself for ever (CPython's issue
121649).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import mmap
from signal import SIGINT, SIGQUIT, SIGTERM
from typing import Any

from celery.platforms import signals
from celery.worker import state

STOPS = (SIGTERM, SIGQUIT, SIGINT)

Handler = Callable[[int, Any], None]  # Any: a frame, or None where it is left by now

_asked = mmap(-1, 1)  # 1: this worker is to stop; shared with the processes of its pool


def asked() -> bool:
    """Tell, in any process of this worker, whether it is to stop."""
    return _asked[0] == 1


def by_somebody() -> bool:
    """Tell whether somebody stops this worker; else it ends by itself."""
    asked_for = (state.should_stop, state.should_terminate)
    return any(each is not None and each is not False for each in asked_for)


@contextmanager
def stop_between_turns(hub: Any) -> Iterator[None]:  # Any: Kombu's event loop, untyped
    """Let a signal to stop wait for the next turn of this loop, a second at most.

    A second signal acts at once, in case the turn does not end. Outside of this context each does.
    """
    theirs: dict[int, Handler] = {n: h for n in STOPS if callable(h := signals[n])}
    waiting: list[int] = []
    _asked[0] = 0

    def ask(number: int, _: object) -> None:
        _asked[0] = 1
        waiting.append(number)
        if len(waiting) > 1:
            act()

    def act() -> None:
        signals.update({n: theirs[n] for n in theirs if signals[n] is ask})
        if waiting:  # nothing adds to it any more
            number = waiting[0]
            waiting.clear()
            theirs[number](number, None)

    def act_between_turns() -> None:
        if waiting:
            act()
            state.maybe_shutdown()

    signals.update(dict.fromkeys(theirs, ask))
    hub.on_tick.add(act_between_turns)
    try:
        yield
    finally:
        hub.on_tick.discard(act_between_turns)
        act()
