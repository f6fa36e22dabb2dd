"""The sweep: named rules for what must not stay as it is, and how each is mended.

The pages, the metrics, `els explain` and the repairs all read this one list, so that they cannot
drift apart. A rule without a repair is an alarm: a person must act.

After a repair the same rule looks again. A repair that did not help, or raised, is remembered; from
the second time in a row on it is reported, and tried less and less often.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast

import structlog
from psycopg import Error as PostgresError
from psycopg.rows import DictRow
from redis import RedisError

from core import db, repairs, tracing
from core.crash import crashpoint
from core.db.connection import Conn
from core.db.sweep import HOPELESS, Unmended
from core.errors import ELSError
from core.repairs import RepairContext
from core.slots import Slots
from core.states import BatchStatus

__all__ = [
    "RULES",
    "CheckContext",
    "Finding",
    "RepairContext",
    "Rule",
    "Shared",
    "SweepResult",
    "sweep",
]

PAGE = 200  # batches mended for one rule by one sweep
DRIFT_PAGE = 2_000  # open batches looked at closely by one sweep; the next one goes on from there
AUDIT_PAGE = 2_000  # batches held against their events by one sweep
KNOWN = 1_000  # batches that could not be mended, looked at again by one sweep
RELAY_GRACE = timedelta(seconds=10)  # what the relay after a commit, and beat's, get to deliver
PENDING_PATIENCE = timedelta(hours=1)  # how long contents may wait for a registration, unremarked
COUNTED_SLOTS = 20_000  # slots counted by one sweep, at most of so many batches
CURSOR = "els:sweep:cursor"  # the last open batch that was held against Redis
OFFSETS = "els:sweep:offsets"  # hash: rule -> findings that the next sweep passes over
COUNTED = "els:sweep:counted"  # the last open batch whose slots were counted
AUDITED = "els:sweep:audited"  # the last batch that was held against its events
OPEN = {BatchStatus.AWAITING_CONTENT_VALIDATION, BatchStatus.AWAITING_STUDENT_VALIDATION}
# SQLSTATE classes of an error that lies in the batch. Any other one, and Redis', is the servers':
# it says nothing of the batch, which is tried again by the next sweep.
OF_THE_BATCH = {"21", "22", "23", "44", "P0"}

SECTIONS = db.sql("rules").split("-- rule: ")[1:]
QUERIES = {section.split("\n", 1)[0]: section.split("\n", 1)[1] for section in SECTIONS}
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Finding:
    """A batch that breaks a rule, since when, and what is known of it."""

    batch_id: str
    since: datetime | None
    detail: str | None = None


@dataclass
class Shared:
    """What the rules of one round of looks read once for all of them."""

    counted: list[str] | None = None  # the page of batches whose slots are counted
    audited: list[str] | None = None  # the page of batches that are held against their events
    redis_error: RedisError | None = None  # why no page could be chosen
    books: dict[str, DictRow] = field(default_factory=dict)
    mended: set[str] = field(default_factory=set)

    def forget(self, batch_id: str) -> None:
        """Have a batch that was just mended read again, by the rules that are still to come."""
        self.books.pop(batch_id, None)
        self.mended.add(batch_id)


@dataclass(frozen=True)
class CheckContext:
    """Where a rule looks. `batch` None: at all of them, at most `limit` findings.

    `moves_on` lets the next look at all of them start where this one ended; the sweep does so.
    `offset` passes over the oldest, which the last sweeps could not mend. `shared` is of all rules
    that look one after the other.
    """

    conn: Conn
    slots: Slots
    batch: str | None = None
    limit: int = PAGE
    moves_on: bool = False
    offset: int = 0
    shared: Shared | None = None


@dataclass(frozen=True)
class Rule:
    """Something that must not stay: why it can be, what the service does, what a person could.

    `repair` tells whether it changed anything; another hand may have been faster.
    """

    code: str
    title: str
    reason: str
    by_itself: str
    command: str
    check: Callable[[CheckContext], list[Finding]]
    repair: Callable[[RepairContext, str], bool] | None = None
    paged: bool = False  # looks at some batches at a time; known findings are remembered


@dataclass(frozen=True)
class SweepResult:
    """What one sweep found: by which rule, whether it was mended, and else the last error."""

    rule: str
    finding: Finding
    mended: bool
    error: str | None = None
    failures: int = 0


def _in_ledger(name: str) -> Callable[[CheckContext], list[Finding]]:
    """Make the check of a rule that Postgres alone can answer."""

    def check(look: CheckContext) -> list[Finding]:
        wanted = {
            "batch": look.batch,
            "limit": look.limit,
            "offset": look.offset,
            "grace": RELAY_GRACE,
            "patience": PENDING_PATIENCE,
            "furthest": db.batches.FURTHEST_DEADLINE,
        }
        return [Finding(**row) for row in look.conn.execute(QUERIES[name], wanted)]

    return check


def _page(look: CheckContext, key: str, choose: Callable[[str], list[str]]) -> list[str]:
    """Choose the next batches to look at, after those that the last sweep looked at."""
    client = look.slots.client
    page = choose(cast("str | None", client.get(key)) or "")
    if look.moves_on:
        client.set(key, page[-1] if page else "")
    return page


def _counted(look: CheckContext, shared: Shared) -> list[str]:
    """Choose the batches whose slots are counted; without Redis, the first ones."""
    if shared.counted is None:

        def choose(after: str) -> list[str]:
            return db.sweep.page_to_count(look.conn, after, DRIFT_PAGE, COUNTED_SLOTS)

        try:
            shared.counted = _page(look, COUNTED, choose)
        except RedisError as error:
            shared.counted, shared.redis_error = choose(""), error
    return shared.counted


def _audited(look: CheckContext, shared: Shared) -> list[str]:
    """Choose the batches that are held against their events; without Redis, the first ones."""
    if shared.audited is None:

        def choose(after: str) -> list[str]:
            return db.sweep.page_of_all(look.conn, after, AUDIT_PAGE)

        try:
            shared.audited = _page(look, AUDITED, choose)
        except RedisError:
            shared.audited = choose("")
    return shared.audited


def _books(look: CheckContext, rule: str, shared: Shared) -> list[DictRow]:
    """Read the accounts of one open batch, or of a page of those that await contents.

    Also of those that this rule found before, and that a rule before this one has just mended.
    """
    wanted = [look.batch] if look.batch is not None else _counted(look, shared)
    if look.batch is None:
        wanted = sorted({*wanted, *shared.mended, *db.sweep.unmended_by(look.conn, rule, KNOWN)})
    if unread := [batch_id for batch_id in wanted if batch_id not in shared.books]:
        shared.books |= db.completion.accounts(look.conn, unread)
    read = (shared.books.get(batch_id) for batch_id in wanted)
    return [each for each in read if each is not None and each["status"] in OPEN]


def counter_wrong(look: CheckContext) -> list[Finding]:
    """Hold the counter of one batch, or of a page of open ones, against its open slots.

    Not where the slots are wrong themselves, which other rules find: such a count says nothing.
    """
    shared = look.shared or Shared()
    books = _books(look, "counter_wrong", shared)
    if shared.redis_error:
        raise shared.redis_error
    return [
        Finding(
            b["batch_id"], None, f"the counter says {b['available_slots']}, {b['open']} are open"
        )
        for b in books
        if b["available_slots"] != b["open"]
        and b["slots"] == b["expected_count"]
        and not b["cancelled"]
    ]


def slot_missing(look: CheckContext) -> list[Finding]:
    """Find batches with fewer slots than essays were registered."""
    return [
        Finding(b["batch_id"], None, f"{b['slots']} of {b['expected_count']} slots are there")
        for b in _books(look, "slot_missing", look.shared or Shared())
        if b["slots"] < b["expected_count"]
    ]


def slot_extra(look: CheckContext) -> list[Finding]:
    """Find batches with more slots than essays were registered."""
    return [
        Finding(b["batch_id"], None, f"{b['slots']} slots for {b['expected_count']} essays")
        for b in _books(look, "slot_extra", look.shared or Shared())
        if b["slots"] > b["expected_count"]
    ]


def slot_cancelled(look: CheckContext) -> list[Finding]:
    """Find open batches of which single slots are cancelled."""
    return [
        Finding(b["batch_id"], None, f"{b['cancelled']} of {b['slots']} slots are cancelled")
        for b in _books(look, "slot_cancelled", look.shared or Shared())
        if b["cancelled"]
    ]


def _suspects(look: CheckContext, rule: str) -> list[str]:
    """Name one batch, or a page of all, and those that this rule found before."""
    if look.batch is not None:
        return [look.batch]
    shared = look.shared or Shared()
    known = db.sweep.unmended_by(look.conn, rule, KNOWN)
    return sorted({*_audited(look, shared), *shared.mended, *known})


def status_wrong(look: CheckContext) -> list[Finding]:
    """Find batches whose status is not what their events, their seal and their moments say."""
    suspects = _suspects(look, "status_wrong")
    if look.batch is None:
        suspects += db.sweep.contradicted(look.conn, look.limit)
    return [
        Finding(row["batch_id"], None, _wrong_status(row))
        for row in db.sweep.wrong_statuses(look.conn, suspects)
    ]


def _wrong_status(row: DictRow) -> str:
    status, true_status = row["status"], row["true_status"]
    if status != true_status:
        return f"it is {status}, and must be {true_status}"
    return f"it is {status}, but its moments, its seal or its counter say otherwise"


def event_missing(look: CheckContext) -> list[Finding]:
    """Find batches that are sealed, or ready, without the event that says so."""
    return [
        Finding(row["batch_id"], row["since"], ", ".join(row["types"]))
        for row in db.outbox.missing_events(look.conn, _suspects(look, "event_missing"))
    ]


def slot_drift(look: CheckContext) -> list[Finding]:
    """Hold the free slots in Redis against the open ones in Postgres.

    One batch is looked at closely, whatever its state. All batches are a page of `DRIFT_PAGE` open
    ones, so that a sweep stays short; of these, one that has as many free slots as open ones is
    not looked at closer: where a free one is wrong, the content that claims it has the set rebuilt.
    """
    if look.batch is not None:
        detail = _difference(look, look.batch)
        return [Finding(look.batch, None, detail)] if detail else []
    client = look.slots.client
    after = cast("str | None", client.get(CURSOR)) or ""
    page = db.sweep.open_batches(look.conn, after, DRIFT_PAGE)
    counts = look.slots.free_counts([batch_id for batch_id, _ in page])
    findings: list[Finding] = []
    last = after
    for (batch_id, available), free in zip(page, counts, strict=True):
        if len(findings) == look.limit:
            break
        if free != available and (detail := _difference(look, batch_id)):
            findings.append(Finding(batch_id, None, detail))
        last = batch_id
    else:
        if len(page) < DRIFT_PAGE:
            last = ""  # it was the last page: start again
    if look.moves_on:
        client.set(CURSOR, last)
    return findings


def _difference(look: CheckContext, batch_id: str) -> str | None:
    """Name what Redis lacks and what it offers wrongly; claims on their way are no difference."""
    free, claimed = look.slots.free(batch_id), look.slots.recent_claims(batch_id)
    is_open = set(db.slots.open_slots(look.conn, batch_id))
    missing, stale = is_open - free - claimed, free - is_open
    if not missing and not stale:
        return None
    return f"{len(missing)} open slots are not offered, {len(stale)} offered ones are not open"


UNTIL_THE_DEADLINE = "nothing before the deadline; at the deadline the batch is timed out"
RULES = [
    Rule(
        code="status_wrong",
        title="The status of the batch is not what happened to it",
        reason="somebody changed its row by hand",
        by_itself="the sweep puts back the status that its events and its seal say, in its turn",
        command="els reconcile {batch}",
        check=status_wrong,
        repair=repairs.restore_status,
        paged=True,
    ),
    Rule(
        code="slot_missing",
        title="A slot of the batch is gone",
        reason="somebody deleted it by hand; its essay id is stored nowhere else",
        by_itself=UNTIL_THE_DEADLINE,
        command="els cancel {batch} --reason WHY",
        check=slot_missing,
        paged=True,
    ),
    Rule(
        code="slot_extra",
        title="The batch has more slots than essays were registered",
        reason="somebody inserted slots by hand",
        by_itself=UNTIL_THE_DEADLINE,
        command="els find {batch}",
        check=slot_extra,
        paged=True,
    ),
    Rule(
        code="slot_cancelled",
        title="Single slots of an open batch are cancelled",
        reason="somebody changed them by hand; the service cancels a slot only with its batch",
        by_itself="the sweep gives them back the state that their contents say, in its turn",
        command="els reconcile {batch}",
        check=slot_cancelled,
        repair=repairs.reopen_slots,
        paged=True,
    ),
    Rule(
        code="counter_wrong",
        title="The counter of open slots differs from the slots",
        reason="a row was changed by hand, or restored from a backup",
        by_itself="the sweep counts the slots of the batch again, in its turn",
        command="els reconcile {batch}",
        check=counter_wrong,
        repair=repairs.recount,
        paged=True,
    ),
    Rule(
        code="pending_though_registered",
        title="Contents wait although the batch is registered",
        reason="a row was written by hand, or restored from a backup",
        by_itself="the sweep gives them their slots within seconds",
        command="els reconcile {batch}",
        check=_in_ledger("pending_though_registered"),
        repair=repairs.drain,
    ),
    Rule(
        code="full_not_announced",
        title="All slots are accounted for, but the batch was not announced",
        reason="the completion chord is under way, or a worker died before its callback ran",
        by_itself="the sweep seals and announces it within seconds",
        command="els reconcile {batch}",
        check=_in_ledger("full_not_announced"),
        repair=repairs.announce,
    ),
    Rule(
        code="slot_drift",
        title="Redis and Postgres disagree on the free slots",
        reason="Redis was flushed or restored, or a worker died between claim and commit",
        by_itself="the next content of the batch, or the sweep, rebuilds Redis from Postgres",
        command="els reconcile {batch}",
        check=slot_drift,
        repair=repairs.reseed,
    ),
    Rule(
        code="deadline_never",
        title="The deadline of the batch never comes",
        reason="somebody changed it by hand; a deadline is at most ten years away",
        by_itself="the sweep sets it to a day from now, within seconds",
        command="els reconcile {batch}",
        check=_in_ledger("deadline_never"),
        repair=repairs.bring_deadline_near,
    ),
    Rule(
        code="deadline_passed",
        title="The deadline has passed",
        reason="contents, or the confirmation of students, did not come in time",
        by_itself="the sweep times the batch out, or proceeds with what is there, within seconds",
        command="els reconcile {batch}",
        check=_in_ledger("deadline_passed"),
        repair=repairs.time_out,
    ),
    Rule(
        code="event_missing",
        title="The outbox lacks an event of the batch",
        reason="somebody deleted it by hand, so nobody can tell whether it was delivered",
        by_itself="the sweep writes it again, with the same id, in its turn",
        command="els reconcile {batch}",
        check=event_missing,
        repair=repairs.post_missing,
        paged=True,
    ),
    Rule(
        code="event_not_delivered",
        title="An event of the batch has not been delivered",
        reason="the broker did not take it, or no worker relays",
        by_itself="the sweep and beat's relay try again every few seconds",
        command="els outbox list",
        check=_in_ledger("event_not_delivered"),
        repair=repairs.relay,
    ),
    Rule(
        code="dead_letter_waiting",
        title="A message for the batch could not be carried out",
        reason="its sender must correct it, or its cause must be mended",
        by_itself="nothing: a person must replay or discard it",
        command="els dead-letters list --batch {batch}",
        check=_in_ledger("dead_letter_waiting"),
    ),
    Rule(
        code="pending_not_registered",
        title="Contents wait for a batch that nobody has registered",
        reason="the registration is late, got lost, or is a dead letter",
        by_itself="they get their slots when the batch is registered",
        command="els dead-letters list --task els.register_batch",
        check=_in_ledger("pending_not_registered"),
    ),
]


@dataclass
class _Round:
    """One sweep under way."""

    conn: Conn
    mender: RepairContext
    known: dict[tuple[str, str], Unmended]
    dry_run: bool
    at_once: bool
    shared: Shared = field(default_factory=Shared)
    bugs: list[Exception] = field(default_factory=list)


def sweep(
    mender: RepairContext, batch: str | None = None, *, dry_run: bool = False, at_once: bool = False
) -> list[SweepResult] | None:
    """Find what breaks a rule, in one batch or in all, and mend it; None: another sweep is at it.

    A batch that cannot be mended hinders no other one: what did not help twice is tried less and
    less often, unless `at_once` or one batch is asked for. An error that is a bug of a repair is
    raised once everything else is done.
    """
    lifecycle = mender.lifecycle
    with lifecycle.pool.connection() as conn, _sweep_lock(conn) as ours:
        if not ours:
            return None
        moves_on = batch is None and not dry_run
        offsets = _offsets(lifecycle.slots) if moves_on else {}
        known = db.sweep.unmended(conn, batch, KNOWN)
        round_ = _Round(conn, mender, known, dry_run, at_once or batch is not None)
        found = []
        for rule in RULES:
            offset = offsets.get(rule.code, 0)
            look = CheckContext(conn, lifecycle.slots, batch, PAGE, moves_on, offset, round_.shared)
            page = [_deal_with(round_, rule, finding) for finding in _check(rule, look)]
            _forget_mended(round_, rule, page)
            found += page
            unmended = sum(not each.mended for each in page)
            offsets[rule.code] = offset + unmended if len(page) == PAGE else 0
        if moves_on:
            _keep_offsets(lifecycle.slots, offsets)
        if round_.bugs:
            raise round_.bugs[0]
        return found


def _offsets(slots: Slots) -> dict[str, int]:
    """Read how many batches, that could not be mended, each rule passes over this time."""
    try:
        kept = cast("dict[str, str]", slots.client.hgetall(OFFSETS))
    except RedisError:
        return {}
    return {code: int(offset) for code, offset in kept.items()}


def _keep_offsets(slots: Slots, offsets: dict[str, int]) -> None:
    with suppress(RedisError):  # then the next sweep begins with the oldest
        slots.client.hset(OFFSETS, mapping=dict(offsets.items()))


def _check(rule: Rule, look: CheckContext) -> list[Finding]:
    """Look for what breaks a rule; without Redis, the rules that do not need it go on."""
    try:
        return rule.check(look)
    except RedisError:
        log.exception("check_failed", rule=rule.code)
        return []


def _deal_with(round_: _Round, rule: Rule, finding: Finding) -> SweepResult:
    """Mend a finding if that can help now; remember what a person must mend."""
    known = round_.known.get((finding.batch_id, rule.code))
    left = SweepResult(rule.code, finding, mended=False)
    if known is not None:
        left = SweepResult(rule.code, finding, False, known.last_error, known.failures)
    if round_.dry_run:
        return left
    if rule.repair is None:
        if rule.paged and known is None:
            db.sweep.note_alarm(round_.conn, finding.batch_id, rule.code)
        return left
    if known is not None and known.waits and not round_.at_once:
        return left
    crashpoint("sweeping")
    return _mend(round_, rule, finding)


def _mend(round_: _Round, rule: Rule, finding: Finding) -> SweepResult:
    """Mend one finding, and look whether that helped; False also where another hand was faster."""
    batch_id = finding.batch_id
    assert rule.repair is not None
    try:
        with tracing.span(f"sweep {rule.code}", batch_id=batch_id):
            changed = rule.repair(round_.mender, batch_id)
            error = _still_broken(round_, rule, batch_id)
    except Exception as raised:  # noqa: BLE001 - one batch must not keep the others from the sweep
        return _repair_failed(round_, rule, finding, raised)
    round_.shared.forget(batch_id)
    if error is not None:
        return _did_not_help(round_, rule, finding, error)
    if not changed:
        return SweepResult(rule.code, finding, mended=False)
    db.sweep.note_repair(round_.conn, batch_id, rule.code)
    log.warning("repaired", rule=rule.code, batch_id=batch_id, detail=finding.detail)
    return SweepResult(rule.code, finding, mended=True)


def _still_broken(round_: _Round, rule: Rule, batch_id: str) -> str | None:
    """Look again after a repair; say what is still wrong."""
    findings = rule.check(CheckContext(round_.conn, round_.mender.lifecycle.slots, batch_id))
    if not findings:
        return None
    return f"after the repair: {findings[0].detail or rule.title}"


def _repair_failed(round_: _Round, rule: Rule, finding: Finding, raised: Exception) -> SweepResult:
    """Tell an error of the servers, which will pass, from one that lies in the batch or in us."""
    text = f"{type(raised).__name__}: {raised}"
    if isinstance(raised, RedisError) or (
        isinstance(raised, PostgresError) and (raised.sqlstate or "")[:2] not in OF_THE_BATCH
    ):
        log.exception("repair_failed", rule=rule.code, batch_id=finding.batch_id)
        return SweepResult(rule.code, finding, False, text)
    if not isinstance(raised, (PostgresError, ELSError)):
        round_.bugs.append(raised)
    return _did_not_help(round_, rule, finding, text, raised)


def _did_not_help(
    round_: _Round, rule: Rule, finding: Finding, error: str, raised: Exception | None = None
) -> SweepResult:
    """Remember a repair that did not help; log it the first time, and when it is hopeless."""
    batch_id = finding.batch_id
    failures = db.sweep.note_failure(round_.conn, batch_id, rule.code, error)
    told = {"rule": rule.code, "batch_id": batch_id, "error": error}
    if failures == 1:
        log.warning("repair_failed", **told, exc_info=raised)
    elif failures == HOPELESS:
        log.error("not_mending_itself", **told, failures=failures)
    return SweepResult(rule.code, finding, False, error, failures)


def _forget_mended(round_: _Round, rule: Rule, page: list[SweepResult]) -> None:
    """Forget what could not be mended once, and no longer breaks the rule."""
    if round_.dry_run:
        return
    broken = {each.finding.batch_id for each in page if not each.mended}
    for batch_id, code in round_.known:
        if code == rule.code and batch_id not in broken:
            look = CheckContext(round_.conn, round_.mender.lifecycle.slots, batch_id)
            with suppress(RedisError):
                if not rule.check(look):
                    db.sweep.forget_unmended(round_.conn, batch_id, code)


@contextmanager
def _sweep_lock(conn: Conn) -> Iterator[bool]:
    """Let one sweep run at a time; give False to the others."""
    ours = db.sweep.try_sweep_lock(conn)
    try:
        yield ours
    finally:
        if ours:
            db.sweep.free_sweep_lock(conn)
