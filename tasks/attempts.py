"""Attempts at a step: while a server refuses they go on; an error of the message ends them."""

from collections.abc import Callable, Collection, Iterator
from random import uniform

import psycopg
import structlog
from celery.exceptions import Reject

from core.attempt import Attempt
from core.faults import Fault, fault, sqlstate
from tasks.outages import wait_until_well
from tasks.resources import resources
from tasks.worker.waiting import sleep

TRIES = 5  # of what fails while all servers are well
FIRST_WAIT_S, WAIT_FACTOR = 0.1, 4  # between two tries: 8.5 s in all, longer than a restart
log = structlog.get_logger(__name__)


def attempts(
    tries: int = TRIES,
    failed: Callable[[Exception], None] = lambda _: None,
    raised_at_once: Collection[Fault] = (Fault.MESSAGE, Fault.CONTENTION),
) -> Iterator[Attempt]:
    """Attempt a step until it succeeds; wait in place while a server refuses.

        for attempt in attempts():
            with attempt:
                step()

    `failed` gets each error that another attempt follows. Raises an error of the faults named in
    `raised_at_once` at once, any other after so many tries while all servers are well; and Reject
    where the worker stops.
    """
    tried = 0
    while True:
        attempt = Attempt()
        yield attempt
        error = attempt.error
        if error is None:
            return
        kind = fault(error)
        if isinstance(error, Reject):
            raise error
        waited = _may_be_a_servers(error, kind) and wait_until_well(error)
        tried += not waited
        if not waited and (kind in raised_at_once or tried >= tries):
            raise error
        failed(error)
        if not waited:
            log.warning("tried_again", error=type(error).__name__, sqlstate=sqlstate(error))
            sleep(FIRST_WAIT_S * WAIT_FACTOR ** (tried - 1) * uniform(0.5, 1))
        if waited or kind is Fault.ENVIRONMENT:
            resources().pool.drain()  # what it connected before this wait may have ended since


def _may_be_a_servers(error: Exception, kind: Fault) -> bool:
    """Tell whether a server may refuse every message with this error, which only a probe can tell.

    A trigger or a constraint that somebody added refuses all values as it refuses wrong ones. A
    reply that makes no sense looks like a bug.
    """
    by_postgres = isinstance(error, psycopg.Error)
    return kind in {Fault.ENVIRONMENT, Fault.BUG} or (kind is Fault.MESSAGE and by_postgres)
