"""Celery's results in Redis: its count of a chord's headers, and what senders ask for."""

from typing import Any

import structlog
from celery import _state
from celery.backends import redis as stock
from redis import RedisError

from core.faults import describe, safe_message
from tasks.attempts import attempts

log = structlog.get_logger(__name__)


class Backend(stock.RedisBackend):
    """Celery's, except that a task waits for no result of the tasks that it calls.

    Celery's subscribes to the result of each header of a chord, keeps that for ever, and never
    reads the replies (celery/celery issues 3808, 4824 and 6963): 3 KB a chord.
    """

    def add_pending_result(self, result: Any, *args: Any, **kwargs: Any) -> Any:  # Any: untyped
        """Note that somebody waits for a result; not in a task, which must not wait."""
        if _state.task_join_will_block():  # type: ignore[attr-defined] # absent from its types
            return result
        return super().add_pending_result(result, *args, **kwargs)

    def mark_as_done(self, task_id: Any, *args: Any, **more: Any) -> None:  # Any: likewise
        """Record that a task has succeeded; wait while Redis refuses.

        Postgres holds the outcome, so a result that Redis alone refuses keeps no message; and the
        sweep completes what waits for a step of a chord.
        """
        try:
            for attempt in attempts(tries=2):
                with attempt:
                    super().mark_as_done(task_id, *args, **more)
        except RedisError as error:
            log.warning("result_not_stored", task_id=task_id, error=describe(error))

    def prepare_exception(self, exc: Any, serializer: Any = None) -> Any:  # Any: likewise
        """Describe an error to whoever asked: its own text may quote a message or a row."""
        prepared = super().prepare_exception(exc, serializer)
        if isinstance(prepared, dict):
            prepared["exc_message"] = [safe_message(exc)]
        return prepared

    # Celery's own signature has types that differ from those of its stubs.
    def store_result(  # type: ignore[override]
        self, task_id: Any, result: Any, state: Any, traceback: Any = None, **more: Any
    ) -> Any:
        """Store a result; a traceback stays in the worker's log."""
        return super().store_result(task_id, result, state, None, **more)


class SentinelBackend(Backend, stock.SentinelBackend):
    """The same, in the primary that Sentinels name."""
