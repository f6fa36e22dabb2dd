"""How a stored text or a rejected file gets its slot.

The hot path is one claim in Redis and one statement in Postgres. What does not simply hold (a
repeat, a stale or flushed Redis, a batch full, closed or not registered) is settled by Postgres
alone, in one transaction.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from operator import attrgetter
from random import uniform

import structlog
from psycopg import errors as pg
from psycopg_pool import ConnectionPool

from core import db
from core.crash import crashpoint
from core.db import Conn
from core.db.slots import Location, Placed, Placing, Submission
from core.errors import IdempotencyConflict, SlotsInFlight
from core.events import Idempotency
from core.outcomes import StepResult, Value, outcome, replayed
from core.slots import Claim, Slots
from core.states import ExcessReason

ROUNDS = 4  # looks at a claim that Postgres did not confirm, before the task is retried
ROUND_WAIT_S = 0.02  # doubled each round: the time that a claim in flight needs to commit

log = structlog.get_logger(__name__)


@dataclass(frozen=True, eq=False)  # two are never the same, whatever they say
class Delivery:
    """One message and the submissions that it announces. `sent` counts those of a bulk message."""

    idem: Idempotency
    batch_id: str
    submissions: list[Submission]
    sent: int | None = None

    @property
    def claimants(self) -> list[str]:
        """Who claims a slot."""
        return [submission.claimant for submission in self.submissions]

    @property
    def first(self) -> str:
        """Who of them stands for the message."""
        return self.submissions[0].claimant

    def value(self, place: Location | None) -> Value:
        """Tell the sender where its submission is; None: parked. A bulk message is accepted."""
        if self.sent is not None:
            return outcome("accepted", self.batch_id, contents=self.sent)
        held = {"essay_id": place.essay_id} if place and place.essay_id else {}
        return outcome(_became(self.submissions[0], place), self.batch_id, **held)


@dataclass(frozen=True)
class Claimed:
    """Messages of one batch, and the slots that their submissions claimed."""

    batch_id: str
    deliveries: Sequence[Delivery]
    claims: Sequence[Claim]

    @cached_property
    def places(self) -> dict[str, Location]:
        """Where each submission is once it is placed."""
        return {claim.claimant: Location(claim.essay_id, None) for claim in self.claims}

    @cached_property
    def values(self) -> list[Value]:
        """What to tell each sender then."""
        return [delivery.value(self.places[delivery.first]) for delivery in self.deliveries]

    def placings(self) -> list[Placing]:
        """Put each submission beside its slot; the key of an event stands with its first one."""
        each = zip(self.deliveries, self.values, strict=True)
        keys = {delivery.first: (delivery.idem, value) for delivery, value in each}
        submissions = [
            submission for delivery in self.deliveries for submission in delivery.submissions
        ]
        return [
            Placing(submission, essay_id, *keys.get(submission.claimant, ()))
            for submission, essay_id in _pairs(submissions, self.claims)
        ]

    def done(self, placed: Placed, *, posted: bool) -> list[StepResult]:
        """Say what came of each message; the last one finds the batch full if no slot is left."""
        done = [
            StepResult(value, posted=posted, became=_tally(delivery.submissions, self.places))
            for delivery, value in zip(self.deliveries, self.values, strict=True)
        ]
        return [*done[:-1], replace(done[-1], full=placed.left == 0, slots=placed.slots)]


class StaleSlots(Exception):
    """What Redis said of this batch's slots is not so in Postgres: reseed and look again."""


