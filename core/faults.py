"""Whose fault is an exception? Everything that follows an error is decided by this answer.

docs/faults.md lists what falls under which fault; a test walks through every SQLSTATE class of
Postgres and every error class of redis-py.
"""

from datetime import timedelta
from enum import StrEnum
from random import uniform

import psycopg
import redis

from core.errors import Refusal, SlotsInFlight

# Classes of SQLSTATE by which Postgres refuses a message's own values: data, and constraints.
VALUES_REFUSED = ("22", "23")
# Serialization, deadlock, lock timeout, and a statement that was cancelled (our own timeout).
CONTENTION_SQLSTATES = frozenset({"40001", "40P01", "55P03", "57014"})
FIRST_WAIT = timedelta(seconds=0.5)
LONGEST_WAIT = timedelta(seconds=15)


class Fault(StrEnum):
    """Who has to change so that the message can be carried out."""

    MESSAGE = "message"  # its sender: it becomes a dead letter
    CONTENTION = "contention"  # others who work on the same rows: it is tried again for a while
    ENVIRONMENT = "environment"  # a server: the worker waits until the server takes writes again
    BUG = "bug"  # this program: it is tried a few times, then it becomes a dead letter


def fault(error: BaseException) -> Fault:
    """Decide whose fault an exception is."""
    match error:
        case psycopg.Error() if error.sqlstate:
            return _fault_of_sqlstate(error.sqlstate)
        case Refusal() | psycopg.DataError():  # psycopg refuses a value, such as text with a NUL
            return Fault.MESSAGE
        case SlotsInFlight() | redis.WatchError():
            return Fault.CONTENTION
        case redis.DataError() | psycopg.ProgrammingError() | psycopg.NotSupportedError():
            return Fault.BUG  # the libraries refuse what this program passed to them
        case psycopg.Error() | redis.RedisError() | OSError():
            return Fault.ENVIRONMENT  # psycopg without a SQLSTATE: the connection, or the pool
    return Fault.BUG


def _fault_of_sqlstate(state: str) -> Fault:
    if state.startswith(VALUES_REFUSED):
        return Fault.MESSAGE
    return Fault.CONTENTION if state in CONTENTION_SQLSTATES else Fault.ENVIRONMENT


def sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a database error, or of what caused this error."""
    while error is not None:
        if isinstance(error, psycopg.Error) and error.sqlstate:
            return error.sqlstate
        error = error.__cause__
    return None


def safe_message(error: BaseException) -> str:
    """Write an error in up to 2 000 characters that Postgres can keep."""
    text = str(error) or type(error).__name__
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:2000]


def wait_s(retries: int) -> float:
    """Return the jittered seconds to wait before retry number `retries` (0 is the first)."""
    return nominal_wait_s(retries) * uniform(0.5, 1)


def nominal_wait_s(retries: int) -> float:
    """Return the seconds without jitter: doubled each time, up to `LONGEST_WAIT`."""
    return float(
        min(FIRST_WAIT.total_seconds() * 2 ** min(retries, 20), LONGEST_WAIT.total_seconds())
    )


def waited_s(retries: int) -> float:
    """Return how long so many retries have waited at most."""
    return sum(nominal_wait_s(n) for n in range(retries))
