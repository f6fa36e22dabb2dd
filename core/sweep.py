"""The sweep: named rules for what must not stay as it is, and how each is mended.

The pages, the metrics, `els explain` and the repairs all read this one list, so that they cannot
drift apart. A rule without a repair is an alarm: a person must act.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import structlog
from psycopg import Error as PostgresError
from redis import RedisError

from core import ledger, outbox, tracing
from core.crash import crashpoint
from core.errors import BrokenSeal, SlotsInFlight
from core.ledger import Conn
from core.lifecycle import Lifecycle
from core.slots import Slots

PAGE = 200  # batches mended for one rule by one sweep
DRIFT_PAGE = 2_000  # open batches looked at closely by one sweep; the next one goes on from there
RELAY_GRACE = timedelta(seconds=10)  # what the relay after a commit, and beat's, get to deliver
PENDING_PATIENCE = timedelta(hours=1)  # how long contents may wait for a registration, unremarked
COUNTED_SLOTS = 20_000  # slots counted by one sweep, at most of so many batches
CURSOR = "els:sweep:cursor"  # the last open batch that was held against Redis
OFFSETS = "els:sweep:offsets"  # hash: rule -> findings that the next sweep passes over
COUNTED = "els:sweep:counted"  # the last open batch whose slots were counted

SECTIONS = (Path(__file__).parent / "sql" / "rules.sql").read_text().split("-- rule: ")[1:]
QUERIES = {section.split("\n", 1)[0]: section.split("\n", 1)[1] for section in SECTIONS}
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Finding:
    """A batch that breaks a rule, since when, and what is known of it."""

    batch_id: str
    since: datetime | None
    detail: str | None = None


@dataclass(frozen=True)
class Look:
    """Where a rule looks. `batch` None: at all of them, at most `limit` findings.

    `moves_on` lets the next look at all of them start where this one ended; the sweep does so.
    `offset` passes over the oldest, which the last sweeps could not mend.
    """

    conn: Conn
    slots: Slots
    batch: str | None = None
    limit: int = PAGE
    moves_on: bool = False
    offset: int = 0


@dataclass(frozen=True)
class Mender:
    """What repairs work with."""

    lifecycle: Lifecycle
    send: outbox.Send


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
    check: Callable[[Look], list[Finding]]
    repair: Callable[[Mender, str], bool] | None = None


@dataclass(frozen=True)
class Found:
    """What one sweep found: by which rule, and whether it was mended."""

    rule: str
    finding: Finding
    mended: bool


def _in_ledger(name: str) -> Callable[[Look], list[Finding]]:
    """Make the check of a rule that Postgres alone can answer."""

    def check(look: Look) -> list[Finding]:
        wanted = {
            "batch": look.batch,
            "limit": look.limit,
            "offset": look.offset,
            "grace": RELAY_GRACE,
            "patience": PENDING_PATIENCE,
        }
        return [Finding(**row) for row in look.conn.execute(QUERIES[name], wanted)]

    return check


def counter_wrong(look: Look) -> list[Finding]:
    """Count the open slots of one batch, or of a page of open ones, against its counter."""
    if look.batch is not None:
        counts = ledger.open_counts(look.conn, look.batch)
    else:
        after = cast("str | None", look.slots.client.get(COUNTED)) or ""
        counts = ledger.open_counts(look.conn, None, after, DRIFT_PAGE, COUNTED_SLOTS)
        if look.moves_on:
            look.slots.client.set(COUNTED, counts[-1].batch_id if counts else "")
    return [
        Finding(c.batch_id, None, f"the counter says {c.available_slots}, {c.open} are open")
        for c in counts
        if c.available_slots != c.open
    ]


def slot_drift(look: Look) -> list[Finding]:
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
    page = ledger.open_batches(look.conn, after, DRIFT_PAGE)
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
            last = ""  # it was the last page: begin anew
    if look.moves_on:
        client.set(CURSOR, last)
    return findings


def _difference(look: Look, batch_id: str) -> str | None:
    """Name what Redis lacks and what it has in vain; claims on their way are no difference."""
    free, claimed = look.slots.free(batch_id), look.slots.recent_claims(batch_id)
    is_open = set(ledger.open_slots(look.conn, batch_id))
    missing, stale = is_open - free - claimed, free - is_open
    if not missing and not stale:
        return None
    return f"{len(missing)} open slots are not offered, {len(stale)} offered ones are not open"


def _recount(mender: Mender, batch_id: str) -> bool:
    with ledger.transaction(mender.lifecycle.pool) as conn:
        return ledger.recount(conn, batch_id)


def _announce(mender: Mender, batch_id: str) -> bool:
    return bool(mender.lifecycle.complete(batch_id).value["outcome"] == "announced")


def _drain(mender: Mender, batch_id: str) -> bool:
    mender.lifecycle.drain(batch_id)
    return True


def _reseed(mender: Mender, batch_id: str) -> bool:
    with mender.lifecycle.pool.connection() as conn:
        open_slots = ledger.open_slots(conn, batch_id)
    if open_slots:
        mender.lifecycle.slots.seed(batch_id, open_slots)
    else:
        mender.lifecycle.slots.close([batch_id])
    return True


def _time_out(mender: Mender, batch_id: str) -> bool:
    return bool(mender.lifecycle.time_out(batch_id).value["outcome"] != "not_due")


def _relay(mender: Mender, batch_id: str) -> bool:
    return outbox.relay(mender.lifecycle.pool, [batch_id], mender.send) > 0


RULES = [
    Rule(
        code="counter_wrong",
        title="The counter of open slots differs from the slots",
        reason="a row was changed by hand, or restored from a backup",
        by_itself="the sweep counts the slots of the batch anew, in its turn",
        command="els reconcile {batch}",
        check=counter_wrong,
        repair=_recount,
    ),
    Rule(
        code="pending_though_registered",
        title="Contents wait although the batch is registered",
        reason="a row was written by hand, or restored from a backup",
        by_itself="the sweep gives them their slots within seconds",
        command="els reconcile {batch}",
        check=_in_ledger("pending_though_registered"),
        repair=_drain,
    ),
    Rule(
        code="full_not_announced",
        title="All slots are accounted for, but the batch was not announced",
        reason="the completion chord is under way, or a worker died before its callback ran",
        by_itself="the sweep seals and announces it within seconds",
        command="els reconcile {batch}",
        check=_in_ledger("full_not_announced"),
        repair=_announce,
    ),
    Rule(
        code="slot_drift",
        title="Redis and Postgres disagree on the free slots",
        reason="Redis was flushed or restored, or a worker died between claim and commit",
        by_itself="the next content of the batch, or the sweep, rebuilds Redis from Postgres",
        command="els reconcile {batch}",
        check=slot_drift,
        repair=_reseed,
    ),
    Rule(
        code="deadline_passed",
        title="The deadline has passed",
        reason="contents, or the confirmation of students, did not come in time",
        by_itself="the sweep times the batch out, or proceeds with what is there, within seconds",
        command="els reconcile {batch}",
        check=_in_ledger("deadline_passed"),
        repair=_time_out,
    ),
    Rule(
        code="event_not_delivered",
        title="An event of the batch has not been delivered",
        reason="the broker did not take it, or no worker relays",
        by_itself="the sweep and beat's relay try again every few seconds",
        command="els outbox list",
        check=_in_ledger("event_not_delivered"),
        repair=_relay,
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


def sweep(mender: Mender, batch: str | None = None, *, dry_run: bool = False) -> list[Found] | None:
    """Find what breaks a rule, in one batch or in all, and mend it; None: another sweep is at it.

    A batch that cannot be mended is logged as an error and hinders no other one.
    """
    lifecycle = mender.lifecycle
    with lifecycle.pool.connection() as conn, _sweep_lock(conn) as ours:
        if not ours:
            return None
        moves_on = batch is None and not dry_run
        offsets = _offsets(lifecycle.slots) if moves_on else {}
        found = []
        for rule in RULES:
            offset = offsets.get(rule.code, 0)
            look = Look(conn, lifecycle.slots, batch, PAGE, moves_on, offset)
            page = [
                Found(rule.code, finding, not dry_run and _mend(conn, rule, mender, finding))
                for finding in _check(rule, look)
            ]
            found += page
            unmended = sum(not each.mended for each in page)
            offsets[rule.code] = offset + unmended if len(page) == PAGE else 0
        if moves_on:
            _keep_offsets(lifecycle.slots, offsets)
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


def _check(rule: Rule, look: Look) -> list[Finding]:
    """Look for what breaks a rule; without Redis, the rules that do not need it go on."""
    try:
        return rule.check(look)
    except RedisError:
        log.exception("check_failed", rule=rule.code)
        return []


def _mend(conn: Conn, rule: Rule, mender: Mender, finding: Finding) -> bool:
    """Mend one finding; False where only a person can, where it failed, or nothing was left."""
    if rule.repair is None:
        return False
    crashpoint("sweeping")
    try:
        with tracing.span(f"sweep {rule.code}", batch_id=finding.batch_id):
            if not rule.repair(mender, finding.batch_id):
                return False
    except (BrokenSeal, SlotsInFlight, PostgresError, RedisError):
        log.exception("repair_failed", rule=rule.code, batch_id=finding.batch_id)
        return False
    ledger.note_repair(conn, finding.batch_id, rule.code)
    log.warning("repaired", rule=rule.code, batch_id=finding.batch_id, detail=finding.detail)
    return True


@contextmanager
def _sweep_lock(conn: Conn) -> Iterator[bool]:
    """Let one sweep run at a time; give False to the others."""
    ours = ledger.try_sweep_lock(conn)
    try:
        yield ours
    finally:
        if ours:
            ledger.free_sweep_lock(conn)
