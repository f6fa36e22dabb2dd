"""The checks: each finds the batches that break one rule of `core/rules.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import LiteralString, cast

from psycopg.rows import DictRow
from redis import RedisError

from core import db
from core.db.connection import Conn, sql, statements
from core.slots import Slots
from core.states import OPEN

PAGE = 200  # findings of one check
DRIFT_PAGE = 2_000  # open batches compared with Redis by one sweep; the next one goes on from there
AUDIT_PAGE = 2_000  # batches compared with their events by one sweep
COUNTED_SLOTS = 20_000  # slots counted by one sweep, of at most `DRIFT_PAGE` batches
KNOWN = 1_000  # batches that no sweep could repair so far, checked again by each one
RELAY_GRACE = timedelta(seconds=10)  # for the relay after a commit, and for beat's
CURSOR = "els:sweep:cursor"  # the last open batch that was compared with Redis
COUNTED = "els:sweep:counted"  # the last open batch whose slots were counted
AUDITED = "els:sweep:audited"  # the last batch that was compared with its events
# What no sweep has tried to repair comes first, so a page of hopeless findings hides no other one.
CHOSEN: LiteralString = """
    SELECT broken.* FROM ({}) broken
    LEFT JOIN unmended u ON u.batch_id = broken.batch_id AND u.rule = %(code)s
    WHERE %(batch)s::text IS NULL OR broken.batch_id = %(batch)s
    ORDER BY u.tried_at NULLS FIRST, broken.since LIMIT %(limit)s
