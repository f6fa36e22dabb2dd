"""One migration at a time, patient with whoever holds a lock, and with a line about each wait.

A second connection holds an advisory lock in a transaction for as long as the migration takes: that
works through a pooler as well, and outside of the transactions of the migration, where indexes are
built. It asks nothing meanwhile: building an index concurrently waits for the end of every
transaction that it finds inside a statement. So a third connection watches, a transaction a
statement, and says who is in the way.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import ClientCursor, Connection, errors
from psycopg.rows import dict_row
from sqlalchemy.exc import DBAPIError

from core.attempt import Attempt
from core.db.connection import SettledConnection
from core.errors import ELSError
from core.servers.postgres_url import address

MIGRATION_LOCK = 7_203_115_554  # any number; 1.0.0 takes it too
PATIENCE_S = 600.0  # for locks that others hold, in all
LOCK_TIMEOUT_S = 2.0  # of one attempt: writers queue behind a migration that waits for its lock
AGAIN_S, LONGEST_S = 1.0, 15.0  # between two attempts; it doubles
TURN_POLL_S = 0.5
WATCH_S = 0.5  # between two looks at who is in the way
REPEAT_S = 15.0  # before the same line comes again
SETTINGS = {"timezone": "UTC"}  # of a session; its statements may take long
BLOCKED = (errors.LockNotAvailable, errors.DeadlockDetected)

UNHURRIED = """
    SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN
        ('idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')
"""
# Everything that this migration's session, or a build of an index here, waits for.
IN_THE_WAY = """
    WITH waiting AS (
        SELECT %(pid)s::int AS pid
        UNION SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database()
    )
    SELECT DISTINCT blocker.pid, usename AS "user", application_name AS program,
           host(client_addr) AS host, state, xact_start AS since,
           (SELECT relation::regclass::text FROM pg_locks
            WHERE pid = waiting.pid AND NOT granted AND relation IS NOT NULL LIMIT 1) AS relation
    FROM waiting CROSS JOIN unnest(pg_blocking_pids(waiting.pid)) AS blocker (pid)
    LEFT JOIN pg_stat_activity AS session ON session.pid = blocker.pid
    ORDER BY since
"""
PROGRESS = """
    SELECT index_relid::regclass::text AS name, relid::regclass::text AS relation, phase,
           round(100.0 * coalesce(tuples_done / nullif(tuples_total, 0)::numeric,
                                  blocks_done / nullif(blocks_total, 0)::numeric)) AS part
    FROM pg_stat_progress_create_index WHERE datname = current_database()
"""
HOLDER = """
    SELECT session.pid, usename AS "user", application_name AS program, host(client_addr) AS host,
           state, xact_start AS since
    FROM pg_locks JOIN pg_stat_activity AS session USING (pid)
    WHERE locktype = 'advisory' AND granted
      AND classid = %(lock)s::bigint >> 32 AND objid = %(lock)s::bigint & 4294967295
      AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def connect(url: str, *, autocommit: bool = False) -> Connection[Any]:  # Any: as SQLAlchemy wants
    """Open a connection as the service does; how long its statements take is unlimited."""
    at = address(url, SETTINGS)
    return SettledConnection.connect(
        at.conninfo, settings=at.settings, prepare="off", autocommit=autocommit
    )


class MigrationBlocked(ELSError):
    """Somebody held a lock for too long. What was done by then stays; run it again."""


