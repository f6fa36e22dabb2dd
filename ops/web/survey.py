"""How the books stand, looked up at most once in a while however many ask."""

import time
from collections import Counter
from dataclasses import dataclass, field
from threading import Lock

import psycopg
import redis
from kombu.exceptions import OperationalError
from psycopg_pool import ConnectionPool, PoolTimeout

from core import db
from core.checks import CheckContext, Finding, Shared
from core.db.connection import Conn
from core.db.sweep import Unmended
from core.pauses import Pause, read_pauses
from core.rules import RULES, Rule
from core.slots import Slots
from core.states import BatchStatus, ClassType
from ops import queries

STUCK_LIMIT = 100  # batches named by one rule
FRESH_S = 1.0  # a survey is shown for so long
SHARE = 20  # and for so many times as long as it took: the look takes a twentieth of a core at most
UNANSWERED = (psycopg.Error, PoolTimeout, redis.RedisError, OSError, OperationalError)
PATIENCE_S = 2.0  # for a connection, and for the survey of somebody else


@dataclass(frozen=True)
class Survey:
    """What was found. `stuck` None: Redis does not answer, without which the rule cannot look."""

    batches: dict[tuple[BatchStatus, ClassType], int]
    waiting: dict[str, float]
    stuck: list[tuple[Rule, list[Finding] | None]]
    pauses: list[Pause]
    unmended: dict[tuple[str, str], Unmended] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Write it as `/health/batches` shows it: `ok` only if every rule could look."""
        counts: Counter[str] = Counter()
        for (state, _), number in self.batches.items():
            counts[state] += number
        named = [
            {"batch_id": finding.batch_id, "reason": rule.code, "title": rule.title}
            | self._not_mending(finding.batch_id, rule)
            for rule, findings in self.stuck
            for finding in findings or []
        ]
        unchecked = [rule.code for rule, findings in self.stuck if findings is None]
        paused = [pause.as_json() for pause in self.pauses]
        return {
            "status": "degraded" if named or unchecked or paused else "ok",
            "batches": counts,
            "stuck": named,
            "unchecked": unchecked,
            "paused": paused,
        }

    def _not_mending(self, batch_id: str, rule: Rule) -> dict[str, object]:
        """Tell of a repair that did not help twice in a row."""
        failed = self.unmended.get((batch_id, rule.code))
        if failed is None or not failed.hopeless:
            return {}
        told = {"failures": failed.failures, "last_error": failed.last_error}
        return {"not_mending_itself": {**told, "since": failed.since.isoformat()}}


class Surveyor:
    """Looks at the books for all who ask."""

    def __init__(self, pool: "ConnectionPool[Conn]", slots: Slots) -> None:
        self._pool, self._slots = pool, slots
        self._looking = Lock()
        self._last: Survey | None = None
        self._fresh_until = 0.0

    def survey(self) -> Survey:
        """Return the last survey while it is fresh, else make one.

        Raises psycopg.Error, PoolTimeout, TimeoutError.
        """
        if not self._looking.acquire(timeout=PATIENCE_S):
            raise TimeoutError("Postgres is slow to answer")
        try:
            started = time.monotonic()
            if self._last is None or started >= self._fresh_until:
                self._last = self._look()
                ended = time.monotonic()
                self._fresh_until = ended + max(FRESH_S, SHARE * (ended - started))
            return self._last
        finally:
            self._looking.release()

    def _look(self) -> Survey:
        with self._pool.connection(timeout=PATIENCE_S) as conn:
            look = CheckContext(conn, self._slots, limit=STUCK_LIMIT, shared=Shared())
            stuck = [(rule, rule.find(look)) for rule in RULES]
            unmended = db.sweep.unmended(conn, None, STUCK_LIMIT * len(RULES))
            return Survey(
                queries.counts(conn), queries.gauges(conn), stuck, self._pauses(), unmended
            )

    def _pauses(self) -> list[Pause]:
        """List the processes that wait; without Redis, `unchecked` says that something is wrong."""
        try:
            return read_pauses(self._slots.client)
        except redis.RedisError:
            return []
