"""Crash points: places where a test may kill the process, to see that nothing is lost."""

import os
import signal
from functools import cache

from core.errors import BadSettings
from core.settings import Settings

POINTS = {
    "taken": "the broker's message is noted as taken, nothing has run",
    "claimed": "a slot is claimed in Redis, Postgres knows nothing",
    "before_commit": "a transaction is about to commit",
    "committed": "a step is committed, what follows it is not begun",
    "registered_before_seed": "a registration is committed, its slots are not in Redis",
    "before_ack": "a task has run, its message is not acknowledged",
    "sealing": "a header of the completion chord begins",
    "sealed": "a header has its result, Celery has not counted it",
    "callback_claimed": "Celery has claimed the chord's callback, and not published it",
    "before_announce": "the chord's callback begins",
    "announcing": "the announcement is written, not committed",
    "announced": "the announcement is committed, nothing is relayed",
    "published": "an event is with the broker, not marked as published",
    "sweeping": "the sweep has found something, and not mended it",
    "restoring": "an overdue message is back in its queue, the others are not",
}


def crashpoint(name: str) -> None:
    """Die here by SIGKILL if `ELS_CRASHPOINT` names this point; otherwise do nothing."""
    if _armed() == name:
        os.kill(os.getpid(), signal.SIGKILL)


@cache
def _armed() -> str | None:
    point = Settings.from_env().crashpoint
    if point is not None and point not in POINTS:
        raise BadSettings(f"ELS_CRASHPOINT: there is no {point}, but {', '.join(POINTS)}")
    return point
