"""What operators did, for `els actions`."""

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import DictRow

from core.db.connection import Conn


@dataclass(frozen=True)
class Wanted:
    """Which actions are wanted; None: whatever they are."""

    batch_id: str | None = None
    actor: str | None = None
    name: str | None = None
    since: datetime | None = None


def newest(conn: Conn, wanted: Wanted, limit: int) -> list[DictRow]:
    return conn.execute(
        "SELECT id, acted_at, actor, action, target, batch_id, reason, changes"
        " FROM operator_actions"
        " WHERE (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)"
        " AND (%(actor)s::text IS NULL OR actor = %(actor)s)"
        " AND (%(name)s::text IS NULL OR action = %(name)s)"
        " AND (%(since)s::timestamptz IS NULL OR acted_at >= %(since)s)"
        " ORDER BY id DESC LIMIT %(limit)s",
        {**vars(wanted), "limit": limit},
    ).fetchall()
