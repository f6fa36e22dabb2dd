"""Who holds a lock that the service, or one batch, has to wait for."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString

import psycopg

from core.db.connection import Conn
from core.servers.rights import OF_MESSAGES
from core.signs.pauses import Outage
from ops.queries.statements import sql
from ops.wording import number

PATIENCE = timedelta(seconds=1)  # a transaction of ours takes milliseconds
# A row's `xmax` names the transaction that has locked or changed it, and `pg_locks` who that is.
OF_ROWS: LiteralString = """
    UNION
    SELECT l.pid, l.gid, 'rows of the batch in ' || r.name
    FROM (SELECT DISTINCT xmax AS holder, 'batch_essay_trackers' AS name
          FROM batch_essay_trackers WHERE batch_id = %(batch)s AND xmax <> 0
          UNION
          SELECT DISTINCT xmax, 'essay_states' FROM essay_states
          WHERE batch_id = %(batch)s AND xmax <> 0) r
    JOIN here l ON l.locktype = 'transactionid' AND l.granted AND l.transactionid = r.holder
"""
LOCKS = sql("locks")
UNREADABLE = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.InsufficientPrivilege,
)


@dataclass(frozen=True)
class Lock:
    """A session, or a prepared transaction, and what it has locked. None: we may not see it."""

    pid: int | None  # None: a prepared transaction, which no session has
    gid: str | None  # of a prepared transaction
    what: Sequence[str]
    application_name: str | None
    state: str | None
    since: datetime | None  # its transaction
    state_change: datetime | None
    waiting: int  # sessions that wait for it

    def __str__(self) -> str:
        if self.gid is not None:
            return f"the prepared transaction {self.gid}, which no session has"
        name = self.application_name or "without a name"
        state = self.state or "state unknown"
        if self.state and self.state_change and self.state.startswith("idle"):
            state += f" since {self.state_change:%Y-%m-%d %H:%M:%S} UTC"
        return f"pid {self.pid}, {name}, {state}"


def locks(conn: Conn, batch_id: str | None = None) -> list[Lock]:
    """List the sessions that hold up the service, or a batch; the oldest transaction first.

    A locked table cannot be read for the rows of the batch: then its holder alone is found.
    """
    values = {"tables": list(OF_MESSAGES), "batch": batch_id, "patience": PATIENCE}
    if batch_id is not None:
        with suppress(*UNREADABLE):
            return _read(conn, LOCKS.replace("/* rows */", OF_ROWS), values)
    return _read(conn, LOCKS.replace("/* rows */", ""), values)


def standby_awaited(conn: Conn) -> Outage | None:
    """Tell whether commits wait for a synchronous standby: then every write does."""
    row = conn.execute(
        "SELECT count(*) AS commits, current_setting('synchronous_standby_names') AS names,"
        " current_setting('synchronous_commit') NOT IN ('off', 'local')"
        "  AND NOT EXISTS (SELECT FROM pg_stat_replication) AS alone"
        " FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep'"
        " AND query_start < now() - %s",
        [PATIENCE],
    ).fetchone()
    if row is None or not (row["commits"] or (row["names"] and row["alone"])):
        return None
    # Another role does not see what a session waits for.
    waiting = number(row["commits"], "commit waits", "commits wait") if row["commits"] else ""
    commits = waiting or "no standby is connected, so commits wait"
    said = f"{commits} for a synchronous standby (synchronous_standby_names: {row['names']}):"
    said += " start it, or do without"
    return Outage("postgres", said)


def _read(conn: Conn, query: LiteralString, values: Mapping[str, object]) -> list[Lock]:
    return [Lock(**row) for row in conn.execute(query, values)]
