"""The sweep: checks every rule, repairs what breaks one, and checks it again.

A repair that raised or did not help is remembered. From the second time in a row on, the sweep
reports it, and tries it less and less often.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from psycopg import Error as PostgresError
from psycopg.errors import RaiseException

from core import db, tracing
from core.checks import KNOWN, PAGE, CheckContext, Finding, Shared
from core.crash import crashpoint
from core.db.connection import Conn
from core.db.sweep import HOPELESS, Unmended
from core.errors import ELSError
from core.faults import Fault, describe, fault, server_message
from core.repairs import RepairContext
from core.rules import RULES, Rule
from core.slots import Slots

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SweepResult:
    """What one sweep found: by which rule, whether it was mended, and else the last error."""

    rule: str
    finding: Finding
    mended: bool
    error: str | None = None
    failures: int = 0


def sweep(
    context: RepairContext,
    batch: str | None = None,
    rules: Sequence[Rule] = RULES,
    *,
    dry_run: bool = False,
    at_once: bool = False,
) -> list[SweepResult] | None:
    """Find what breaks a rule, in one batch or in all, and repair it; None: another sweep runs.

    A batch that cannot be repaired hinders no other one: what did not help twice is tried less and
    less often, unless `at_once` or one batch is asked for. A bug in a repair is raised at the end.
    """
    pool = context.lifecycle.pool
    with pool.connection() as holding, db.sweep.lock(holding) as ours:
        if not ours:
            return None
        with pool.connection() as conn:
            known = db.sweep.unmended(conn, batch, KNOWN)
            at_once = at_once or batch is not None
            sweeping = _Sweep(conn, holding, context, batch, known, dry_run, at_once)
            found = [result for rule in rules for result in sweeping.run(rule)]
    if sweeping.bugs:
        raise sweeping.bugs[0]
    return found


@dataclass
class _Sweep:
    conn: Conn
    holding: Conn  # the connection that holds the lock
    context: RepairContext
    batch: str | None
    known: dict[tuple[str, str], Unmended]
    dry_run: bool
    at_once: bool
    shared: Shared = field(default_factory=Shared)
    bugs: list[Exception] = field(default_factory=list)

    @property
    def slots(self) -> Slots:
        return self.context.lifecycle.slots

    def run(self, rule: Rule) -> list[SweepResult]:
        moves_on = self.batch is None and not self.dry_run
        db.sweep.keep(self.holding)
        found = rule.find(
            CheckContext(self.conn, self.slots, self.batch, PAGE, moves_on, self.shared)
        )
        if found is None:
            log.warning("check_failed", rule=rule.code, error="Redis does not answer")
        results = [self._settle(rule, each) for each in found or []]
        self._forget_mended(rule, results)
        return results

    def _settle(self, rule: Rule, finding: Finding) -> SweepResult:
        """Repair a finding if that can help now; remember what a person must repair."""
        known = self.known.get((finding.batch_id, rule.code))
        left = SweepResult(rule.code, finding, mended=False)
        if known is not None:
            left = SweepResult(rule.code, finding, False, known.last_error, known.failures)
        if self.dry_run:
            return left
        if rule.repair is None:
            if rule.paged and known is None:
                db.sweep.note_alarm(self.conn, finding.batch_id, rule.code)
            return left
        if known is not None and known.waits and not self.at_once:
            return left
        db.sweep.keep(self.holding)
        crashpoint("sweeping")
        return self._repair(rule, finding)

    def _repair(self, rule: Rule, finding: Finding) -> SweepResult:
        """Repair one finding and check again; not mended also where somebody else was faster."""
        batch_id = finding.batch_id
        assert rule.repair is not None
        try:
            with tracing.span(f"sweep {rule.code}", batch_id=batch_id):
                changed = rule.repair(self.context, batch_id)
                still = rule.check(CheckContext(self.conn, self.slots, batch_id))
        except Exception as raised:  # noqa: BLE001 - one batch must not keep the others from the sweep
            return self._raised(rule, finding, raised)
        self.shared.forget(batch_id)
        if still:
            error = f"after the repair: {still[0].detail or rule.code}"
            return self._did_not_help(rule, finding, error)
        if not changed:
            return SweepResult(rule.code, finding, mended=False)
        db.sweep.note_repair(self.conn, batch_id, rule.code)
        log.warning("repaired", rule=rule.code, batch_id=batch_id, detail=finding.detail)
        return SweepResult(rule.code, finding, mended=True)

    def _raised(self, rule: Rule, finding: Finding, raised: Exception) -> SweepResult:
        """Count an error as a failure of this repair, unless it is a server's and will pass."""
        text = server_message(raised)
        if _is_the_servers(raised):
            log.exception("repair_failed", rule=rule.code, batch_id=finding.batch_id)
            return SweepResult(rule.code, finding, False, text)
        if not isinstance(raised, (PostgresError, ELSError)):
            self.bugs.append(raised)
        return self._did_not_help(rule, finding, text, raised)

    def _did_not_help(
        self, rule: Rule, finding: Finding, error: str, raised: Exception | None = None
    ) -> SweepResult:
        """Remember a failure; log the first one, and the one that makes it hopeless."""
        failures = db.sweep.note_failure(self.conn, finding.batch_id, rule.code, error)
        shown = describe(raised) if raised else error
        fields = {"rule": rule.code, "batch_id": finding.batch_id, "error": shown}
        if failures == 1:
            log.warning("repair_failed", **fields, exc_info=raised)
        elif failures == HOPELESS:
            log.error("not_mending_itself", **fields, failures=failures)
        return SweepResult(rule.code, finding, False, error, failures)

    def _forget_mended(self, rule: Rule, results: list[SweepResult]) -> None:
        """Forget earlier findings that no longer break the rule."""
        if self.dry_run:
            return
        broken = {each.finding.batch_id for each in results if not each.mended}
        for batch_id, code in self.known:
            if code == rule.code and batch_id not in broken:
                still = rule.find(CheckContext(self.conn, self.slots, batch_id))
                if still == []:
                    db.sweep.forget_unmended(self.conn, batch_id, code)


def _is_the_servers(raised: Exception) -> bool:
    if isinstance(raised, (ELSError, RaiseException)):  # a trigger raises for this batch's row
        return False
    return fault(raised) in (Fault.CONTENTION, Fault.ENVIRONMENT)