@dataclass
class Turn:
    """The right to migrate, as a context manager; waits while another process has it."""

    url: str
    say: Callable[[str], object]
    patience_s: float = PATIENCE_S
    pid: int = 0  # of the session that migrates
    in_the_way: str = ""  # who was seen last
    _said: dict[str, float] = field(default_factory=dict)
    _progress_at: float = field(default_factory=time.monotonic)
    _ended: Event = field(default_factory=Event)

    def __enter__(self) -> Self:
        self._holder = connect(self.url)
        try:
            self._wait_for_turn()
            self._looker = connect(self.url, autocommit=True)
        except BaseException:
            self._holder.close()
            raise
        self._watcher = Thread(target=self._watch, name="migration", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._watcher.join()
        self._looker.close()
        self._holder.close()

    def check(self) -> None:
        """Make sure that the turn is still ours. Raises psycopg.OperationalError."""
        self._ask(self._holder, "SELECT 1")

    def note(self, line: str) -> None:
        """Say a line, unless it was said a moment ago."""
        now = time.monotonic()
        if now - self._said.get(line, float("-inf")) >= REPEAT_S:
            self._said[line] = now
            self.say(line)

    def _wait_for_turn(self) -> None:
        while True:
            [row] = self._ask(self._holder, "SELECT pg_try_advisory_xact_lock(%(lock)s) AS ours")
            if row["ours"]:
                self._ask(self._holder, UNHURRIED)
                return
            holders = self._ask(self._holder, HOLDER)
            self._holder.rollback()
            for holder in holders:
                self.note(f"another migration runs: {_session(holder)}; waiting for its end")
            time.sleep(TURN_POLL_S)

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_S):
            try:
                self._look()
            except psycopg.Error:
                return  # `check` raises it where somebody can act

    def _look(self) -> None:
        found = self._ask(self._looker, IN_THE_WAY)
        for row in found:
            relation = f" on {row['relation']}" if row["relation"] else ""
            self.in_the_way = f"{_session(row)}; let it end, or: {_end(row)}"
            self.note(f"the migration waits for a lock{relation}: {self.in_the_way}")
        now = time.monotonic()
        if not found and now - self._progress_at >= REPEAT_S:
            for row in self._ask(self._looker, PROGRESS):
                part = f", {row['part']} %" if row["part"] is not None else ""
                self.say(f"index on {row['relation']}: {row['phase']}{part}")
                self._progress_at = now

    def _ask(
        self, conn: "Connection[Any]", query: Any
    ) -> list[dict[str, Any]]:  # Any: a literal of ours; rows
        # By the simple protocol: otherwise the last result keeps its snapshot for as long as the
        # transaction lasts, and a build of an index waits for the end of that too.
        with ClientCursor(conn, row_factory=dict_row) as cursor:
            cursor.execute(query, {"lock": MIGRATION_LOCK, "pid": self.pid})
            return cursor.fetchall()


def retrying(turn: Turn) -> Iterator[Attempt]:
    """Attempt a migration again while others hold its locks. Raises MigrationBlocked in the end."""
    began, wait_s = time.monotonic(), AGAIN_S
    while True:
        attempt = Attempt()
        yield attempt
        if attempt.error is None:
            return
        error = attempt.error
        cause = error.orig if isinstance(error, DBAPIError) else error
        if not isinstance(cause, BLOCKED):
            raise error
        if time.monotonic() - began + wait_s > turn.patience_s:
            raise MigrationBlocked(
                f"the migration got no lock within {turn.patience_s:g} s:"
                f" {turn.in_the_way or cause}; then run `els migrate` again"
            ) from error
        turn.say(f"the migration lets writers pass; again in {wait_s:g} s")
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_S)


def _session(row: dict[str, Any]) -> str:  # Any: a row
    """Name a session and since when it is there; never its statement, which may quote people."""
    if not row["pid"]:
        return "a prepared transaction (see pg_prepared_xacts)"
    parts = [row["program"], row["user"] and f"user {row['user']}"]
    parts += [row["host"] and f"from {row['host']}", row["state"]]
    about = ", ".join(each for each in parts if each)
    since = f" since {row['since'].astimezone(UTC):%H:%M:%S} UTC" if row["since"] else ""
    return f"session {row['pid']} ({about}) holds it{since}"


def _end(row: dict[str, Any]) -> str:  # Any: a row
    if not row["pid"]:
        return "ROLLBACK PREPARED its name"
    return f"SELECT pg_terminate_backend({row['pid']})"
