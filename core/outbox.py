"""The relay: sends events from the outbox to the broker, at least once and in their order."""

from collections.abc import Callable, Sequence
from typing import Any

import structlog
from psycopg_pool import ConnectionPool

from core import db, metrics
from core.crash import crashpoint
from core.db.connection import Conn
from core.errors import NotSent
from core.events import cloud_event
from core.faults import safe_message

RELAY_CHUNK = 100  # events of one transaction
BATCHES = 200  # batches of one relay of everything

Send = Callable[[Sequence[dict[str, Any]]], object]  # Any: CloudEvents, JSON; raises NotSent
log = structlog.get_logger(__name__)


def relay(pool: "ConnectionPool[Conn]", batches: Sequence[str] | None, send: Send) -> int:
    """Send the undelivered events of some batches, in the order of each; return their number.

    None: those of messages that name no registered batch.

    An event that the broker does not take stops the relay, and stays for the next one with its
    error. A death between sending and commit sends again: consumers drop repeats by id.
    """
    sent = 0
    while True:
        with db.transaction(pool) as conn:
            rows = db.outbox.take_unpublished(conn, batches, RELAY_CHUNK)
            if not rows:
                return sent
            try:
                send([cloud_event(row) for row in rows])
            except NotSent as error:
                first = rows[error.sent]
                log.warning("event_not_sent", batch_id=first["batch_id"], type=first["type"])
                db.outbox.untake(conn, rows[error.sent :], safe_message(error))
                metrics.published(each["type"] for each in rows[: error.sent])
                return sent + error.sent
            crashpoint("published")
        metrics.published(row["type"] for row in rows)
        sent += len(rows)
        if len(rows) < RELAY_CHUNK:
            return sent


def relay_all(pool: "ConnectionPool[Conn]", send: Send) -> int:
    """Send the undelivered events of every batch; return their number."""
    with pool.connection() as conn:
        waiting = db.outbox.batches_with_unpublished(conn, BATCHES)
    return sum(relay(pool, None if batch_id is None else [batch_id], send) for batch_id in waiting)