class Assignment:
    """Gives submissions their slots, on one Postgres and one Redis."""

    def __init__(self, pool: "ConnectionPool[Conn]", slots: Slots, *, slot_events: bool) -> None:
        self.pool = pool
        self.slots = slots
        self.slot_events = slot_events

    def take(self, delivery: Delivery) -> StepResult:
        """Give every submission of a message its slot, or say where it is instead.

        Raises IdempotencyConflict; SlotsInFlight (retry) when slots are open but others are
        claiming them just now.
        """
        claims = self.slots.claim(delivery.batch_id, delivery.claimants)
        crashpoint("claimed")
        if claims and all(claim.essay_id for claim in claims):
            [done] = self._place_with_keys([Claimed(delivery.batch_id, [delivery], claims)])
            if done is not None:
                return done[0]
        return self._settle(delivery, claims or [])

    def take_together(self, deliveries: Sequence[Delivery]) -> list[StepResult | None]:
        """Give the submissions of several messages their slots by one claim and one commit.

        Each message has a key and an outcome of its own. None: its submissions did not get free
        slots, and it is to be taken by itself.
        """
        batches: dict[str, list[Delivery]] = {}
        for delivery in sorted(deliveries, key=attrgetter("batch_id")):
            batches.setdefault(delivery.batch_id, []).append(delivery)
        claimants = {b: [c for d in those for c in d.claimants] for b, those in batches.items()}
        claims = self.slots.claim_in_each(claimants)
        crashpoint("claimed")
        claimed = []
        for (batch_id, those), made in zip(batches.items(), claims, strict=True):
            simple, others = _sort_out(batch_id, those, made or [])
            self._give_back(batch_id, others, {})
            if simple.deliveries:
                claimed.append(simple)
        placed: dict[Delivery, StepResult] = {}
        if claimed:
            for batch, done in zip(claimed, self._place_with_keys(claimed), strict=True):
                if done is None:
                    self._give_back(batch.batch_id, batch.claims, {})
                else:
                    placed |= zip(batch.deliveries, done, strict=True)
        return [placed.get(delivery) for delivery in deliveries]

    def _place_with_keys(self, batches: Sequence[Claimed]) -> list[list[StepResult] | None]:
        """Place all submissions where they claimed, by one statement if that works.

        None of a batch: not every claim held, or an event or a content was here before.
        """
        placings = {batch.batch_id: batch.placings() for batch in batches}
        with self.pool.connection() as conn:
            try:
                placed = db.slots.place(conn, placings, routed=self.slot_events)
            except (pg.UniqueViolation, pg.NotNullViolation):
                placed = {}
        if not placed and len(batches) > 1:
            return [each for batch in batches for each in self._place_with_keys([batch])]
        return [
            batch.done(mine, posted=self.slot_events)
            if (mine := placed.get(batch.batch_id))
            else None
            for batch in batches
        ]

    def _settle(self, delivery: Delivery, claims: list[Claim]) -> StepResult:
        """Look closer until Postgres has decided; then give back what was claimed in vain."""
        for round_ in range(ROUNDS):
            try:
                with db.transaction(self.pool) as conn:
                    done, places = self._decide(conn, delivery, claims)
            except (StaleSlots, pg.UniqueViolation):
                time.sleep(uniform(0, ROUND_WAIT_S * 2**round_) if round_ else 0)
                claims = self._claim_anew(delivery, claims)
            except IdempotencyConflict:
                self._give_back(delivery.batch_id, claims, {})
                raise
            else:
                self._give_back(delivery.batch_id, claims, places)
                return done
        self._give_back(delivery.batch_id, claims, {})
        raise SlotsInFlight(
            f"batch {delivery.batch_id} has open slots, but others are claiming them; try again"
        )

    def _decide(
        self, conn: Conn, delivery: Delivery, claims: list[Claim]
    ) -> tuple[StepResult, dict[str, Location]]:
        """Place, park or record every submission and write the key; also return where each is.

        Raises StaleSlots where that needs another claim, and UniqueViolation where another
        delivery was faster.
        """
        batch_id = delivery.batch_id
        if done := replayed(conn, delivery.idem):
            return done, db.slots.whereabouts(conn, batch_id, delivery.submissions)
        tracker = db.batches.tracker(conn, batch_id)
        if tracker is None:
            return self._park(conn, delivery), {}
        places = db.slots.whereabouts(conn, batch_id, delivery.submissions)
        rest = [a for a in delivery.submissions if a.claimant not in places]
        claimed = _pairs(rest, claims) if tracker.available_slots > 0 else []
        left = self._place(conn, batch_id, claimed) if claimed else tracker.available_slots
        places |= {a.claimant: Location(essay_id, None) for a, essay_id in claimed}
        homeless = [a for a in rest if a.claimant not in places]
        if homeless:
            reason = self._record_excess(conn, batch_id, homeless)
            places |= {a.claimant: Location(None, reason) for a in homeless}
        value = delivery.value(places[delivery.first])
        db.idempotency.write_key(conn, delivery.idem, batch_id, value)
        full = left == 0 if claimed else tracker.full and not rest  # a repeat completes again
        posted = bool(homeless) or self.slot_events
        return StepResult(value, full, posted, _tally(rest, places)), places

    def _place(self, conn: Conn, batch_id: str, pairs: list[tuple[Submission, str]]) -> int:
        """Place submissions without a key; return the open slots left. Raises StaleSlots."""
        placings = [Placing(submission, essay_id) for submission, essay_id in pairs]
        placed = db.slots.place(conn, {batch_id: placings}, routed=self.slot_events).get(batch_id)
        if placed is None or placed.taken < len(pairs):
            raise StaleSlots
        return placed.left

    def _record_excess(self, conn: Conn, batch_id: str, homeless: list[Submission]) -> ExcessReason:
        """Write submissions down as excess; return the reason. Raises StaleSlots.

        Under the lock of the tracker, which every placing takes, look once more: another delivery
        of one of them may have taken the last slot since.
        """
        tracker = db.batches.tracker(conn, batch_id, lock=True)
        if tracker is None or db.slots.whereabouts(conn, batch_id, homeless):
            raise StaleSlots
        if not db.slots.record_excess(conn, batch_id, homeless, tracker.excess_reason):
            raise StaleSlots
        return tracker.excess_reason

    def _park(self, conn: Conn, delivery: Delivery) -> StepResult:
        """Keep submissions until their batch is registered. Raises StaleSlots if it is by now.

        The lock is shared with other submissions and excludes a registration, so that none falls
        between "not registered" and "what waited has been taken".
        """
        db.batches.share_registration_lock(conn, delivery.batch_id)
        if db.batches.tracker(conn, delivery.batch_id):
            raise StaleSlots
        db.slots.park_pending(conn, delivery.batch_id, delivery.submissions)
        value = delivery.value(None)
        db.idempotency.write_key(conn, delivery.idem, delivery.batch_id, value)
        return StepResult(value, became=_tally(delivery.submissions, {}))

    def _claim_anew(self, delivery: Delivery, claims: list[Claim]) -> list[Claim]:
        """Rebuild the batch's free slots from Postgres; claim for those that have no place yet."""
        batch_id = delivery.batch_id
        with self.pool.connection() as conn:
            open_slots = db.slots.open_slots(conn, batch_id)
            places = db.slots.whereabouts(conn, batch_id, delivery.submissions)
        is_open = set(open_slots)
        wrong = [
            claim
            for claim in claims
            if not _holds(claim, places)
            and (claim.claimant in places or claim.essay_id not in is_open)
        ]
        self.slots.release(batch_id, wrong, still_open=False)
        seeded = self.slots.seed(batch_id, open_slots)
        log.warning("slots_reseeded", batch_id=batch_id, open=len(open_slots), seeded=seeded)
        rest = [claimant for claimant in delivery.claimants if claimant not in places]
        return (self.slots.claim(batch_id, rest) if rest else None) or []

    def _give_back(
        self, batch_id: str, claims: Sequence[Claim], places: dict[str, Location]
    ) -> None:
        """Take back the claims that led to nothing: made just now, or by who has another place."""
        spare = [
            claim
            for claim in claims
            if not _holds(claim, places) and (claim.new or claim.claimant in places)
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


def _sort_out(
    batch_id: str, deliveries: Iterable[Delivery], claims: Iterable[Claim]
) -> tuple[Claimed, list[Claim]]:
    """Take the messages whose submissions all got a free slot, and the others' claims."""
    rest = iter(claims)
    simple: list[Delivery] = []
    held: list[Claim] = []
    others: list[Claim] = []
    for delivery in deliveries:
        its = [*islice(rest, len(delivery.submissions))]
        if its and all(claim.new for claim in its):
            simple.append(delivery)
            held += its
        else:
            others += its
    return Claimed(batch_id, simple, held), others


def _became(submission: Submission, place: Location | None) -> str:
    """Name what became of a submission; `place` None: it waits for its batch."""
    if place is None:
        return "pending"
    if place.essay_id is not None:
        return "assigned" if submission.validation_error_code is None else "failed_slot"
    return "excess" if place.excess_reason is ExcessReason.NO_AVAILABLE_SLOT else "closed"


def _tally(submissions: Iterable[Submission], places: Mapping[str, Location]) -> Counter[str]:
    return Counter(
        _became(submission, places.get(submission.claimant)) for submission in submissions
    )


def _pairs(submissions: list[Submission], claims: Sequence[Claim]) -> list[tuple[Submission, str]]:
    """Put each submission beside the slot that it claimed; those without one are left out."""
    slot_of = {claim.claimant: claim.essay_id for claim in claims if claim.essay_id}
    return [(a, slot_of[a.claimant]) for a in submissions if a.claimant in slot_of]


def _holds(claim: Claim, places: dict[str, Location]) -> bool:
    """Tell whether the claimed slot is the one that the claimant has."""
    place = places.get(claim.claimant)
    return place is not None and place.essay_id == claim.essay_id
