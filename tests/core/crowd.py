"""Many hands at once: steps in threads, waiting with a deadline."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

from core.faults import Fault, fault

DEADLINE_S = 60.0
LOCK = "hashtextextended('register/' || %s, 0)"
PASSING = {Fault.CONTENTION, Fault.ENVIRONMENT}


def at_once(*steps):
    """Start every step at the same moment, each in a thread; return what each returned."""
    gate = Barrier(len(steps))

    def start(step):
        gate.wait(DEADLINE_S)
        return step()

    with ThreadPoolExecutor(len(steps)) as crowd:
        started = [crowd.submit(start, step) for step in steps]
        return [each.result(DEADLINE_S) for each in started]


def persist(step):
    """Take a step again while its error may pass, as the task does."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            return step()
        except Exception as error:
            if fault(error) not in PASSING or time.monotonic() > end:
                raise
        time.sleep(0.01)


def until(condition):
    """Wait for a condition; return what it gave."""
    end = time.monotonic() + DEADLINE_S
    while not (met := condition()):
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.002)
    return met


@contextmanager
def registration_held(pool, batch_id):
    """Hold the lock that registering a batch, and parking for it, waits for."""
    with pool.connection() as holder:
        holder.execute(f"SELECT pg_advisory_lock({LOCK})", [batch_id])
        try:
            yield
        finally:
            holder.execute(f"SELECT pg_advisory_unlock({LOCK})", [batch_id])


def waiting_to_register(conn, batch_id):
    """Count the sessions that wait for a batch's registration lock."""
    row = conn.execute(
        "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        f" AND ((classid::bigint << 32) | objid::bigint) = {LOCK}",
        [batch_id],
    ).fetchone()
    return row["n"]


def blocked_by(conn, pid):
    """Tell whether somebody waits for a lock that this session holds."""
    row = conn.execute(
        "SELECT count(*) AS n FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))", [pid]
    ).fetchone()
    return row["n"] > 0
