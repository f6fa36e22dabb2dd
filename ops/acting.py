"""What operators do to batches and events: each action, recorded with who and why.

The command line and the page call the same functions.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery
from psycopg_pool import ConnectionPool

from core.catalogue import AMEND_BATCH, CANCEL_BATCH, Task
from core.db.connection import Conn
from core.lifecycle import Lifecycle
from core.messages import Idempotency
from core.model import Value
from core.outbox import relay
from core.parsing import parse
from core.repairs import RepairContext
from core.settings import Settings
from core.slots import Slots
from core.sweep import SweepResult, sweep
from ops.alarms import all_rules
from ops.client import common
from ops.queries import actions, outbox
from ops.queries.actions import By, recorded
from ops.queries.outbox import Events
from tasks.delivery import CloudEvent, deliver

REPUBLISHED_AT_ONCE = 1_000  # events of one transaction
EVERY_BATCH = "every batch"


@dataclass
class Acting:
    """The servers to act on; the events of an action leave through `sender`."""

    settings: Settings
    pool: "ConnectionPool[Conn]"
    slots: Slots
    sender: Celery

    @property
    def lifecycle(self) -> Lifecycle:
        return Lifecycle(self.pool, self.slots, self.settings.opt_in_events())

    def deliver(self, events: Sequence[CloudEvent]) -> None:
        """Send events. Raises NotSent."""
        deliver(self.sender, events, self.settings.routes)

    def cancel(self, batch_id: str, by: By) -> Value:
        """Cancel a batch, with its event. Raises Refusal."""
        event, idem = _parsed(CANCEL_BATCH, common(batch_id, reason=by.reason))
        watch = partial(recorded, by, "cancel", batch_id)
        value = self.lifecycle.cancel_batch(event, idem, watch).value
        relay(self.pool, [batch_id], self.deliver)
        return value

    def amend(self, batch_id: str, by: By, **fields: Any) -> Value:  # Any: of a BatchAmended
        """Change the deadline, what happens at it, or the prompt of a batch. Raises Refusal."""
        event, idem = _parsed(AMEND_BATCH, common(batch_id, **fields))
        watch = partial(recorded, by, "amend", batch_id, lock=True)
        return self.lifecycle.amend_batch(event, idem, watch).value

    def reconcile(self, batch_id: str | None, by: By | None) -> list[SweepResult] | None:
        """Run the sweep now, or find only where nobody signs; None: another one is at work."""
        context = RepairContext(self.lifecycle, self.deliver)
        rules = all_rules(self.settings.pending_alarm_s)
        results = sweep(context, batch_id, rules, dry_run=by is None, at_once=True)
        if by and results is not None:
            found = {
                word: dict(Counter(each.rule for each in results if each.mended is mended))
                for word, mended in (("mended", True), ("not mended", False))
            }
            target = f"batch {batch_id}" if batch_id else EVERY_BATCH
            with self.pool.connection() as conn:
                actions.record(conn, by.action("reconcile", target, batch_id, **found))
        return results


def republish(conn: Conn, meant: Events, by: By, progress: Callable[[int], object]) -> int:
    """Let the relay deliver events again, a row for each batch; return their number."""
    total = 0
    while True:
        with conn.transaction():
            counts = outbox.republish(conn, meant, REPUBLISHED_AT_ONCE)
            if not counts:
                return total
            of = {batch_id: f"batch {batch_id}" if batch_id else "no batch" for batch_id in counts}
            rows = (
                by.action("republish", f"events of {of[batch_id]}", batch_id, events=n)
                for batch_id, n in counts.items()
            )
            actions.record(conn, *rows)
        total += sum(counts.values())
        progress(total)


def _parsed(task: Task, event: dict[str, Any]) -> tuple[Any, Idempotency]:  # Any: of its model
    return parse(task.model, task.name, event, task.limit)
