"""How a stored text or a rejected file gets its slot: one route, for one message or a hundred.

One claim in Redis and one statement in Postgres place everything that is new. Whatever does not
fit (a repeat, a claim that does not hold, a batch that is full, closed or not registered) is
settled message by message, each in a transaction of its own: there Postgres alone decides.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from random import uniform

import structlog
from psycopg import errors as pg
from psycopg_pool import ConnectionPool

from core import db, metrics
from core.catalogue import ESSAY_SLOT_ASSIGNED
from core.crash import crashpoint
from core.db.connection import Conn, Row
from core.errors import IdempotencyConflict, SlotsInFlight
from core.idempotency import is_repeat, replayed
from core.model import Location, Message, StepResult, Submission
from core.slots import Claim, Slots
from core.states import ExcessReason

ROUNDS = 4  # claims that Postgres does not confirm, before the task is retried
ROUND_WAIT_S = 0.02  # doubled each round: the time that a claim in flight needs to commit
KEYLESS = "outcome"  # the column that `place.sql` leaves empty when a claim did not hold

Result = StepResult | IdempotencyConflict | SlotsInFlight
log = structlog.get_logger(__name__)


class StaleSlots(Exception):
    """Redis and Postgres disagree on the slots of a batch: reseed, claim again, decide again."""


class Assignment:
    """Gives submissions their slots, on one Postgres and one Redis."""

    def __init__(
        self,
        pool: "ConnectionPool[Conn]",
        slots: Slots,
        opt_in_events: frozenset[str] = frozenset(),
    ) -> None:
        """Take the two stores, and the types of opt-in events that a route asks for."""
        self.pool = pool
        self.slots = slots
        self.opt_in_events = opt_in_events
        self.slot_events = ESSAY_SLOT_ASSIGNED.name in opt_in_events

    def assign(self, messages: Sequence[Message]) -> list[Result]:
        """Give every submission of each message its slot, or say where it is instead.

        Each message has a result of its own. IdempotencyConflict and SlotsInFlight (retry: others
        are claiming the open slots just now) concern that message alone, so they are returned.
        Raises errors of the servers (retry: what has a place by then keeps it).
        """
        claims = self._claim(messages)
        crashpoint("claimed")
        new = {m: _slot_of(claims[m]) for m in messages if all(claim.new for claim in claims[m])}
        placed: Mapping[str, Row] = {}
        if new:
            with self.pool.connection() as conn:
                try:
                    placed = db.slots.place(conn, new, with_keys=True, slot_events=self.slot_events)
                except (pg.UniqueViolation, pg.NotNullViolation) as error:
                    if not (is_repeat(error) or error.diag.column_name == KEYLESS):
                        raise
        return [
            self._placed(message, new[message], placed[message.batch_id])
            if message in new and message.batch_id in placed
            else self._settled(message, claims[message])
            for message in messages
        ]

    def _claim(self, messages: Sequence[Message]) -> dict[Message, list[Claim]]:
        claimants: dict[str, list[str]] = {}
        for message in messages:
            claimants.setdefault(message.batch_id, []).extend(message.claimants)
        made = self.slots.claim(claimants)
        _count(claim for those in made.values() for claim in those)
        claims = {batch: iter(those) for batch, those in made.items()}
        return {
            message: [*islice(claims[message.batch_id], len(message.submissions))]
            for message in messages
        }

    def _placed(self, message: Message, slot_of: Mapping[str, str], batch: Row) -> StepResult:
        return message.result(
            {claimant: Location(essay_id) for claimant, essay_id in slot_of.items()},
            full=batch["available_slots"] == 0,
            posted=self.slot_events,
            slots=batch["expected_count"],
        )

    def _settled(self, message: Message, claims: Sequence[Claim]) -> Result:
        """Decide until Postgres confirms the claims; give back those that it did not need."""
        for round_ in range(ROUNDS):
            try:
                with db.transaction(self.pool) as conn:
                    result, locations = self._decide(conn, message, claims)
            except IdempotencyConflict as conflict:
                self._give_back(message.batch_id, claims, {})
                return conflict
            except (StaleSlots, pg.UniqueViolation) as error:
                if isinstance(error, pg.UniqueViolation) and not is_repeat(error):
                    raise
                metrics.claimed(["stale"] * len(claims))
                time.sleep(uniform(0, ROUND_WAIT_S * 2**round_) if round_ else 0)
                claims = self._claim_again(message, claims)
            else:
                self._give_back(message.batch_id, claims, locations)
                return result
        self._give_back(message.batch_id, claims, {})
        return SlotsInFlight(
            f"batch {message.batch_id} has open slots, but others are claiming them; try again"
        )

    def _decide(
        self, conn: Conn, message: Message, claims: Sequence[Claim]
    ) -> tuple[StepResult, dict[str, Location]]:
        """Place, park or record every submission and write the key; also return the locations.

        Raises StaleSlots where that needs another claim, and UniqueViolation where another
        delivery was faster.
        """
        batch_id, submissions = message.batch_id, message.submissions
        if result := replayed(conn, message.idem):
            return result, db.slots.locations(conn, batch_id, submissions)
        tracker = db.batches.tracker(conn, batch_id)
        if tracker is None:
            return self._park(conn, message), {}
        repeats = db.slots.locations(conn, batch_id, submissions)
        rest = [each for each in submissions if each.claimant not in repeats]
        left, slot_of = tracker.available_slots, {}
        if left and (slot_of := _slot_of(claims, but=repeats)):
            left = self._place(conn, message, slot_of)
        found = repeats | {claimant: Location(essay) for claimant, essay in slot_of.items()}
        homeless = [each for each in rest if each.claimant not in found]
        if homeless:
            reason = self._record_excess(conn, batch_id, homeless)
            found |= {each.claimant: Location(None, reason) for each in homeless}
        result = message.result(
            found,
            repeats=repeats,
            full=left == 0 if slot_of else tracker.full and not rest,  # a repeat completes again
            posted=bool(homeless) or self.slot_events,
        )
        db.idempotency.write_key(conn, message.idem, batch_id, result.value)
        return result, found

    def _place(self, conn: Conn, message: Message, slot_of: Mapping[str, str]) -> int:
        """Place what claimed a slot; return the open slots left. Raises StaleSlots."""
        placed = db.slots.place(
            conn, {message: slot_of}, with_keys=False, slot_events=self.slot_events
        ).get(message.batch_id)
        if placed is None or placed["slots"] < len(slot_of):
            raise StaleSlots
        return int(placed["available_slots"])

    def _record_excess(
        self, conn: Conn, batch_id: str, homeless: Sequence[Submission]
    ) -> ExcessReason:
        """Write submissions down as excess; return the reason. Raises StaleSlots.

        Another delivery of one of them may have taken the last slot since: so look once more,
        under the lock of the tracker, which every placement takes.
        """
        tracker = db.batches.tracker(conn, batch_id, lock=True)
        if tracker is None or db.slots.locations(conn, batch_id, homeless):
            raise StaleSlots
        if not db.slots.record_excess(conn, batch_id, homeless, tracker.excess_reason):
            raise StaleSlots
        return tracker.excess_reason

    def _park(self, conn: Conn, message: Message) -> StepResult:
        """Keep submissions until their batch is registered. Raises StaleSlots if it is by now.

        Other submissions share the lock and a registration excludes them, so no submission falls
        between "not registered" and "the pending ones have their slots".
        """
        db.batches.share_registration_lock(conn, message.batch_id)
        if db.batches.tracker(conn, message.batch_id):
            raise StaleSlots
        db.slots.park_pending(conn, message.batch_id, message.submissions)
        result = message.result({})
        db.idempotency.write_key(conn, message.idem, message.batch_id, result.value)
        return result

    def _claim_again(self, message: Message, claims: Sequence[Claim]) -> list[Claim]:
        """Rebuild the batch's free slots from Postgres; claim for what has no place yet."""
        batch_id = message.batch_id
        with self.pool.connection() as conn:
            open_slots = db.slots.open_slots(conn, batch_id)
            locations = db.slots.locations(conn, batch_id, message.submissions)
        is_open = set(open_slots)
        wrong = [
            claim
            for claim in claims
            if not _holds(claim, locations)
            and (claim.claimant in locations or claim.essay_id not in is_open)
        ]
        self.slots.release(batch_id, wrong, still_open=False)
        seeded = self.slots.seed(batch_id, open_slots)
        log.warning("slots_reseeded", batch_id=batch_id, open=len(open_slots), seeded=seeded)
        rest = [claimant for claimant in message.claimants if claimant not in locations]
        again = self.slots.claim({batch_id: rest})[batch_id] if rest else []
        _count(again)
        return again

    def _give_back(
        self, batch_id: str, claims: Sequence[Claim], locations: Mapping[str, Location]
    ) -> None:
        """Release claims that placed nothing: new ones, and those of what has another place."""
        spare = [
            claim
            for claim in claims
            if not _holds(claim, locations) and (claim.new or claim.claimant in locations)
        ]
        if not spare:
            return
        with self.pool.connection() as conn:
            open_slots = db.slots.open_slots(conn, batch_id)
        is_open = set(open_slots)
        back = [claim for claim in spare if claim.essay_id in is_open]
        self.slots.release(batch_id, back, still_open=True)
        if stale := [claim for claim in spare if claim.essay_id not in is_open]:
            self.slots.release(batch_id, stale, still_open=False)
            self.slots.seed(batch_id, open_slots)


def _count(claims: Iterable[Claim]) -> None:
    metrics.claimed("new" if c.new else "held" if c.essay_id else "none" for c in claims)


def _slot_of(claims: Sequence[Claim], but: Mapping[str, object] | None = None) -> dict[str, str]:
    """Map claimants to the slots that they claimed; those of `but` have their place already."""
    return {c.claimant: c.essay_id for c in claims if c.essay_id and c.claimant not in (but or {})}


def _holds(claim: Claim, locations: Mapping[str, Location]) -> bool:
    """Tell whether a claimant has the slot that it claimed."""
    location = locations.get(claim.claimant)
    return location is not None and location.essay_id == claim.essay_id
