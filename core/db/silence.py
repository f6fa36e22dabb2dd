"""Why is a connection silent? A second connection asks the server whether it works on ours."""

import time
from typing import Any, ClassVar, TypeVar

import psycopg
from psycopg import Connection
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.errors import _WaitTimeout
from psycopg.pq.abc import PGconn

RV = TypeVar("RV")
POLL_S = 0.1  # how often psycopg lets Ctrl-C through while it waits
ANSWER_S = 3.0  # for the answer to the question
BUSY_S = 60.0  # behind a pooler: as long as a statement may take, others may have to wait
OVERTAKEN_S = 1.0  # with several sessions free, a pooler may serve the later one a little earlier
WORKING = ["active", "fastpath function call"]  # states of a session that runs a statement


class Impatient(Connection[Any]):  # Any: rows as they come
    """A connection that waits for each answer for some seconds only."""

    answer_s: ClassVar[float] = ANSWER_S

    def wait(self, gen: PQGen[RV], interval: float = POLL_S, timeout: float | None = None) -> RV:
        """Wait for the server. Raises OperationalError when it does not answer in time."""
        try:
            return super().wait(gen, interval, timeout or self.answer_s)
        except _WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {self.answer_s:g} s") from None


def beside(pgconn: PGconn, patience_s: float) -> Connection[Any]:  # Any: rows as they come
    """Connect once more to where a connection is, for one short question."""
    own = {each.keyword.decode(): each.val.decode() for each in pgconn.info if each.val}
    own |= {"connect_timeout": str(max(2, int(patience_s)))}
    return Impatient.connect(make_conninfo(**own), autocommit=True, prepare_threshold=None)


class Silence:
    """The silence of one connection while it waits for one answer.

    Not covered: one frozen session of a healthy server looks as if it worked; and behind a pooler,
    any statement of our role that began before ours looks as if it were ours.
    """

    def __init__(self, pgconn: PGconn, pooled: bool, busy_s: float = BUSY_S) -> None:
        self._pgconn, self._pooled, self._busy_s = pgconn, pooled, busy_s
        self._since = time.monotonic()
        self._answered: float | None = None  # when a pooler had a session free after ours began

    def reason(self, patience_s: float) -> str | None:
        """Say why nothing comes; None: the server works for us, or may work."""
        try:
            with beside(self._pgconn, patience_s / 2) as asking:
                return self._of_pooled(asking) if self._pooled else self._of_session(asking)
        except psycopg.Error as error:
            # A refusal, such as too many connections, is an answer.
            return None if error.sqlstate else f"the server does not answer another one: {error}"

    def _of_session(self, asking: Connection[Any]) -> str | None:
        row = asking.execute(
            "SELECT state FROM pg_stat_activity WHERE pid = %s", [self._pgconn.backend_pid]
        ).fetchone()
        if row is None:
            return "the server has ended its session"
        if row[0] is None or row[0] in WORKING:
            return None
        return f"for the server it is {row[0]}: the statement or its answer was lost on the way"

    def _of_pooled(self, asking: Connection[Any]) -> str | None:
        """Find a session that may be ours: a pooler serves in order, so ours began before this one,
        or a moment after it.

        A pooler whose sessions are all busy makes this connection wait too.
        """
        since_s = 0.0 if self._answered is None else time.monotonic() - self._answered
        age_s = max(0.0, since_s - OVERTAKEN_S)
        try:
            row = asking.execute(
                "SELECT FROM pg_stat_activity WHERE usename = current_user"
                " AND datname = current_database() AND pid <> pg_backend_pid()"
                " AND state = ANY(%s) AND query_start < now() - make_interval(secs => %s)",
                [WORKING, age_s],
            ).fetchone()
        except psycopg.OperationalError:
            waited_s = time.monotonic() - self._since
            busy = waited_s < self._busy_s
            return None if busy else f"the pooler has no session for {waited_s:.0f} s"
        self._answered = self._answered or time.monotonic()
        return None if row else "the server works on no statement that may be ours"
