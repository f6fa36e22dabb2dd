"""A message in the worker's parent: when it leaves the broker, and which part monitors see.

Celery acknowledges a message that failed, drops one that expired or was revoked, and lets its
sender set a time limit that kills our processes. Here a message of an upstream task leaves the
broker only when its task has succeeded or a dead letter is written; otherwise it goes back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import structlog
from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined] # not in its types
from billiard.exceptions import Terminated, WorkerLostError
from celery.exceptions import Ignore, InvalidTaskError, Reject, Retry, TaskRevokedError
from celery.worker.request import Request
from celery.worker.state import task_ready

from core.errors import ELSError, NotExecuted
from core.faults import describe
from core.redaction import HIDDEN, task_id
from tasks.delivery import redacted_kwargs
from tasks.worker import deaths, stopping

LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)
log = structlog.get_logger(__name__)


class KeptAsDeadLetter(ELSError):
    """A task failed, and its message is kept: the worker may acknowledge it."""


PASSED_ON = (KeptAsDeadLetter, Reject, Retry, Ignore, Terminated)  # Celery's way with them is right


class QuietRequest(Request):
    """Celery's request. Monitors see its ids, and neither file names nor students."""

    _already_revoked: bool  # Celery's own, absent from its types

    upstream: frozenset[str] = frozenset()  # the tasks whose messages must not be lost
    pool: Any = None  # Celery's pool of this worker

    acknowledged_with: "list[Any] | None" = None  # tags, which its job acknowledges at once

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as Celery calls it
        """Make a request. Raises InvalidTaskError, with which Celery gives up one message alone."""
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:  # any other one would end the worker at each delivery
            raise InvalidTaskError("Celery makes no request of its headers") from error
        self.time_limits = (None, None)
        self._argsrepr = "()"
        self._kwargsrepr = redacted_kwargs(self.kwargs)
        self.request_dict.update(
            argsrepr=self._argsrepr, kwargsrepr=self._kwargsrepr, timelimit=(None, None)
        )

    def info(self, safe: bool = False) -> Any:  # Any: a dict, as Celery has it
        """Answer remote control; `safe` or not, without what the message says."""
        return {**super().info(safe=True), "id": task_id(self.id)}

    def acknowledge(self) -> None:
        """Acknowledge the message, or leave that to its job."""
        if self.acknowledged_with is None:
            super().acknowledge()
        elif not self.acknowledged:
            self.acknowledged_with.append(self.message.delivery_tag)
            self.acknowledged = True

    def reject(self, requeue: bool = True) -> None:
        """Give the message back to the broker if it is there still; never drop one."""
        super().reject(requeue=True)

    def give_back(self) -> None:
        """Give the message back to the broker; its request is at an end here."""
        task_ready(self)
        self.reject()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """Acknowledge a failed message only if it is kept; note a process that died with it."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, LOST):
            if not self.delivery_info["redelivered"] and not stopping.asked():
                deaths.note(self.id)
        elif self.name in self.upstream and not isinstance(error, PASSED_ON):
            log.error("message_goes_back", task=self.name, task_id=self.id, error=describe(error))
            self.give_back()
            return
        with ending(self):
            super().on_failure(exc_info, send_failed_event, return_ok)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - as Celery calls it
        """Send monitors the name of an error alone: its text may quote a row."""
        if "exception" in fields:
            name, _, text = str(fields["exception"]).partition("(")
            if name == KeptAsDeadLetter.__name__:  # its text begins with the name of the cause
                name = text.strip("'\"").partition(":")[0]
            fields.update(exception=f"{name}: see the worker's log", traceback="")
        if "result" in fields and self.task.__module__.startswith("celery."):
            fields["result"] = HIDDEN  # those of Celery's own tasks return what a sender gave them
        super().send_event(type, **fields)

    def _announce_revoked(
        self, reason: str, terminated: bool, signum: object, expired: bool
    ) -> None:
        """Keep a message that expired, or that somebody revoked, as a dead letter."""
        announce: Callable[..., None] = super()._announce_revoked  # type: ignore[misc] # as above
        if self.name not in self.upstream or self._already_revoked:
            announce(reason, terminated, signum, expired)
            return
        self._already_revoked = True
        code = "EXPIRED" if expired else "REVOKED"
        why = f"expired at {self.expires}" if expired else f"was {reason} by remote control"
        dead_letters = import_module(self.task.app.conf.dead_letters)
        letter = dead_letters.letter_of_call(
            self.name, self, NotExecuted(f"the message {why}"), code
        )
        acknowledge = partial(announce, reason, terminated, signum, expired)
        release = partial(self._release, acknowledge)
        self.pool.apply_async(dead_letters.keep_if_possible, args=(letter,), callback=release)

    def _release(self, acknowledge: Callable[[], None], kept: int | None) -> None:
        if kept is None:
            self.give_back()
        else:
            acknowledge()


@contextmanager
def ending(*requests: QuietRequest) -> Iterator[None]:
    """Leave none of these messages in work, whatever Celery raises when it ends one.

    Celery raises where Redis records no result of a step of the chord; a pool without processes
    lets it into the event loop. A message left in work would be renewed for ever, and its batch
    stuck. So it goes back to the broker; a step of the chord is left to the sweep.
    """
    try:
        yield
    except TaskRevokedError:
        raise
    except Exception:
        log.exception("task_not_ended", tasks=[request.id for request in requests])
        for request in requests:
            if request.name in request.upstream:
                request.give_back()
            else:
                task_ready(request)
                request.acknowledge()
