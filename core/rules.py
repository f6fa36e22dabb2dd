"""The rules that no batch must break for long: each with its check, its repair and its words.

The sweep, the pages, the metrics and `els explain` read this table, so that they cannot drift
apart. A code has its section in docs/runbook.md and is never renamed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from redis import RedisError

from core import checks, repairs
from core.checks import Check, CheckContext, Finding
from core.repairs import RepairContext


@dataclass(frozen=True)
class Cause:
    """Why a batch is not ready, what the service does about it, and what a person can do.

    The texts of the table name facts in braces; `fill` fills them in.
    """

    code: str
    title: str
    reason: str
    by_itself: str
    command: str
    since: datetime | None = None

    def fill(
        self, since: datetime | None = None, *, step: str | None = None, **facts: object
    ) -> "Cause":
        """Fill the facts into the texts; `step` replaces the command where another one fits."""
        texts = (self.title, self.reason, self.by_itself, self.command)
        title, reason, by_itself, command = (text.format(**facts) for text in texts)
        return Cause(self.code, title, reason, by_itself, step or command, since)


@dataclass(frozen=True, kw_only=True)
class Rule(Cause):
    """A cause that must not stay. Without a repair it is an alarm: a person must act.

    `repair` returns whether it changed anything; somebody else may have been faster. `paged`: the
    check reads some batches at a time, so the sweep remembers its findings.
    """

    command: str = "els reconcile {batch}"
    check: Check
    repair: Callable[[RepairContext, str], bool] | None = None
    paged: bool = False

    def find(self, context: CheckContext) -> list[Finding] | None:
        """Find what breaks the rule; None: Redis does not answer, and this check needs it."""
        try:
            return self.check(context)
        except RedisError:
            return None


UNTIL_THE_DEADLINE = "nothing before the deadline; at the deadline the batch is timed out"
RULES = [
    Rule(
        code="status_wrong",
        title="The status of the batch is not what happened to it",
        reason="somebody changed its row by hand",
        by_itself="the sweep puts back the status that its events and its seal say, in its turn",
        check=checks.status_wrong,
        repair=repairs.restore_status,
        paged=True,
    ),
    Rule(
        code="slot_missing",
        title="A slot of the batch is gone",
        reason="somebody deleted it by hand; its essay id is stored nowhere else",
        by_itself=UNTIL_THE_DEADLINE,
        command="els cancel {batch} --reason WHY",
        check=checks.slot_missing,
        paged=True,
    ),
    Rule(
        code="slot_extra",
        title="The batch has more slots than registered essays",
        reason="somebody inserted slots by hand",
        by_itself=UNTIL_THE_DEADLINE,
        command="els find {batch}",
        check=checks.slot_extra,
        paged=True,
    ),
    Rule(
        code="slot_cancelled",
        title="Single slots of an open batch are cancelled",
        reason="somebody changed them by hand; the service cancels a slot only with its batch",
        by_itself="the sweep gives them back the state that their contents say, in its turn",
        check=checks.slot_cancelled,
        repair=repairs.reopen_slots,
        paged=True,
    ),
    Rule(
        code="counter_wrong",
        title="The counter of open slots differs from the slots",
        reason="a row was changed by hand, or restored from a backup",
        by_itself="the sweep counts the slots of the batch again, in its turn",
        check=checks.counter_wrong,
        repair=repairs.recount,
        paged=True,
    ),
    Rule(
        code="pending_though_registered",
        title="Contents wait although the batch is registered",
        reason="a row was written by hand, or restored from a backup",
        by_itself="the sweep gives them their slots within seconds",
        check=checks.by_query("pending_though_registered"),
        repair=repairs.drain,
    ),
    Rule(
        code="full_not_announced",
        title="All slots are accounted for, but the batch was not announced",
        reason="its seal is under way, or the worker that sealed it died before it announced it",
        by_itself="the sweep seals and announces it within seconds",
        check=checks.by_query("full_not_announced"),
        repair=repairs.announce,
    ),
    Rule(
        code="slot_drift",
        title="Redis offers other slots than Postgres has open",
        reason="Redis was flushed or restored, or a worker died between claim and commit",
        by_itself="the next content of the batch, or the sweep, rebuilds Redis from Postgres",
        check=checks.slot_drift,
        repair=repairs.reseed,
    ),
    Rule(
        code="deadline_never",
        title="The deadline of the batch never comes",
        reason="somebody changed it by hand; a deadline is at most ten years away",
        by_itself="the sweep sets it to a day from now, within seconds",
        check=checks.by_query("deadline_never"),
        repair=repairs.bring_deadline_near,
    ),
    Rule(
        code="deadline_passed",
        title="The deadline has passed",
        reason="contents, or the confirmation of students, did not come in time",
        by_itself="the sweep times the batch out, or proceeds with what is there, within seconds",
        check=checks.by_query("deadline_passed"),
        repair=repairs.time_out,
    ),
    Rule(
        code="event_missing",
        title="The outbox lacks an event of the batch",
        reason="somebody deleted it by hand, so nobody can tell whether it was delivered",
        by_itself="the sweep writes it again, with the same id, in its turn",
        check=checks.event_missing,
        repair=repairs.post_missing,
        paged=True,
    ),
    Rule(
        code="event_not_delivered",
        title="An event of the batch has not been delivered",
        reason="the broker did not take it, or no worker relays",
        by_itself="the sweep and beat's relay try again",
        command="els outbox list",
        check=checks.by_query("event_not_delivered"),
        repair=repairs.relay,
    ),
    Rule(
        code="dead_letter_waiting",
        title="The service could not carry out a message for the batch",
        reason="its sender must correct it, or somebody must mend its cause",
        by_itself="nothing: a person must replay or discard it",
        command="els dead-letters list --batch {batch}",
        check=checks.by_query("dead_letter_waiting"),
    ),
    Rule(
        code="pending_not_registered",
        title="Contents wait for a batch that nobody has registered",
        reason="the registration is late, got lost, or is a dead letter",
        by_itself="they get their slots when the batch is registered",
        command="els dead-letters list --task els.register_batch",
        check=checks.by_query("pending_not_registered"),
    ),
]
