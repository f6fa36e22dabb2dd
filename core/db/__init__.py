"""Postgres: every statement of the service, each in a function of the module of its subject.

Each takes a connection first: on an autocommitting one the statement is a transaction of its own.
The long statements stand in `sql/`.
"""

from core.db import (
    batches,
    completion,
    dead_letters,
    idempotency,
    outbox,
    retention,
    slots,
    sweep,
)
from core.db.connection import (
    Conn,
    Row,
    connect,
    connect_once,
    jsonb,
    sql,
    statements,
    transaction,
)

__all__ = [
    "Conn",
    "Row",
    "batches",
    "completion",
    "connect",
    "connect_once",
    "dead_letters",
    "idempotency",
    "jsonb",
    "outbox",
    "retention",
    "slots",
    "sql",
    "statements",
    "sweep",
    "transaction",
]
