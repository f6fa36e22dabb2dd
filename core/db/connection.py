"""Connections to Postgres: whatever the URL says wins, and no wait is without an end.

`libpq` reads the URL, for the service and for the migrations alike, so both see the same schema.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, LiteralString, TypeVar
from urllib.parse import quote, unquote

import psycopg
from psycopg import Connection
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import _WaitTimeout
from psycopg.pq import Conninfo
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from core.crash import crashpoint
from core.db.moments import CONTEXT
from core.errors import BadSettings

Conn = Connection[DictRow]
Row = Mapping[str, Any]  # Any: a value as Postgres has it
RV = TypeVar("RV")

POOL_TIMEOUT_S = 10.0  # a pool without a free connection this long is an error of the server's
RECONNECT_S = 5.0  # after so long a pool gives up connecting, until somebody asks again
STATEMENT_TIMEOUT_MS = 60_000  # registering 100 000 slots takes a few seconds
LOCK_TIMEOUT_MS = 10_000  # below the statement's, so that a lock is reported as a lock (55P03)
POLL_S = 0.1  # how often psycopg lets Ctrl-C through while it waits
WORKING = "active", "fastpath function call"  # of a session whose statement is under way

# A peer that is gone without a word is noticed by the kernel within 20 s, in use or not.
OURS: Mapping[str, Any] = {  # Any: parameters of libpq
    "application_name": "els",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,  # ms
}
SESSION = (
    f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS} -c timezone=UTC"
)
OPTIONS: dict[str, Any] = {  # Any: keyword arguments of psycopg
    "autocommit": True,
    "row_factory": dict_row,
    "prepare_threshold": 1,
    "context": CONTEXT,
}
BY_KEY = "-c enable_seqscan=off -c jit=off"
URL = re.compile(r"(\w+)(?:\+\w+)?(://(?:[^@/]*@)?[^?]*)(?:\?(.*))?", re.DOTALL)  # as libpq cuts it


class WatchedConnection(Connection[DictRow]):
    """A connection that does not wait for ever for a server that has fallen silent.

    A proxy that swallows, or a frozen server, still acknowledges at the level of TCP. So after
    `silent_s` without an answer another connection asks the server whether it is at work on this
    statement. A statement that answers earlier costs nothing more.

    Not covered: one frozen session of a server that is well looks as if it were at work.
    """

    silent_s: ClassVar[float] = 10
    again_s: ClassVar[float] = 2  # between two looks; two that fail in a row are enough

    def wait(self, gen: PQGen[RV], interval: float = POLL_S, timeout: float | None = None) -> RV:
        """Wait for the server. Raises OperationalError when it is no longer at work for us."""
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
        """Ask over another connection why ours is silent; None: the server works, or may do so."""
        own = {o.keyword.decode(): o.val.decode() for o in self.pgconn.info if o.val}
        asked = make_conninfo(**own | {"connect_timeout": str(max(2, int(self.silent_s / 2)))})
        try:
            with _Asking.connect(asked, autocommit=True) as other:
                return _state_of(other, self.pgconn.backend_pid)
        except psycopg.Error as error:
            # A refusal is an answer: too many connections, starting up.
            return None if error.sqlstate else f"the server does not answer another one: {error}"


class WatchedBriefly(WatchedConnection):
    """A watched connection for those who wait for a page."""

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
    """Say why the server does not work on what session `pid` asked; None if it does, or may."""
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
    """Make a pool of autocommitting connections; `size` bounds it. It connects when first used.

    `checked` asks a connection for a sign of life before it is lent: a round trip more, and no
    error after a restart of Postgres. `by_key` has rows looked up by a key wherever that is
    possible: the planner, whose statistics are older than what has just been written, may believe
    that a table is small enough to be read as a whole. Raises BadSettings for a malformed URL.
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
    """Lend a connection inside one transaction."""
    with pool.connection() as conn, conn.transaction():
        yield conn
        crashpoint("before_commit")


def sql(name: str) -> LiteralString:
    """Read a statement of `core/db/sql/`; these files are part of the program, so literals."""
    return (Path(__file__).parent / "sql" / f"{name}.sql").read_text()


