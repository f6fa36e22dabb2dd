"""Servers that are up and refuse: each a context, at whose end the server serves again.

Of Postgres they take the URL of its owner, of Redis a client that may reconfigure it.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import redis
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from core.db.connection import Conn
from core.errors import StackError
from core.servers.postgres_url import address
from core.servers.rights import OF_MESSAGES
from ops.stack.ports import LOOPBACK, free_port
from ops.stack.server import until

# What an owner sets for itself: writes pass while others are read-only, and no lock is waited for
# so long that everybody waits behind it.
OWNER = "-c default_transaction_read_only=off -c idle_session_timeout=0 -c lock_timeout=2s"
INSIST_S = 60  # how long the end of a refusal is tried for
OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
REFUSE = """
CREATE OR REPLACE FUNCTION torture_refuses() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = TG_ARGV[0], MESSAGE = 'refused on purpose';
END $$
"""


@contextmanager
def owner(url: str) -> Iterator[Conn]:
    """Connect as the owner, whom none of these refusals concerns."""
    with psycopg.Connection[DictRow].connect(
        address(url).conninfo,
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=5,
        options=OWNER,
    ) as conn:
        yield conn


def insist(step: Callable[[], object], passing: tuple[type[Exception], ...]) -> None:
    """Take a step until the server lets it be taken. Raises StackError after a minute."""
    deadline = time.monotonic() + INSIST_S
    while True:
        try:
            step()
        except passing as error:
            if time.monotonic() > deadline:
                raise StackError(f"a fault could not be begun or ended: {error}") from error
            time.sleep(0.2)
        else:
            return


def _own(url: str, *statements: LiteralString | sql.Composed) -> None:
    """Run these statements as the owner, in one transaction, until they succeed."""

    def run() -> None:
        with owner(url) as conn, conn.transaction():
            for statement in statements:
                conn.execute(statement)

    insist(run, (psycopg.Error,))


# --- Postgres ----------------------------------------------------------------------------------


def _database(conn: Conn) -> sql.Identifier:
    return sql.Identifier(conn.info.dbname)


def _configure(url: str, name: LiteralString, value: str | None) -> None:
    """Set a parameter for the sessions to come of this database; None: reset it."""

    def run() -> None:
        with owner(url) as conn:
            database, parameter = _database(conn), sql.Identifier(name)
            if value is None:
                change = sql.SQL("ALTER DATABASE {} RESET {}").format(database, parameter)
            else:
                change = sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                    database, parameter, sql.Literal(value)
                )
            conn.execute(change)

    insist(run, (psycopg.Error,))


def end_sessions(url: str) -> None:
    """End the sessions of everybody else."""
    _own(url, OTHERS)


@contextmanager
def read_only(url: str, *, sessions_stay: bool = False) -> Iterator[None]:
    """Refuse writes with 25006, as a demoted primary does.

    `sessions_stay`: those of the time in between stay read-only for as long as they live.
    """
    _configure(url, "default_transaction_read_only", "on")
    try:
        end_sessions(url)
        yield
    finally:
        _configure(url, "default_transaction_read_only", None)
        if not sessions_stay:
            end_sessions(url)


@contextmanager
def idle_sessions_ended(url: str) -> Iterator[None]:
    """End each session that is idle for half a second, and at first those that are now."""
    _configure(url, "idle_session_timeout", "500ms")
    try:
        end_sessions(url)
        yield
    finally:
        _configure(url, "idle_session_timeout", None)
        end_sessions(url)


@contextmanager
def raising(
    url: str, sqlstate: str, tables: Sequence[str] = OF_MESSAGES, batch_id: str | None = None
) -> Iterator[None]:
    """Raise this SQLSTATE for each write into these tables, or for rows of one batch only."""
    each = sql.SQL("STATEMENT") if batch_id is None else sql.SQL("ROW WHEN (NEW.batch_id = {})")
    events = sql.SQL("INSERT OR UPDATE OR DELETE" if batch_id is None else "INSERT OR UPDATE")
    parts = {"events": events, "each": each.format(sql.Literal(batch_id))}
    create = sql.SQL(
        "CREATE TRIGGER torture_refuses BEFORE {events} ON {table}"
        " FOR EACH {each} EXECUTE FUNCTION torture_refuses({state})"
    )
    drop = sql.SQL("DROP TRIGGER IF EXISTS torture_refuses ON {}")
    state = sql.Literal(sqlstate)
    _own(
        url,
        REFUSE,
        *(create.format(table=sql.Identifier(t), state=state, **parts) for t in tables),
    )
    try:
        yield
    finally:
        _own(url, *(drop.format(sql.Identifier(table)) for table in tables))


@contextmanager
def locked(url: str, table: str = "essay_states") -> Iterator[Conn]:
    """Lock a table against readers and writers."""
    lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table))
    with owner(url) as conn:
        conn.execute("SET lock_timeout = '20s'")
        with conn.transaction():
            conn.execute(lock)
            yield conn


def cancel_statements(url: str) -> int:
    """Cancel the statements of others that run or wait just now; return how many."""
    with owner(url) as conn:
        return conn.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND state = 'active'"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).rowcount


# --- Redis -------------------------------------------------------------------------------------

Client = redis.Redis
AnyValue = Any  # Any: as redis-py types an answer


@contextmanager
def replica(client: Client) -> Iterator[None]:
    """Make it the replica of a server that is away: READONLY."""
    client.replicaof(LOOPBACK, free_port())
    try:
        yield
    finally:
        _end(client, lambda: client.replicaof("NO", "ONE"))


@contextmanager
def out_of_memory(client: Client) -> Iterator[None]:
    """Leave it no memory for writes: OOM."""
    with _configured(client, "maxmemory", "1", "0"):
        yield


@contextmanager
def without_replicas(client: Client) -> Iterator[None]:
    """Have it ask for a replica that there is not: NOREPLICAS."""
    with _configured(client, "min-replicas-to-write", "1", "0"):
        yield


@contextmanager
def snapshots_failing(client: Client) -> Iterator[None]:
    """Have it fail to save itself, at which it refuses writes: MISCONF.

    A folder stands where its file should.
    """
    config: AnyValue = client.config_get("d*")
    obstacle = Path(config["dir"]) / config["dbfilename"]
    obstacle.mkdir()
    try:
        with _configured(client, "save", "3600 1", ""):
            insist(client.bgsave, (redis.ResponseError,))  # a rewrite of the other file may run
            if not until(lambda: _last_save(client) == "err", 10):
                raise StackError("a snapshot succeeded that was to fail")
            yield
    finally:
        obstacle.rmdir()


def _last_save(client: Client) -> str:
    state: AnyValue = client.info("persistence")
    return str(state["rdb_last_bgsave_status"])


@contextmanager
def _configured(client: Client, name: str, value: str, before: str) -> Iterator[None]:
    client.config_set(name, value)
    try:
        yield
    finally:
        _end(client, lambda: client.config_set(name, before))


def _end(client: Client, step: Callable[[], object]) -> None:
    insist(step, (redis.RedisError,))


# --- processes ---------------------------------------------------------------------------------


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process and its children, as a machine that swaps or a debugger does."""
    stopped = [pid, *_children(pid)]
    _signal(stopped, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(stopped, signal.SIGCONT)


def _children(pid: int) -> list[int]:
    with suppress(OSError):  # no such file where this is not Linux
        found = (task / "children" for task in Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for path in found for child in path.read_text().split()]
    return []


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
