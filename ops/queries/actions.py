"""What operators did: a row an action, with who, why, when and what changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, LiteralString, NamedTuple

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from core.db.connection import Conn, Row

LONGEST_REASON = 1_024  # characters, as of `els.cancel_batch`


@dataclass(frozen=True)
class Action:
    """What somebody did to a target, such as `dead letter 7`; `batch_id` is whose timeline has it.

    `changes` is JSON: a field with its old and new value, or what was counted.
    """

    actor: str
    name: str
    target: str
    reason: str | None = None
    batch_id: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)  # Any: JSON


class By(NamedTuple):
    """Who acts, and why."""

    actor: str
    reason: str | None = None

    def action(
        self,
        name: str,
        target: str,
        batch_id: str | None = None,
        **changes: Any,  # Any: JSON
    ) -> Action:
        return Action(self.actor, name, target, self.reason, batch_id, changes)


def record(conn: Conn, *actions: Action) -> None:
    """Write a row for each action; in the transaction of what it changes, where that is one."""
    conn.execute(
        "INSERT INTO operator_actions (actor, action, target, batch_id, reason, changes)"
        " SELECT actor, name, target, batch_id, reason, changes FROM jsonb_to_recordset(%s)"
        " AS acted (actor text, name text, target text, batch_id text, reason text, changes jsonb)",
        [Jsonb([asdict(each) for each in actions])],
    )


def terms(conn: Conn, batch_id: str, *, lock: bool = False) -> Row:
    """Read what an operator can change of a batch, as JSON; empty: it is not registered."""
    query: LiteralString = (
        "SELECT status, to_json(deadline_at) AS deadline_at, on_deadline, student_prompt_ref"
        " FROM batch_essay_trackers WHERE batch_id = %s"
    )
    row = conn.execute(query + " FOR UPDATE" if lock else query, [batch_id]).fetchone()
    return row or {}


@contextmanager
def recorded(by: By, name: str, batch_id: str, conn: Conn, *, lock: bool = False) -> Iterator[None]:
    """Record what an operator changes of a batch: each field with its old and new value."""
    before = terms(conn, batch_id, lock=lock)
    yield
    after = terms(conn, batch_id)
    changes = {each: [before[each], after[each]] for each in after if before[each] != after[each]}
    record(conn, by.action(name, f"batch {batch_id}", batch_id, **changes))


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
