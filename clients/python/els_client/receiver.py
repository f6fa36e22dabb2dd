"""A Celery worker that loses no event: none of an unknown type, and none that `receive` refuses.

Celery acknowledges a task that raised an error, and drops a message of a task that it does not
know: either way the event would be gone.
"""

import logging
import mmap
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.exceptions import Reject
from celery.signals import worker_shutting_down
from celery.worker.consumer import Consumer

CATCH_ALL = "els.event"
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 30.0  # between two tries, doubled each time
log = logging.getLogger(__name__)
_stopping = mmap.mmap(-1, 1)  # 1: the worker stops. Its processes share this byte with it.

Event = dict[str, Any]  # Any: a CloudEvent, JSON


class _KeepsAll(Consumer):
    """Hands a message of a task that the worker does not have to the catch-all."""

    def on_unknown_task(self, body: object, message: Any, exc: object) -> None:  # Any: of Kombu
        message.headers["task"] = CATCH_ALL
        self.create_task_handler()(message)


@worker_shutting_down.connect
def _note_stop(**_: object) -> None:
    _stopping[0] = 1


def receive_events(app: Celery, receive: Callable[[Event], object]) -> None:
    """Let the workers of an app hand each event to `receive`, whatever task its route names.

    An event leaves the queue once `receive` has returned. If that raises, it is called again after
    0.1 to 30 s, until it returns: an event that your code can never take keeps a process busy, so
    store it elsewhere and return. The same event may come twice: see `els_client.inbox`.
    """

    @app.task(name=CATCH_ALL, acks_late=True, reject_on_worker_lost=True, ignore_result=True)
    def event_task(event: Event, **_: object) -> None:
        _until_it_returns(receive, event)

    app.conf.worker_consumer = _KeepsAll
    if str(app.conf.broker_url).startswith(("amqp", "pyamqp")):
        app.conf.task_create_missing_queue_type = "quorum"  # as the service declares a queue


def _until_it_returns(receive: Callable[[Event], object], event: Event) -> None:
    wait_s = FIRST_WAIT_S
    while True:
        try:
            receive(event)
        except Exception:
            log.exception("event %s (%s) comes again in %g s", event["id"], event["type"], wait_s)
        else:
            return
        _pause(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _pause(wait_s: float) -> None:
    """Wait; give the event back if the worker stops meanwhile."""
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        if _stopping[0]:
            raise Reject("the worker stops", requeue=True)
        time.sleep(min(left, 0.5))
