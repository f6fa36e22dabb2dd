"""The state of all batches, for `/health/batches` and `/metrics`.

Reading it costs many queries, so all who ask within a while get the same answer.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from threading import Lock

import psycopg
import redis
from kombu.exceptions import OperationalError
from psycopg_pool import PoolTimeout

from core import db
from core.checks import CheckContext, Finding
from core.db.connection import Conn
from core.db.sweep import Unmended
from core.rules import Rule
from core.signs.pauses import Pause
from core.slots import Slots
from core.states import BatchStatus, ClassType
from ops.alarms import all_rules
from ops.explain.causes import CAUSES, Cause
from ops.queries import numbers
from ops.signs import read_beats, read_pauses

STUCK_LIMIT = 100  # batches listed per rule
FRESH_S = 1.0  # a snapshot is kept at least this long
SHARE = 20  # and this many times as long as it took to read: a twentieth of a core at most
LONGEST_S = 15.0  # one that waited for a lock or a server says nothing of the time after that
UNANSWERED = (psycopg.Error, PoolTimeout, redis.RedisError, OSError, OperationalError)
LOCK_TIMEOUT = "1s"  # whoever holds a lock for longer is a cause, whose name needs no rows
TIMEOUT_S = 2.0  # for a connection, and for a snapshot that another request is reading


@dataclass(frozen=True)
class Snapshot:
    """All batches at one moment. `stuck` None: the rule needs Redis, which does not answer."""

    batches: dict[tuple[BatchStatus, ClassType], int]
    waiting: dict[str, float]
    letters: dict[str, int]
    stuck: list[tuple[Rule, list[Finding] | None]]
    pauses: list[Pause]
    pending: numbers.Pending
    unmended: dict[tuple[str, str], Unmended] = field(default_factory=dict)
    service: list[Cause] = field(default_factory=list)  # what keeps every batch waiting

    def as_json(self) -> dict[str, object]:
        """Return the body of `/health/batches`: `ok` only if every rule could be checked."""
        counts: Counter[str] = Counter()
        for (state, _), number in self.batches.items():
            counts[state] += number
        stuck = [
            {"batch_id": finding.batch_id, "reason": rule.code, "title": CAUSES[rule.code].title}
            | self._not_mending(finding.batch_id, rule)
            for rule, findings in self.stuck
            for finding in findings or []
        ]
        unchecked = [rule.code for rule, findings in self.stuck if findings is None]
        paused = [pause.as_json() for pause in self.pauses]
        return {
            "status": "degraded" if stuck or unchecked or paused or self.service else "ok",
            "service": [_shown(cause) for cause in self.service],
            "batches": counts,
            "pending_not_registered": asdict(self.pending),
            "stuck": stuck,
            "unchecked": unchecked,
            "paused": paused,
        }

    def _not_mending(self, batch_id: str, rule: Rule) -> dict[str, object]:
        """Add a repair that has failed twice in a row."""
        failed = self.unmended.get((batch_id, rule.code))
        if failed is None or not failed.hopeless:
            return {}
        return {
            "not_mending_itself": {
                "failures": failed.failures,
                "last_error": failed.last_error,
                "since": failed.since.isoformat(),
            }
        }


class SnapshotCache:
    """Reads snapshots, one request at a time, and keeps the last."""

    def __init__(
        self,
        postgres: Callable[[], AbstractContextManager[Conn]],
        slots: Slots,
        pending_alarm_s: float,
        service: Callable[[], list[Cause]] = list,
    ) -> None:
        self._postgres, self._slots, self._service = postgres, slots, service
        self._rules = all_rules(pending_alarm_s)
        self._reading = Lock()
        self._last: Snapshot | None = None
        self._fresh_until = 0.0

    def snapshot(self) -> Snapshot:
        """Return the last snapshot while it is fresh, else a new one.

        Raises psycopg.Error, PoolTimeout, TimeoutError; LockNotAvailable within about a second.
        """
        if not self._reading.acquire(timeout=TIMEOUT_S):
            raise TimeoutError("Postgres is slow to answer")
        try:
            started = time.monotonic()
            if self._last is None or started >= self._fresh_until:
                self._last = self._read()
                ended = time.monotonic()
                share_s = min(SHARE * (ended - started), LONGEST_S)
                self._fresh_until = ended + max(FRESH_S, share_s)
            return self._last
        finally:
            self._reading.release()

    def _read(self) -> Snapshot:
        service = self._service()
        with self._postgres() as conn, conn.transaction():
            conn.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
            context = CheckContext(conn, self._slots, limit=STUCK_LIMIT)
            stuck = [(rule, rule.find(context)) for rule in self._rules]
            unmended = db.sweep.unmended(conn, None, STUCK_LIMIT * len(self._rules))
            pauses = paused_processes(self._slots.client)
            return Snapshot(
                numbers.counts(conn),
                numbers.gauges(conn),
                numbers.letters_by_code(conn),
                stuck,
                pauses,
                numbers.pending(conn),
                unmended,
                service,
            )


def without_rows(service: list[Cause]) -> dict[str, object]:
    """Return the body of `/health/batches` while somebody has locked a table that it reads."""
    return {
        "status": "degraded",
        "service": [_shown(cause) for cause in service],
        "batches": {},
        "stuck": [],
        "unchecked": [rule.code for rule in all_rules()],
    }


def _shown(cause: Cause) -> dict[str, str | None]:
    since = cause.since.isoformat() if cause.since else None
    about = {"title": cause.title, "reason": cause.reason, "command": cause.command}
    return {"code": cause.code, "since": since, **about}


def leading_beat(client: redis.Redis, queue: str) -> dict[str, object] | None:
    """Tell which beat leads and which stand by; None without Redis."""
    try:
        return asdict(read_beats(client, queue))
    except redis.RedisError:
        return None


def paused_processes(client: redis.Redis) -> list[Pause]:
    """List the workers that wait for a server; none without Redis, which other fields report."""
    try:
        return read_pauses(client)
    except redis.RedisError:
        return []
