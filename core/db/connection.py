"""Connections to Postgres: their settings are in force, and each wait has an end.

A connection of its own to the server is set once, at its start. Behind a pooler each transaction
begins with its settings, and a statement alone is sent together with them, in one round trip.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Literal, LiteralString, TypeVar
from uuid import uuid4

import psycopg
from psycopg import Connection, Cursor, generators
from psycopg.abc import PQGen
from psycopg.errors import (
    DuplicatePreparedStatement,
    FeatureNotSupported,
    ReadOnlySqlTransaction,
    _WaitTimeout,
)
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import DictRow, dict_row, tuple_row
from psycopg.sql import SQL, Identifier
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from core.crash import crashpoint
from core.db import session
from core.db.moments import CONTEXT
from core.db.silence import ANSWER_S, BUSY_S, POLL_S, Silence, beside
from core.errors import ELSError
from core.servers.postgres_url import address

Conn = Connection[DictRow]
Row = Mapping[str, Any]  # Any: a value as Postgres has it
RV = TypeVar("RV")
Prepare = Literal["auto", "on", "off"]

POOL_TIMEOUT_S = 10.0  # a pool that has no connection free for so long blames the server
RECONNECT_S = 5.0  # then a pool stops connecting, until somebody asks again
PREPARE_AFTER = 1  # executions
OPTIONS: dict[str, Any] = {  # Any: keyword arguments of psycopg
    "autocommit": True,
    "row_factory": dict_row,
    "prepare_threshold": PREPARE_AFTER,
    "context": CONTEXT,
}
BY_KEY = {"enable_seqscan": "off", "jit": "off"}
# A pooler keeps its session, which may be read-only for good: its role or its server was before.
END_READ_ONLY = """
    SELECT pg_terminate_backend(pg_backend_pid())
    WHERE current_setting('transaction_read_only')::boolean
