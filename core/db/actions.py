"""What operators did: a row an action, with who, why, when and what changed."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from core.db.connection import Conn

LONGEST_REASON = 1_024  # characters, as of `els.cancel_batch`
RETENTION = "retention"  # the actor of what the service purges by itself


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
