"""Celery's results in Redis; we need only its count of a chord's headers."""

from typing import Any

from celery import _state
from celery.backends.redis import RedisBackend


class Backend(RedisBackend):
    """Celery's, except that a task waits for no result of the tasks that it calls.

    Celery's subscribes to the result of each header of a chord, keeps that for ever, and never
    reads the replies (celery/celery issues 3808, 4824 and 6963): 3 KB a chord.
    """

    def add_pending_result(self, result: Any, *args: Any, **kwargs: Any) -> Any:  # Any: untyped
        """Note that somebody waits for a result; not in a task, which must not wait."""
        if _state.task_join_will_block():  # type: ignore[attr-defined] # absent from its types
            return result
        return super().add_pending_result(result, *args, **kwargs)