"""
STALE = "cached plan must not change result type"  # says Postgres before it executes anything
NAMES_OF_PSYCOPG = "_pg3_"  # of prepared statements; a pooler that keeps them gives its own


class UnfitPooler(psycopg.OperationalError, ELSError):
    """With this pooler the service cannot be right: what it does, and the next step."""

    def __init__(self, wrong: str, step: str) -> None:
        super().__init__(f"{wrong}; {step}")
        self.wrong, self.step = wrong, step


class SettledConnection(Connection[Any]):  # Any: rows as their reader wants them
    """A connection whose settings are in force, whoever lends it a session of the server.

    `pooled`: a pooler does, for one transaction or longer. One that gives each statement to another
    session is refused: raises UnfitPooler.
    """

    pooled = False
    refuses_writes = False  # it has met a server that is read-only
    _begin = _together = b""  # what goes with BEGIN, and with a statement alone

    @classmethod
    def connect(  # type: ignore[override] # ours are two more keywords
        cls,
        conninfo: str = "",
        *,
        settings: Mapping[str, str],
        prepare: Prepare = "auto",
        autocommit: bool = False,
        **options: Any,  # Any: keyword arguments of psycopg
    ) -> "SettledConnection":
        """Connect and settle. Raises psycopg.OperationalError."""
        conn = super().connect(conninfo, autocommit=True, **options)
        try:
            conn._settle(settings, prepare)
            conn.autocommit = autocommit
        except BaseException as error:
            conn.close()
            refused = isinstance(error, psycopg.Error) and error.sqlstate
            if refused and not isinstance(error, psycopg.OperationalError):  # no message's fault
                raise psycopg.OperationalError(f"a setting is refused: {error}") from error
            raise
        return conn

    def execute(self, query: Any, *args: Any, **options: Any) -> Cursor[Any]:  # Any: as psycopg's
        """Execute a statement; alone behind a pooler, together with its settings."""
        alone = self.pgconn.transaction_status == TransactionStatus.IDLE and self.autocommit
        try:
            if not (self._together and query and alone):
                return super().execute(query, *args, **options)
            with self.pipeline():
                self._ask(self._together)
                return super().execute(query, *args, **options)
        except ReadOnlySqlTransaction:
            self.refuses_writes = True
            raise
        except FeatureNotSupported as error:  # somebody has altered a table of a prepared statement
            if not (alone and STALE in str(error)):
                raise
            self._prepared.clear()
            return super().execute(query, *args, **options)

    def _ask(self, query: Any, params: Any = None, **options: Any) -> Cursor[Any]:  # as psycopg's
        """Execute a statement of the connection's own, which no trace shows."""
        return Cursor(self, row_factory=tuple_row).execute(query, params, **options)

    def _settle(self, settings: Mapping[str, str], prepare: Prepare) -> None:
        wanted = session.columns(settings)
        own = self.pgconn.backend_pid
        row = self._ask(session.SETTLE, {**wanted, "pid": own}, prepare=False).fetchone()
        assert row is not None
        self.pooled = row[0] != own
        if prepare == "off":
            self.prepare_threshold = None
        if self.pooled:
            self._begin = session.set_local(settings).as_bytes(self)
            self._together = session.set_for_one(settings).as_bytes(self)
            self._check_pooler(wanted, prepare)

    def _check_pooler(self, wanted: Mapping[str, list[str]], prepare: Prepare) -> None:
        """Insist that a transaction has one session and our settings; prepare where they stay."""
        try:
            with self.transaction():
                first = self._ask("SELECT pg_backend_pid()", prepare=False).fetchone()
                rows = self._ask(session.IN_FORCE, wanted, prepare=False).fetchall()
        except psycopg.OperationalError as error:
            if "statement pooling mode" not in str(error):
                raise
            rows, first = [], None
        if first is None or any(pid != first[0] for pid, *_ in rows):
            raise UnfitPooler(
                "the pooler gives each statement of a transaction to another session",
                "set its pool_mode to transaction or session",
            )
        if lost := [each[0] for _, *each in rows if not session.same(*each)]:
            raise UnfitPooler(
                f"the pooler does not pass our {', '.join(lost)} on to the server",
                "let it pass SET LOCAL, or name the server itself in ELS_DATABASE_URL",
            )
        if prepare != "off" and not self._keeps_prepared():
            self.prepare_threshold = None
            if prepare == "on":
                self._prepare_in_session_mode()

    def _prepare_in_session_mode(self) -> None:
        """Prepare although the pooler does not, unless another connection gets our session."""
        if self._is_shared():
            raise UnfitPooler(
                "the pooler lends one session to many, and loses prepared statements",
                "set ELS_DATABASE_PREPARE to auto; or run PgBouncer 1.21 or newer"
                " with max_prepared_statements above 0",
            )
        self.prepare_threshold = PREPARE_AFTER

    def _is_shared(self) -> bool:
        """Try whether another connection gets the session that was last ours; it mostly would."""
        last = self._ask("SELECT pg_backend_pid()", prepare=False).fetchone()
        with suppress(psycopg.Error), beside(self.pgconn, ANSWER_S) as other, other.transaction():
            return other.execute("SELECT pg_backend_pid()").fetchone() == last
        return False

    def _keeps_prepared(self) -> bool:
        """Prepare a statement; see whether the pooler names it itself, to find it everywhere."""
        mark = f"SELECT 'els {uuid4().hex}'"
        try:
            with self.transaction():
                self._ask(mark, prepare=True)
                found = self._ask(
                    "SELECT name FROM pg_prepared_statements WHERE statement = %s",
                    [mark],
                    prepare=False,
                ).fetchone()
                ours = bool(found and found[0].startswith(NAMES_OF_PSYCOPG))
                if found and ours:
                    self._ask(SQL("DEALLOCATE {}").format(Identifier(found[0])), prepare=False)
        except DuplicatePreparedStatement:
            return False  # another connection has left one of this name there
        return found is not None and not ours

    def _exec_command(self, command: Any, *more: Any) -> Any:  # Any: as psycopg's
        """Begin a transaction with its settings, by one round trip."""
        if not (self._begin and isinstance(command, bytes) and command.startswith(b"BEGIN")):
            return (yield from super()._exec_command(command, *more))
        self.pgconn.send_query(b"%s; %s" % (command, self._begin))
        results = yield from generators.execute(self.pgconn)
        for result in results:
            if result.status != ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result, encoding=self.pgconn._encoding)
        return results[0]

    def _deallocate(self, name: bytes | None) -> Any:  # Any: as psycopg's
        """Leave prepared statements to the pooler: the server's are not this connection's."""
        if not self.pooled:
            yield from super()._deallocate(name)


