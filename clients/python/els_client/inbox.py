"""An inbox: a table of the ids of events, so that a repeat of an event has no second effect.

The rule: the id is written in the transaction of the effect. A crash in between undoes both, and
the next delivery does both. This module takes connections of DB-API drivers to Postgres (psycopg,
psycopg2) and to SQLite; `els_client.sqlalchemy_inbox` those of SQLAlchemy.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from typing import Any, Protocol

COLUMNS = ("id", "type", "batch_id", "sequence", "received_at")
LEGACY = -1  # of sqlite3, whose `autocommit` came with Python 3.12: as before
IDLE = 0  # the status of a libpq connection without a transaction


class NoTransaction(Exception):
    """The connection commits each statement by itself: begin a transaction first.

    Otherwise the id would stay where the effect fails, and the event would be lost.
    """


class Cursor(Protocol):
    """The part of a cursor of PEP 249 that is used here."""

    rowcount: int

    def execute(self, statement: str, values: Sequence[object], /) -> object: ...
    def fetchall(self) -> list[Any]: ...  # Any: rows as the driver makes them
    def close(self) -> object: ...


class Connection(Protocol):
    """The part of a connection of PEP 249 that is used here."""

    def cursor(self) -> Any: ...  # Any: each driver has a class of its own


class Inbox:
    """The ids of the events that were received, in a table of your database."""

    def __init__(self, table: str = "els_inbox") -> None:
        """Take the name of the table, with its schema if it has one. Raises ValueError."""
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", table, re.ASCII):
            raise ValueError(f"{table!r} is no name of a table")
        self.table = table

    def create_table(self, connection: Connection) -> None:
        """Create the table and its index, unless they are there; you commit."""
        index = self.table.replace(".", "_") + "_batch"
        for statement in (
            f"CREATE TABLE IF NOT EXISTS {self.table} (id VARCHAR(36) NOT NULL PRIMARY KEY,"
            " type VARCHAR(255) NOT NULL, batch_id VARCHAR(64) NOT NULL, sequence INTEGER,"
            " received_at VARCHAR(32) NOT NULL)",
            f"CREATE INDEX IF NOT EXISTS {index} ON {self.table} (batch_id, sequence)",
        ):
            _run(connection, statement)

    def is_new(self, connection: Connection, event: Mapping[str, Any]) -> bool:  # Any: JSON
        """Write the id of an event into the open transaction; False: its effect is made already.

        Another transaction that has just received the same event is waited for. Raises
        NoTransaction.
        """
        refuse_autocommit(connection)
        marks = ", ".join("?" for _ in COLUMNS)
        added, _ = _run(
            connection,
            f"INSERT INTO {self.table} ({', '.join(COLUMNS)}) VALUES ({marks})"  # noqa: S608 - checked
            " ON CONFLICT (id) DO NOTHING",
            *row(event).values(),
        )
        return added > 0

    def missing_before(
        self,
        connection: Connection,
        event: Mapping[str, Any],  # Any: JSON
    ) -> list[int]:
        """List the sequence numbers before that of this event that have not been received.

        They may still come, in any order; or never, where your routes leave their types out.
        """
        sequence = row(event)["sequence"]
        if sequence is None:
            return []
        _, rows = _run(
            connection,
            f"SELECT sequence FROM {self.table} WHERE batch_id = ? AND sequence < ?",  # noqa: S608
            event["subject"],
            sequence,
        )
        return missing(sequence, (int(_first(each)) for each in rows))

    def is_overtaken(self, connection: Connection, event: Mapping[str, Any]) -> bool:  # Any: JSON
        """Tell whether a later event of the batch was received before this one."""
        sequence = row(event)["sequence"]  # None, of which nothing is later
        _, rows = _run(
            connection,
            f"SELECT 1 FROM {self.table}"  # noqa: S608 - checked
            " WHERE batch_id = ? AND sequence > ? LIMIT 1",
            event["subject"],
            sequence,
        )
        return bool(rows)

    def forget(self, connection: Connection, before: datetime) -> int:
        """Delete what was received before a moment; return how many. A repeat is then new again."""
        gone, _ = _run(
            connection,
            f"DELETE FROM {self.table} WHERE received_at < ?",  # noqa: S608 - checked
            moment(before),
        )
        return gone


def row(event: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON, a row
    """Return what the table holds of an event, by column.

    A refusal of a message without a registered batch has no place in the order of a batch: its
    sequence is the number of its dead letter.
    """
    refusal = event["type"] == "MessageRefused"
    of_none = refusal and event["sequence"] == event["data"].get("dead_letter")
    return {
        "id": str(event["id"]),
        "type": event["type"],
        "batch_id": event["subject"],
        "sequence": None if of_none else event["sequence"],
        "received_at": moment(datetime.now(UTC)),
    }


def moment(at: datetime) -> str:
    """Write a moment so that text sorts as time does."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def missing(sequence: int, received: Any) -> list[int]:  # Any: numbers
    return sorted(set(range(1, sequence)).difference(received))


def refuse_autocommit(connection: Any) -> None:  # Any: a connection of a driver
    """Raise NoTransaction where a driver would commit each statement by itself."""
    info = getattr(connection, "info", None)
    if info is not None:  # psycopg, psycopg2
        begun = info.transaction_status != IDLE
        by_itself = connection.autocommit
    else:  # sqlite3
        begun = connection.in_transaction
        chosen = getattr(connection, "autocommit", LEGACY)
        by_itself = connection.isolation_level is None if chosen == LEGACY else bool(chosen)
    if by_itself and not begun:
        raise NoTransaction("begin a transaction, make your effect in it, and commit both")


def refuse_async(connection: object) -> None:
    """Raise TypeError for a connection to be awaited: not awaited, it would call nothing new."""
    if iscoroutinefunction(getattr(connection, "commit", None)):
        kind = type(connection).__name__
        raise TypeError(f"{kind} is asynchronous: give the inbox a connection that is not")


def _run(connection: Any, statement: str, *values: object) -> tuple[int, list[Any]]:
    """Execute a statement written with `?`; return the number of rows, and the rows of a query."""
    refuse_async(connection)
    cursor: Cursor = connection.cursor()
    try:
        cursor.execute(statement.replace("?", _mark(connection)), values)
        rows = cursor.fetchall() if statement.startswith("SELECT") else []
        return cursor.rowcount, rows
    finally:
        cursor.close()


def _mark(connection: object) -> str:
    """Return how the driver of a connection writes a value's place."""
    for kind in type(connection).__mro__:  # it may be a class of yours that inherits the driver's
        driver = sys.modules.get(kind.__module__.partition(".")[0])
        if style := getattr(driver, "paramstyle", None):
            return "?" if style == "qmark" else "%s"
    return "?"


def _first(row: Any) -> Any:  # Any: a tuple, or a mapping where the connection makes such rows
    return next(iter(row.values())) if isinstance(row, Mapping) else row[0]
