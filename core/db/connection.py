"""Connections to Postgres: each wait has an end, also for a server that has fallen silent."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, LiteralString, TypeVar

import psycopg
from psycopg import Connection
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.errors import _WaitTimeout
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from core.crash import crashpoint
from core.db.moments import CONTEXT
from core.db.url import SESSION, conninfo

Conn = Connection[DictRow]
Row = Mapping[str, Any]  # Any: a value as Postgres has it
RV = TypeVar("RV")

POOL_TIMEOUT_S = 10.0  # a pool that has no connection free for so long blames the server
RECONNECT_S = 5.0  # then a pool stops connecting, until somebody asks again
POLL_S = 0.1  # how often psycopg lets Ctrl-C through while it waits
WORKING = "active", "fastpath function call"  # states of a session that runs a statement

OPTIONS: dict[str, Any] = {  # Any: keyword arguments of psycopg
    "autocommit": True,
    "row_factory": dict_row,
    "prepare_threshold": 1,
    "context": CONTEXT,
}
BY_KEY = "-c enable_seqscan=off -c jit=off"


class WatchedConnection(Connection[DictRow]):
    """A connection that gives up on a server that has fallen silent.

    A proxy that swallows packets, or a frozen server, still acknowledges them in TCP. So after
    `silent_s` without an answer a second connection asks the server whether it works on our
    statement. A statement that answers earlier costs nothing more.

    Not covered: one frozen session of a healthy server looks as if it worked.
    """

    silent_s: ClassVar[float] = 10
    again_s: ClassVar[float] = 2  # between two questions; two bad answers in a row are enough

    def wait(self, gen: PQGen[RV], interval: float = POLL_S, timeout: float | None = None) -> RV:
        """Wait for the server. Raises OperationalError when it no longer works for us."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        patience, failed = self.silent_s, 0
        while True:
            try:
                return super().wait(gen, interval, patience)
            except _WaitTimeout:
                why = self._silence()
            failed = failed + 1 if why else 0
            patience = self.again_s if why else self.silent_s
            if failed > 1:
                self.pgconn.finish()
                raise psycopg.OperationalError(f"the connection is silent: {why}")

    def _silence(self) -> str | None:
        """Ask over another connection why ours is silent; None: the server works, or may work."""
        own = {o.keyword.decode(): o.val.decode() for o in self.pgconn.info if o.val}
        asked = make_conninfo(**own | {"connect_timeout": str(max(2, int(self.silent_s / 2)))})
        try:
            with _Asking.connect(asked, autocommit=True) as other:
                return _state_of(other, self.pgconn.backend_pid)
        except psycopg.Error as error:
            # A refusal, such as too many connections, is an answer.
            return None if error.sqlstate else f"the server does not answer another one: {error}"


class WatchedBriefly(WatchedConnection):
    """A watched connection for a page that somebody waits for."""

    silent_s = 3
    again_s = 1


class _Asking(Connection[Any]):  # Any: rows as they come
    """A connection for one short question."""

    def wait(self, gen: PQGen[RV], interval: float = POLL_S, timeout: float | None = None) -> RV:
        """Wait for a few seconds. Raises OperationalError."""
        try:
            return super().wait(gen, interval, timeout or 3)
        except _WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError("no answer within 3 s") from None


def _state_of(asking: Connection[Any], pid: int) -> str | None:  # Any: rows as they come
    """Say why the server does not work for session `pid`; None: it works, or may work."""
    row = asking.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
    if row is None:
        own = asking.execute("SELECT pg_backend_pid()").fetchone()
        pooled = own is None or own[0] != asking.pgconn.backend_pid
        return None if pooled else "the server has ended its session"  # a pooler's ids are its own
    if row[0] is None or row[0] in WORKING:
        return None
    return f"for the server it is {row[0]}: the statement or its answer was lost on the way"


def connect(
    url: str, *, size: int = 4, checked: bool = False, by_key: bool = False
) -> "ConnectionPool[Conn]":
    """Make a pool of at most `size` autocommitting connections, opened when first used.

    `checked` tests a connection before it lends it: one round trip more, and no error after a
    restart of Postgres. `by_key` makes the planner look rows up by a key: its statistics do not
    have the newest rows yet, so it may take a table for one that is small enough to read through.
    Raises BadSettings for a malformed URL.
    """
    return ConnectionPool(
        conninfo(url, f"{SESSION} {BY_KEY}" if by_key else SESSION),
        connection_class=WatchedBriefly if checked else WatchedConnection,
        kwargs=OPTIONS,
        min_size=0,
        max_size=size,
        timeout=POOL_TIMEOUT_S,
        reconnect_timeout=RECONNECT_S,
        check=ConnectionPool.check_connection if checked else None,
        open=True,
    )


def connect_once(url: str) -> Conn:
    """Open one autocommitting connection, for a command.

    Raises psycopg.OperationalError, and BadSettings for a malformed URL.
    """
    return WatchedConnection.connect(conninfo(url), **OPTIONS)


@contextmanager
def transaction(pool: "ConnectionPool[Conn]") -> Iterator[Conn]:
    with pool.connection() as conn, conn.transaction():
        yield conn
        crashpoint("before_commit")


def sql(name: str) -> LiteralString:
    """Read a statement of `core/db/sql/`, which is part of the program, so a literal."""
    return (Path(__file__).parent / "sql" / f"{name}.sql").read_text()


def named_sql(name: str, mark: str) -> dict[str, LiteralString]:
    """Read the statements of a file by the names that follow `mark` at the head of each."""
    sections = (section.partition("\n") for section in sql(name).split(mark)[1:])
    return {title: statement for title, _, statement in sections}


def jsonb(value: object) -> Jsonb | None:
    """Wrap a value for a jsonb column; None stays NULL."""
    return None if value is None else Jsonb(value)


def connect_to_migrate(url: str) -> "Connection[Any]":  # Any: rows as SQLAlchemy wants them
    """Open a connection for a migration: its statements may take long."""
    return psycopg.connect(conninfo(url, "-c timezone=UTC"))