"""
QUERIES = statements(sql("rules"), "-- rule: ")


@dataclass(frozen=True)
class Finding:
    """A batch that breaks a rule, since when, and what is known of it."""

    batch_id: str
    since: datetime | None
    detail: str | None = None


@dataclass
class Shared:
    """What checks that run one after the other read once for all of them."""

    pages: dict[str, list[str]] = field(default_factory=dict)  # by the key of their cursor
    accounts: dict[str, DictRow] = field(default_factory=dict)
    repaired: set[str] = field(default_factory=set)

    def forget(self, batch_id: str) -> None:
        """Let the checks that are still to come read a repaired batch again."""
        self.accounts.pop(batch_id, None)
        self.repaired.add(batch_id)


@dataclass(frozen=True)
class CheckContext:
    """Where a check looks. `batch` None: at all batches, for `limit` findings at most.

    `moves_on` lets the next check of all batches start where this one ended; only the sweep does
    so.
    """

    conn: Conn
    slots: Slots
    batch: str | None = None
    limit: int = PAGE
    moves_on: bool = False
    shared: Shared = field(default_factory=Shared)


Check = Callable[[CheckContext], list[Finding]]


def by_query(code: str, query: LiteralString | None = None, **values: object) -> Check:
    """Make the check of a rule that one query answers: that of `rules.sql`, or another one."""
    chosen = CHOSEN.format(query or QUERIES[code])

    def check(context: CheckContext) -> list[Finding]:
        parameters = {
            "code": code,
            "batch": context.batch,
            "limit": context.limit,
            "grace": RELAY_GRACE,
            "furthest": db.batches.FURTHEST_DEADLINE,
            **values,
        }
        return [Finding(**row) for row in context.conn.execute(chosen, parameters)]

    return check


def by_accounts(code: str, detail: str, broken: Callable[[DictRow], bool]) -> Check:
    """Make the check of a rule that the counter and the slots of an open batch answer.

    All batches are a page of those that await contents. `detail` names columns of the accounts.
    """

    def check(context: CheckContext) -> list[Finding]:
        batches, accounts = _batches(context, code, COUNTED), context.shared.accounts
        if unread := [batch_id for batch_id in batches if batch_id not in accounts]:
            accounts |= db.completion.accounts(context.conn, unread)
        found = [accounts[batch_id] for batch_id in batches if batch_id in accounts]
        return [
            Finding(each["batch_id"], None, detail.format(**each))
            for each in found
            if each["status"] in OPEN and broken(each)
        ]

    return check


slot_missing = by_accounts(
    "slot_missing",
    "{slots} of {expected_count} slots are there",
    lambda each: each["slots"] < each["expected_count"],
)
slot_extra = by_accounts(
    "slot_extra",
    "{slots} slots for {expected_count} essays",
    lambda each: each["slots"] > each["expected_count"],
)
slot_cancelled = by_accounts(
    "slot_cancelled",
    "{cancelled} of {slots} slots are cancelled",
    lambda each: each["cancelled"] > 0,
)
# Where a slot is missing, extra or cancelled, the count of open slots says nothing.
counter_wrong = by_accounts(
    "counter_wrong",
    "the counter says {available_slots}, {open} are open",
    lambda each: (
        each["available_slots"] != each["open"]
        and each["slots"] == each["expected_count"]
        and not each["cancelled"]
    ),
)


def status_wrong(context: CheckContext) -> list[Finding]:
    """Find batches with a status that their events, their seal and their moments contradict."""
    batches = _batches(context, "status_wrong", AUDITED)
    if context.batch is None:
        batches += db.sweep.contradicted(context.conn, context.limit)
    return [
        Finding(row["batch_id"], None, _wrong_status(row))
        for row in db.sweep.wrong_statuses(context.conn, batches)
    ]


def event_missing(context: CheckContext) -> list[Finding]:
    """Find batches that are sealed, or ready, without the event about it."""
    batches = _batches(context, "event_missing", AUDITED)
    return [
        Finding(row["batch_id"], row["since"], ", ".join(row["types"]))
        for row in db.outbox.missing_events(context.conn, batches)
    ]


def slot_drift(context: CheckContext) -> list[Finding]:
    """Compare the free slots in Redis with the open ones in Postgres.

    All batches are a page of open ones, so that a sweep stays short. The check takes a closer look
    only where the two numbers differ: where one free slot is wrong, the content that claims it
    rebuilds the set. Raises redis.RedisError.
    """
    if context.batch is not None:
        return _drifts(context, [context.batch])
    client = context.slots.client
    after = cast("str | None", client.get(CURSOR)) or ""
    page = db.sweep.open_batches(context.conn, after, DRIFT_PAGE)
    free = context.slots.free_counts([batch_id for batch_id, _ in page])
    suspects = [batch for (batch, slots), n in zip(page, free, strict=True) if n != slots]
    found = _drifts(context, suspects)
    if context.moves_on:
        last = page[-1][0] if len(page) == DRIFT_PAGE else ""  # after the last page, start again
        client.set(CURSOR, found[-1].batch_id if len(found) == context.limit else last)
    return found


def _drifts(context: CheckContext, batches: list[str]) -> list[Finding]:
    details = ((batch_id, _drift(context, batch_id)) for batch_id in batches)
    found = (Finding(batch_id, None, detail) for batch_id, detail in details if detail)
    return [*islice(found, context.limit)]


def _drift(context: CheckContext, batch_id: str) -> str | None:
    free, claimed = context.slots.free(batch_id), context.slots.recent_claims(batch_id)
    is_open = set(db.slots.open_slots(context.conn, batch_id))
    missing, stale = is_open - free - claimed, free - is_open  # a recent claim may still commit
    if not missing and not stale:
        return None
    said = [f"{len(missing)} open and not offered"] if missing else []
    return ", ".join([*said, *([f"{len(stale)} offered and not open"] if stale else [])])


def _wrong_status(row: DictRow) -> str:
    status, true_status = row["status"], row["true_status"]
    if status != true_status:
        return f"it is {status}, and must be {true_status}"
    return f"it is {status}, but its moments, its seal or its counter say otherwise"


def _batches(context: CheckContext, code: str, cursor: str) -> list[str]:
    """Name the one batch; else a page, what this round repaired, and what broke the rule before."""
    if context.batch is not None:
        return [context.batch]
    shared = context.shared
    if cursor not in shared.pages:
        shared.pages[cursor] = _next_page(context, cursor)
    known = db.sweep.unmended_by(context.conn, code, KNOWN)
    return sorted({*shared.pages[cursor], *shared.repaired, *known})


def _next_page(context: CheckContext, cursor: str) -> list[str]:
    """Choose the batches after those of the last sweep; the first ones while Redis is away."""
    client = context.slots.client
    try:
        page = _page(context.conn, cursor, cast("str | None", client.get(cursor)) or "")
        if context.moves_on:
            client.set(cursor, page[-1] if page else "")
    except RedisError:
        return _page(context.conn, cursor, "")
    return page


def _page(conn: Conn, cursor: str, after: str) -> list[str]:
    if cursor == COUNTED:
        return db.sweep.page_to_count(conn, after, DRIFT_PAGE, COUNTED_SLOTS)
    return db.sweep.page_of_all(conn, after, AUDIT_PAGE)