class WatchedConnection(SettledConnection):
    """A connection that gives up on a server that has fallen silent.

    A proxy that swallows packets, or a frozen server, still acknowledges them in TCP. So after
    `silent_s` without an answer a second connection asks the server whether it works on our
    statement. A statement that answers earlier costs nothing more.
    """

    silent_s: ClassVar[float] = 10
    again_s: ClassVar[float] = 2  # between two questions; two bad answers in a row are enough
    busy_s: ClassVar[float] = BUSY_S  # that a pooler may have no session for us

    def wait(self, gen: PQGen[RV], interval: float = POLL_S, timeout: float | None = None) -> RV:
        """Wait for the server. Raises OperationalError when it no longer works for us."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        silence = Silence(self.pgconn, self.pooled, self.busy_s)
        patience, failed = self.silent_s, 0
        while True:
            try:
                return super().wait(gen, interval, patience)
            except _WaitTimeout:
                why = silence.reason(self.silent_s)
            failed = failed + 1 if why else 0
            patience = self.again_s if why else self.silent_s
            if failed > 1:
                self.pgconn.finish()
                raise psycopg.OperationalError(f"the connection is silent: {why}")


def end_read_only_session(conn: Any) -> None:  # Any: as the pool types its connections
    """Have a pooler open another session in place of one that is read-only."""
    if conn.pooled:
        with suppress(psycopg.Error):
            conn._ask(END_READ_ONLY, prepare=False)


def _leave_read_only(conn: Any) -> None:  # Any: as the pool types its connections
    """Have a pool give up a connection to a read-only server: a new one may find the primary."""
    if conn.refuses_writes:
        end_read_only_session(conn)
        raise psycopg.OperationalError("the server takes no writes; connecting again")


def connect(
    url: str, *, size: int = 4, by_key: bool = False, prepare: Prepare = "auto"
) -> "ConnectionPool[Conn]":
    """Make a pool of at most `size` autocommitting connections, opened when first used.

    `by_key` makes the planner look rows up by a key: its statistics do not have the newest rows
    yet, so it may take a table for one that is small enough to read through. Raises BadSettings for
    a malformed URL.
    """
    at = address(url)
    settings = {**BY_KEY, **at.settings} if by_key else at.settings
    return pool_of(WatchedConnection, at.conninfo, settings, prepare, max_size=size)


def pool_of(
    kind: type[WatchedConnection],
    conninfo: str,
    settings: Mapping[str, str],
    prepare: Prepare,
    **options: Any,  # Any: of psycopg's pool
) -> "ConnectionPool[Conn]":
    return ConnectionPool(
        conninfo,
        connection_class=kind,
        kwargs=OPTIONS | {"settings": settings, "prepare": prepare},
        min_size=0,
        timeout=POOL_TIMEOUT_S,
        reconnect_timeout=RECONNECT_S,
        reset=_leave_read_only,
        open=True,
        **options,
    )


def connect_once(url: str, *, prepare: Prepare = "auto") -> Conn:
    """Open one autocommitting connection, for a command.

    Raises psycopg.OperationalError, and BadSettings for a malformed URL.
    """
    at = address(url)
    return WatchedConnection.connect(at.conninfo, settings=at.settings, prepare=prepare, **OPTIONS)


@contextmanager
def transaction(pool: "ConnectionPool[Conn]") -> Iterator[Conn]:
    with pool.connection() as conn, conn.transaction():
        yield conn
        crashpoint("before_commit")


def sql(name: str) -> LiteralString:
    """Read a statement of `core/db/sql/`, which is part of the program, so a literal."""
    return (Path(__file__).parent / "sql" / f"{name}.sql").read_text()


def statements(text: LiteralString, mark: LiteralString) -> dict[str, LiteralString]:
    """Split a file of statements; each has its name behind `mark` in a line above it."""
    sections = (section.partition("\n") for section in text.split(mark)[1:])
    return {name: statement for name, _, statement in sections}


def jsonb(value: object) -> Jsonb | None:
    """Wrap a value for a jsonb column; None stays NULL."""
    return None if value is None else Jsonb(value)
