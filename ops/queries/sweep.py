"""Who holds the lock of the sweep."""

from dataclasses import dataclass
from datetime import datetime

from core.db.connection import Conn


@dataclass(frozen=True)
class Holder:
    """The session that holds the lock of the sweep. None: our role may not see this."""

    pid: int
    application_name: str | None
    state: str | None
    since: datetime | None
    sweeping: bool

    def __str__(self) -> str:
        since = f" since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        name = self.application_name or "without a name"
        return f"pid {self.pid}, {name}, {self.state or 'state unknown'}{since}"


def holder(conn: Conn) -> Holder | None:
    """Find the session that holds the lock of the sweep."""
    row = conn.execute(
        """
        SELECT l.pid, a.application_name, a.state, a.state_change AS since,
               coalesce(a.application_name LIKE '%% sweep'
                        AND a.state_change > now() - interval '1 minute', false) AS sweeping
        FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended('sweep', 0)
        LIMIT 1
        """
    ).fetchone()
    return Holder(**row) if row else None
