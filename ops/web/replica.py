"""The read replica of the pages: whether it answers, and how far it is behind the primary."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import psycopg

from core.db.connection import Conn, Prepare
from core.servers.identity import identity
from ops.brief_postgres import pool_for_pages

PATIENCE_S = 1.0  # for a connection; a page would rather read from the primary
AGAIN_S = 10.0  # then it is left alone for so long
REMEMBERED = 3_600  # positions of the primary, one a second
PRIMARY = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::int8 AS at"
REPLICA = (
    "SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::int8 AS at WHERE pg_is_in_recovery()"
)


class Replica:
    """A replica behind `ELS_DATABASE_READ_URL`.

    `error` says why it does not answer; None: it does. `lag_s` is for how long the primary has held
    what the replica does not show, to a second; None: nobody has measured it yet.
    """

    def __init__(
        self, url: str, prepare: Prepare, of_primary: Callable[[], str | None] = lambda: None
    ) -> None:
        self._of_primary, self._is_checked = of_primary, False
        self.pool = pool_for_pages(url, prepare=prepare, writes=False)
        self.error: str | None = None
        self.lag_s: float | None = None
        self._left_until = 0.0
        self._positions: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)

    def borrow(self, until: ExitStack) -> Conn | None:
        """Lend a connection until the stack ends; None: the replica does not answer."""
        if time.monotonic() < self._left_until:
            return None
        try:
            conn = until.enter_context(self.pool.connection(timeout=PATIENCE_S))
            self._check(conn)
        except psycopg.OperationalError as error:
            self.error = " ".join(str(error).split())
            self.lag_s, self._left_until = None, time.monotonic() + AGAIN_S
            return None
        self.error = None
        return conn

    def _check(self, conn: Conn) -> None:
        """Refuse a database that is none of the primary's, once both have said which they are."""
        if self._is_checked or (primary := self._of_primary()) is None:
            return
        if (theirs := identity(conn)) not in (None, primary):
            raise psycopg.OperationalError(
                "ELS_DATABASE_READ_URL names another database than ELS_DATABASE_URL: correct it"
            )
        self._is_checked = theirs is not None

    def measure(self, primary: Callable[[], AbstractContextManager[Conn]]) -> None:
        """Compare the positions of both. Raises psycopg.Error where the primary does not answer."""
        with ExitStack() as stack:
            conn = self.borrow(stack)
            if conn is None:
                return
            try:
                self._remember(primary)
            finally:
                row = conn.execute(REPLICA).fetchone()
                self.lag_s = self._behind(row["at"]) if row else 0.0

    def _remember(self, primary: Callable[[], AbstractContextManager[Conn]]) -> None:
        with primary() as conn:
            row = conn.execute(PRIMARY).fetchone()
        assert row is not None
        if self._positions and row["at"] < self._positions[-1][1]:
            self._positions.clear()  # another primary, whose history is its own
        self._positions.append((time.monotonic(), row["at"]))

    def _behind(self, replayed: int) -> float | None:
        """Return the age of the first position that the replica has not reached."""
        if not self._positions:
            return None
        missed = next((at for at, position in self._positions if position > replayed), None)
        return 0.0 if missed is None else time.monotonic() - missed
