"""The inbox for connections and sessions of SQLAlchemy, on Postgres and SQLite."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, Index, Integer, MetaData, String, Table, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, scoped_session

from els_client.inbox import missing, moment, refuse_async, refuse_autocommit, row

Bound = Connection | Session | scoped_session[Session]


class SQLAlchemyInbox:
    """As `els_client.inbox.Inbox`, in a table of your `MetaData`, so that Alembic finds it."""

    def __init__(self, metadata: MetaData, table: str = "els_inbox") -> None:
        """Take the name of the table, with its schema if it is not that of your `MetaData`."""
        schema, _, name = table.rpartition(".")
        self.table = Table(
            name,
            metadata,
            Column("id", String(36), primary_key=True),
            Column("type", String(255), nullable=False),
            Column("batch_id", String(64), nullable=False),
            Column("sequence", Integer),
            Column("received_at", String(32), nullable=False),
            Index(f"{table.replace('.', '_')}_batch", "batch_id", "sequence"),
            schema=schema or metadata.schema,
        )

    def create_table(self, bound: Bound) -> None:
        """Create the table and its index, unless they are there; you commit."""
        self.table.create(_connection(bound), checkfirst=True)

    def is_new(self, bound: Bound, event: Mapping[str, Any]) -> bool:  # Any: JSON
        """Write the id of an event into the open transaction; False: its effect is made already.

        Raises NoTransaction, and NotImplementedError for another database.
        """
        connection = _connection(bound)
        refuse_autocommit(connection.connection.driver_connection)
        values = row(event)
        insert: postgresql.Insert | sqlite.Insert
        match connection.dialect.name:
            case "postgresql":
                insert = postgresql.insert(self.table).values(**values).on_conflict_do_nothing()
            case "sqlite":
                insert = sqlite.insert(self.table).values(**values).on_conflict_do_nothing()
            case other:
                raise NotImplementedError(f"the inbox knows postgresql and sqlite, not {other}")
        return connection.execute(insert.returning(self.table.c.id)).first() is not None

    def missing_before(self, bound: Bound, event: Mapping[str, Any]) -> list[int]:  # Any: JSON
        """List the sequence numbers before that of this event that have not been received."""
        sequence = row(event)["sequence"]
        if sequence is None:
            return []
        column = self.table.c.sequence
        of_batch = self.table.c.batch_id == event["subject"]
        earlier = select(column).where(of_batch, column < sequence)
        return missing(sequence, _connection(bound).scalars(earlier))

    def is_overtaken(self, bound: Bound, event: Mapping[str, Any]) -> bool:  # Any: JSON
        """Tell whether a later event of the batch was received before this one."""
        sequence = row(event)["sequence"]
        if sequence is None:
            return False
        column = self.table.c.sequence
        of_batch = self.table.c.batch_id == event["subject"]
        later = select(column).where(of_batch, column > sequence).limit(1)
        return _connection(bound).scalar(later) is not None

    def forget(self, bound: Bound, before: datetime) -> int:
        """Delete what was received before a moment; return how many. A repeat is then new again."""
        old = self.table.delete().where(self.table.c.received_at < moment(before))
        return _connection(bound).execute(old).rowcount


def _connection(bound: Bound) -> Connection:
    refuse_async(bound)
    return bound if isinstance(bound, Connection) else bound.connection()
