"""The rules that no batch must break for long: each with its check and its repair.

A code has its section in docs/runbook.md and is never renamed; `ops/explain/causes.py` has its
words for people.
"""

from collections.abc import Callable
from dataclasses import dataclass

from redis import RedisError

from core import checks, repairs
from core.checks import Check, CheckContext, Finding, by_query
from core.repairs import RepairContext


@dataclass(frozen=True)
class Rule:
    """What must not stay. Without a repair it is an alarm: a person must act.

    `repair` returns whether it changed anything; somebody else may have been faster. `paged`: the
    check reads some batches at a time, so the sweep remembers its findings.
    """

    code: str
    check: Check
    repair: Callable[[RepairContext, str], bool] | None = None
    paged: bool = False

    def find(self, context: CheckContext) -> list[Finding] | None:
        """Find what breaks the rule; None: Redis does not answer, and this check needs it."""
        try:
            return self.check(context)
        except RedisError:
            return None


RULES = [
    Rule("status_wrong", checks.status_wrong, repairs.restore_status, paged=True),
    Rule("slot_missing", checks.slot_missing, paged=True),
    Rule("slot_extra", checks.slot_extra, paged=True),
    Rule("slot_cancelled", checks.slot_cancelled, repairs.reopen_slots, paged=True),
    Rule("counter_wrong", checks.counter_wrong, repairs.recount, paged=True),
    Rule("pending_though_registered", by_query("pending_though_registered"), repairs.drain),
    Rule("full_not_announced", by_query("full_not_announced"), repairs.announce),
    Rule("slot_drift", checks.slot_drift, repairs.reseed),
    Rule("deadline_never", by_query("deadline_never"), repairs.bring_deadline_near),
    Rule("deadline_passed", by_query("deadline_passed"), repairs.time_out),
    Rule("event_missing", checks.event_missing, repairs.post_missing, paged=True),
    Rule("event_not_delivered", by_query("event_not_delivered"), repairs.relay),
]
