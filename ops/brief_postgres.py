"""Connections to Postgres for whoever waits for an answer: each gives up within seconds."""

from psycopg_pool import ConnectionPool

from core.db.connection import (
    OPTIONS,
    Conn,
    Prepare,
    SettledConnection,
    WatchedConnection,
    pool_of,
)
from core.db.silence import Impatient
from core.servers.postgres_url import address

BRIEF = {"statement_timeout": "1800", "lock_timeout": "300"}  # ms
CONNECT_S = {"connect_timeout": 2}  # libpq knows no shorter one


class BriefConnection(Impatient, SettledConnection):
    """A connection for an answer within seconds."""

    answer_s = 2


class WatchedBriefly(WatchedConnection):
    """A watched connection for a page that somebody waits for."""

    silent_s = 3
    again_s = 1
    busy_s = 5


def pool_for_pages(
    url: str, *, size: int = 4, prepare: Prepare = "auto", writes: bool = True
) -> "ConnectionPool[Conn]":
    """Make a pool for pages, opened when first used.

    It tests a connection before it lends it: one round trip more, and no error after a restart of
    Postgres. `writes` False: among several hosts any will do. Raises BadSettings for a malformed
    URL.
    """
    at = address(url, writes=writes)
    check = ConnectionPool.check_connection
    return pool_of(WatchedBriefly, at.conninfo, at.settings, prepare, max_size=size, check=check)


def connect_briefly(url: str, *, prepare: Prepare = "auto") -> Conn:
    """Open one connection for an answer within seconds, whatever is locked.

    Raises psycopg.OperationalError, and BadSettings for a malformed URL.
    """
    at = address(url)
    settings = {**at.settings, **BRIEF}
    return BriefConnection.connect(
        at.conninfo, settings=settings, prepare=prepare, **OPTIONS | CONNECT_S
    )
