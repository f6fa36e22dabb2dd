"""Which errors may pass, and how long to wait for them."""

from datetime import timedelta
from random import uniform

import psycopg
import redis
from psycopg_pool import PoolTimeout

from core.errors import SlotsInFlight

# Deadlock, serialization, lock timeout; shutdown, crash, starting up, too many connections.
PASSING_SQLSTATES = {"40P01", "40001", "55P03", "57P01", "57P02", "57P03", "53300"}
FIRST_WAIT = timedelta(seconds=0.5)
LONGEST_WAIT = timedelta(seconds=15)  # below every visibility timeout that makes sense


def sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a database error, or of what caused this error."""
    while error is not None:
        if isinstance(error, psycopg.Error) and error.sqlstate:
            return error.sqlstate
        error = error.__cause__
    return None


def may_pass(error: BaseException) -> bool:
    """Tell whether trying again later can succeed."""
    match error:
        case SlotsInFlight() | PoolTimeout():
            return True
        case redis.ConnectionError() | redis.TimeoutError():
            return True
        case psycopg.OperationalError() | psycopg.InterfaceError():
            # Without a SQLSTATE it is the connection; class 08 is the connection as well.
            state = error.sqlstate
            return state is None or state.startswith("08") or state in PASSING_SQLSTATES
    return False


def wait_s(retries: int, longest: timedelta = LONGEST_WAIT) -> float:
    """Return the jittered seconds to wait before retry number `retries` (0 is the first)."""
    return nominal_wait_s(retries, longest) * uniform(0.5, 1)


def nominal_wait_s(retries: int, longest: timedelta = LONGEST_WAIT) -> float:
    """Return the seconds without jitter: doubled each time, up to `longest`."""
    return float(min(FIRST_WAIT.total_seconds() * 2 ** min(retries, 20), longest.total_seconds()))


def waited_s(retries: int, longest: timedelta = LONGEST_WAIT) -> float:
    """Return how long so many retries have waited at most."""
    return sum(nominal_wait_s(n, longest) for n in range(retries))
