"""Whose fault is an exception? The answer decides what happens to its message.

docs/faults.md lists the errors of each fault. A test checks every SQLSTATE class of Postgres and
every error class of redis-py.
"""

from enum import StrEnum

import psycopg
import redis

from core.errors import Refusal, SlotsInFlight

# Postgres refuses the values of a message with these classes: data, and constraints.
VALUES_REFUSED = ("22", "23")
# Serialization, deadlock, lock timeout, and a cancelled statement (our own timeout).
CONTENTION_SQLSTATES = frozenset({"40001", "40P01", "55P03", "57014"})


class Fault(StrEnum):
    """What has to change before a worker can execute the message."""

    MESSAGE = "message"  # its body: it becomes a dead letter
    CONTENTION = "contention"  # others use the same rows: the worker retries for a while
    ENVIRONMENT = "environment"  # a server: the worker waits until the server takes writes again
    BUG = "bug"  # this program: the worker retries a few times, then it becomes a dead letter


def fault(error: BaseException) -> Fault:
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
    """Return the SQLSTATE of a database error, or of the database error that caused this one."""
    while error is not None:
        if isinstance(error, psycopg.Error) and error.sqlstate:
            return error.sqlstate
        error = error.__cause__
    return None


def safe_message(error: BaseException) -> str:
    """Write an error in up to 2 000 characters, without those that Postgres cannot store."""
    text = str(error) or type(error).__name__
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:2000]
