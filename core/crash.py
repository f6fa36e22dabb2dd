"""Crash points: a test kills the process at one of them, and then checks that nothing is lost."""

import os
import signal
from functools import cache

from core.errors import BadSettings
from core.settings import Settings

POINTS = {
    "taken": "the worker has taken a message, nothing has run",
    "claimed": "a slot is claimed in Redis, Postgres knows nothing",
    "before_commit": "a transaction is about to commit",
    "committed": "a step is committed, what follows it has not begun",
    "registered_before_seed": "a registration is committed, its slots are not in Redis",
    "before_ack": "a task has run, its message is not acknowledged",
    "sealing": "a header of the completion chord begins",
    "sealed": "a header has its result, Celery has not counted it",
    "callback_claimed": "Celery has claimed the chord's callback, but has not published it",
    "before_announce": "the chord's callback begins",
    "announcing": "the announcement is written, not committed",
    "announced": "the announcement is committed, nothing is relayed",
    "published": "the broker has an event, the outbox does not say so",
    "sweeping": "the sweep has found something, but has not repaired it",
    "restoring": "an overdue message is back in its queue, the others are not",
}


def crashpoint(name: str) -> None:
    """Kill this process (SIGKILL) if `ELS_CRASHPOINT` names this point."""
    if armed() == name:
        os.kill(os.getpid(), signal.SIGKILL)


@cache
def armed() -> str | None:
    """Return the point that `ELS_CRASHPOINT` names. Raises BadSettings if there is none."""
    point = Settings.from_env().crashpoint
    if point is not None and point not in POINTS:
        raise BadSettings(f"ELS_CRASHPOINT: there is no {point}; use one of {', '.join(POINTS)}")
    return point
