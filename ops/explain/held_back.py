"""Who holds events back from the readers of `/v1/events`: they wait for every older transaction."""

from datetime import timedelta

from psycopg.rows import DictRow

from core.db.connection import Conn
from ops.queries.statements import sql
from ops.wording import number, utc

PATIENCE = timedelta(seconds=30)  # no transaction of ours takes so long


def held_back(conn: Conn, batch_id: str | None = None) -> tuple[str, str] | None:
    """Say who holds events back, of one batch or all, and the step; None: nobody does."""
    row = conn.execute(sql("held_back"), {"batch": batch_id, "patience": PATIENCE}).fetchone()
    if row is None:
        return None
    who, step = _who(row)
    events = f"{number(row['events'], 'event')} since {utc(row['since'])}"
    return f"{who} holds back {events} from /v1/events", step


def _who(row: DictRow) -> tuple[str, str]:
    if row["gid"] is not None:
        return f"the prepared transaction {row['gid']}", f"ROLLBACK PREPARED '{row['gid']}'"
    if row["pid"] is None:  # our role may not see it
        return "an open transaction", "SELECT * FROM pg_stat_activity ORDER BY xact_start"
    named = row["application_name"] or "without a name"
    said = f"pid {row['pid']}, {named}, database {row['database']}"
    began = f" since {utc(row['began'])}" if row["began"] else ""
    return f"a transaction that is open{began} ({said})", (
        f"SELECT pg_terminate_backend({row['pid']})"
    )