def named_sql(name: str, mark: str) -> dict[str, LiteralString]:
    """Read the statements of a file by the names that follow `mark` at the head of each."""
    sections = (section.partition("\n") for section in sql(name).split(mark)[1:])
    return {title: statement for title, _, statement in sections}


def jsonb(value: object) -> Jsonb | None:
    """Wrap a JSON value for a jsonb column; None stays NULL."""
    return None if value is None else Jsonb(value)


def connect_to_migrate(url: str) -> "Connection[Any]":  # Any: rows as SQLAlchemy wants them
    """Open a connection for a migration, whose statements may take long."""
    return psycopg.connect(conninfo(url, "-c timezone=UTC"))


def conninfo(url: str, session: str = SESSION) -> str:
    """Write a URL as `libpq` takes it, with our parameters where it leaves them open.

    `session` are options of ours; of two that set the same, Postgres takes the last, which is the
    URL's. What a service file or PGOPTIONS says counts as the URL's. Raises BadSettings.
    """
    given = parameters(url)
    told = _defaults(given.get("service")) | given
    ours = {name: value for name, value in OURS.items() if name not in told}
    return make_conninfo(**given | ours | {"options": f"{session} {told.get('options', '')}"})


def parameters(url: str) -> dict[str, Any]:  # Any: strings; so psycopg types them
    """Read what a URL says. Raises BadSettings that names the fault, and no password."""
    try:
        return dict(conninfo_to_dict(_for_libpq(url)))
    except psycopg.ProgrammingError as error:
        _, _, query = url.partition("?")
        reason = re.sub(
            r'"([^"]*)"', lambda told: told[0] if told[1] in query else '"…"', str(error).strip()
        )
        raise BadSettings(
            f"the database's URL cannot be read: {reason};"
            " ELS_DATABASE_URL is written postgresql://user:password@host:5432/name"
        ) from error


def _for_libpq(url: str) -> str:
    """Translate what SQLAlchemy reads and libpq does not.

    A driver's name, several hosts with their ports, a "=" in a value, "+" for a space in options.
    """
    found = URL.fullmatch(url)
    if not found:
        return url  # host=… dbname=…
    scheme, base, query = found.groups()
    pairs = [pair.partition("=")[::2] for pair in (query or "").split("&") if pair]
    values = [(name, unquote(_spaced(name, value))) for name, value in pairs]
    values = [*_hosts(values), *((name, value) for name, value in values if name != "host")]
    written = "&".join(f"{name}={quote(value, safe='')}" for name, value in values)
    return f"{scheme}{base}?{written}" if written else f"{scheme}{base}"


def _spaced(name: str, value: str) -> str:
    """Read "+" as a space where an option begins or ends with it."""
    if name != "options":
        return value
    return value.replace("-c+", "-c ").replace("+-", " -").strip("+")


def _hosts(values: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Write hosts, each with a port of its own or not, as libpq's two lists."""
    hosts = [each for name, value in values if name == "host" for each in value.split(",")]
    ports = [each for name, value in values if name == "port" for each in value.split(",")]
    cut = [re.fullmatch(r"\[?([^/]*?)\]?:(\d+)", host) for host in hosts]
    if not hosts:
        return []
    if not any(cut):
        return [("host", ",".join(hosts))]
    named = [found[1] if found else host for found, host in zip(cut, hosts, strict=True)]
    default = ports[0] if len(ports) == 1 else ""
    return [
        ("host", ",".join(named)),
        ("port", ",".join(found[2] if found else default for found in cut)),
    ]


def _defaults(service: str | None) -> dict[str, str]:
    """Read what a service file and libpq's own variables say, as libpq does."""
    before = os.environ.get("PGSERVICE")
    try:
        if service:
            os.environ["PGSERVICE"] = service  # libpq looks it up by this name alone
        options = Conninfo.get_defaults()
    finally:
        if service and before is None:
            del os.environ["PGSERVICE"]
        elif before is not None:
            os.environ["PGSERVICE"] = before
    return {each.keyword.decode(): each.val.decode() for each in options if each.val}
