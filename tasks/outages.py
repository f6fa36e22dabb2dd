"""While a server refuses, a process waits with its message, says so, and goes on by itself.

A probe decides. If it fails, a server is in trouble, and the process waits, for hours if need be.
If it succeeds, the servers are well, and the error belongs to this message, which gets a few tries.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from random import uniform
from socket import gethostname
from typing import TypeVar

import psycopg
import structlog
from celery.exceptions import Reject
from redis import RedisError

from core import db, metrics
from core.db.connection import Conn, end_read_only_session
from core.errors import StackError
from core.faults import Fault, fault, sqlstate
from core.probe import probe_postgres, probe_redis
from core.servers.postgres import missing_for_work
from core.servers.rights import NO_RIGHT
from core.signs import pauses
from core.signs.pauses import Outage, Pause
from core.slots import Slots
from tasks.app import settings
from tasks.resources import resources
from tasks.worker.clients import brief_redis
from tasks.worker.waiting import sleep

FIRST_PROBE_S, LONGEST_PROBE_S = 1.0, 10.0
NO_ROOM = ("53", "58")  # classes of SQLSTATE: insufficient resources, an error of the system
READ_ONLY = "25006"
PROBE_BYTES = 64 * 1024  # written after such an error: more than one page

T = TypeVar("T")
log = structlog.get_logger(__name__)


def run_tick(step: Callable[[], T], otherwise: T) -> T:
    """Run a task of beat's; if a server refuses, wait, and leave the work to the next tick."""
    try:
        return step()
    except Exception as error:
        if fault(error) not in {Fault.ENVIRONMENT, Fault.CONTENTION}:
            raise
        log.warning("left_to_the_next_tick", error=type(error).__name__, sqlstate=sqlstate(error))
        wait_until_well(error)
        resources().pool.drain()
        return otherwise


def wait_until_well(error: Exception) -> bool:
    """Wait while a server refuses; False if none does.

    Raises Reject if the worker stops, or if the task runs in its caller's process.
    """
    state = sqlstate(error) or ""
    size = PROBE_BYTES if state.startswith(NO_ROOM) else 0
    look = partial(find_outage, size, rights=state == NO_RIGHT)
    outage = look()
    if outage is None:
        return False
    if settings.eager:
        raise Reject(StackError(f"{outage.server} refuses writes: {outage.error}")) from error
    pause = Pause(_process(), outage, datetime.now(UTC))
    metrics.paused(outage.server, outage.sqlstate)
    log.warning("paused", server=outage.server, error=outage.error, sqlstate=outage.sqlstate)
    try:
        wait = FIRST_PROBE_S
        while outage:
            pause = replace(pause, outage=outage)
            with suppress(RedisError):  # it may be the one that refuses
                pauses.write_pause(brief_redis(), pause)
            sleep(wait * uniform(0.5, 1))
            wait = min(2 * wait, LONGEST_PROBE_S)
            outage = look()
    finally:
        with suppress(RedisError):
            pauses.delete_pause(brief_redis(), pause.process)
    waited = datetime.now(UTC) - pause.since
    log.warning("resumed", server=pause.outage.server, paused_s=round(waited.total_seconds(), 1))
    return True


def find_outage(size: int, *, rights: bool) -> Outage | None:
    """Probe each server by new connections; return the first that refuses writes.

    `rights`: ask for each right, as the probe needs fewer than all messages together.
    """
    try:
        database_url, _ = settings.server_urls()
        with db.connect_once(database_url) as conn:
            outage = probe_postgres(conn, size=size) or (_missing_right(conn) if rights else None)
            if outage and outage.sqlstate == READ_ONLY:
                end_read_only_session(conn)
    except psycopg.Error as error:
        outage = Outage.of("postgres", error)
    return outage or probe_redis(Slots(brief_redis()))


def _missing_right(conn: Conn) -> Outage | None:
    finding = missing_for_work(conn)
    return Outage("postgres", finding.wrong, NO_RIGHT) if finding else None


def _process() -> str:
    return f"{gethostname()}:{os.getpid()}"
