"""`ELS_EAGER=1`: a task runs in the process of its caller, for unit tests.

There is no worker and no beat, but the same Postgres and Redis. Whoever calls a task learns at once
which of these is away, where a worker would wait for it.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import celery
from celery.exceptions import AlwaysEagerIgnored, Reject
from celery.result import EagerResult

from core.errors import StackError
from core.servers.finding import Severity
from core.servers.requirements import check_servers
from core.settings import Settings


class Task(celery.Task[Any, Any]):  # Any: as celery-types has it
    """A task that raises where a server is away, rather than wait for it."""

    def apply(self, *args: Any, **options: Any) -> EagerResult[Any]:  # Any: as Celery calls it
        """Run the task here. Raises BadSettings and StackError."""
        _check_servers_once()
        result = super().apply(*args, **options)
        if isinstance(result.result, Reject):  # a worker would give the message back
            raise _reason(result.result) from None
        return result


def _reason(refused: Reject) -> Exception:
    reason: Exception = refused.args[0]
    return _reason(reason) if isinstance(reason, Reject) else reason


@contextmanager
def not_for_events() -> Iterator[None]:
    """Silence Celery's warning that an event goes to the broker although tasks are eager."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AlwaysEagerIgnored)
        yield


@cache
def _check_servers_once() -> None:
    settings = Settings.from_env()
    settings.server_urls("with ELS_EAGER tasks run in this process, which")
    for found in check_servers(settings):
        if found.severity is Severity.FAULT:
            raise StackError(f"with ELS_EAGER tasks run in this process: {found}")
