"""The story: a batch is registered, its slots are filled, it is sealed and announced, once.

Every method is one idempotent step. Its effect, its key and its events commit together; Redis is
told afterwards, and may forget at any time. `Done` says what follows outside of the transaction.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import uniform
from typing import Any, TypeVar

import structlog
from psycopg import errors as pg
from psycopg_pool import ConnectionPool

from core import ledger
from core.crash import crashpoint
from core.errors import (
    BrokenSeal,
    IdempotencyConflict,
    RegistrationConflict,
    SlotsInFlight,
    UnknownBatch,
    UnknownEssay,
    WrongBatchState,
)
from core.events import (
    BatchCancelled,
    BatchContentsProvisioned,
    BatchEssaysRegistered,
    Content,
    EssayContentProvisioned,
    EssayValidationFailed,
    Idempotency,
    Outgoing,
    StudentAssociationsConfirmed,
)
from core.ledger import Arrival, Conn, Tracker
from core.seals import Seal, announcement, essays_ready, seal_of
from core.slots import Claim, Slots
from core.states import BatchStatus, EssayStatus, ExcessReason, sources

CHUNK = 500  # contents placed by one claim and one transaction
RANGE = 1_000  # slots sealed by one header of the completion chord
ROUNDS = 4  # looks at a claim that Postgres did not confirm, before the task is retried
ROUND_WAIT_S = 0.02  # doubled each round: the time that a claim in flight needs to commit

log = structlog.get_logger(__name__)
T = TypeVar("T")
Value = dict[str, Any]  # Any: what a task returns, JSON


@dataclass(frozen=True)
class Done:
    """What a step led to: the value its task returns, and what should follow its commit."""

    value: Value
    full: bool = False  # every slot is accounted for, and nobody has announced it yet
    posted: bool = False  # the outbox has events of this batch


class StaleSlots(Exception):
    """What Redis said of this batch's slots is not so in Postgres: reseed and look again."""


class Lifecycle:
    """The steps of a batch, on one Postgres and one Redis."""

    def __init__(
        self, pool: "ConnectionPool[Conn]", slots: Slots, *, slot_events: bool = False
    ) -> None:
        """Take the two stores; `slot_events` says that `EssaySlotAssigned` is routed."""
        self.pool = pool
        self.slots = slots
        self.slot_events = slot_events

    # --- a batch is registered -----------------------------------------------------------------

    def register_batch(self, event: BatchEssaysRegistered, idem: Idempotency) -> Done:
        """Write the batch, all of its slots, and what waited for it: all or nothing.

        Raises RegistrationConflict when it is registered with other essays.
        """
        essay_ids = sorted(event.essay_ids)  # the order of slots, ranges and manifest
        return _unless_overtaken(lambda: self._register(event, essay_ids, idem))

    def _register(
        self, event: BatchEssaysRegistered, essay_ids: list[str], idem: Idempotency
    ) -> Done:
        batch_id, digest = event.batch_id, hashlib.sha256("\n".join(essay_ids).encode()).digest()
        with ledger.transaction(self.pool) as conn:
            ledger.hold_registration_lock(conn, batch_id)
            if done := _replayed(conn, idem):
                return done
            if tracker := ledger.tracker(conn, batch_id):
                return _already_registered(conn, tracker, digest, idem)
            row = event.model_dump(
                include={"batch_id", "class_id", "org_id", "user_id", "course_code"}
            )
            row |= {
                "correlation_id": event.correlation_id,
                "on_deadline": event.on_deadline,
                "deadline_s": event.deadline_s,
                "student_prompt_ref": ledger.jsonb(event.student_prompt_ref),
                "metadata": ledger.jsonb(event.metadata),
                "essay_ids_sha256": digest,
            }
            left, assigned, over = ledger.register(conn, row, essay_ids)
            if over:
                ledger.record_excess(conn, batch_id, over, ExcessReason.NO_AVAILABLE_SLOT)
            if self.slot_events and assigned:
                ledger.post_slot_events(conn, batch_id)
            value = {
                "outcome": "registered",
                "batch_id": batch_id,
                "slots": len(essay_ids),
                "pending_assigned": assigned,
            }
            ledger.write_key(conn, idem, batch_id, value)
        crashpoint("registered_before_seed")
        self.slots.seed(batch_id, essay_ids[len(essay_ids) - left :])
        return Done(value, full=left == 0, posted=bool(over) or (self.slot_events and assigned > 0))

    # --- contents and rejected files arrive ------------------------------------------------------

    def assign_content(self, event: EssayContentProvisioned, idem: Idempotency) -> Done:
        """Give one stored text a slot, or say why it has none (yet)."""
        return self._arrive(idem, event.batch_id, [_content(event)])

    def assign_contents(self, event: BatchContentsProvisioned, idem: Idempotency) -> Done:
        """Give each text of an upload a slot, in one transaction. At most `CHUNK` are meant."""
        distinct = {content.text_storage_id: _content(content) for content in event.contents}
        return self._arrive(idem, event.batch_id, list(distinct.values()), sent=len(event.contents))

    def reject_content(self, event: EssayValidationFailed, idem: Idempotency) -> Done:
        """Let a rejected file consume a slot."""
        arrival = Arrival(
            file_upload_id=event.file_upload_id,
            original_file_name=event.original_file_name,
            raw_file_storage_id=event.raw_file_storage_id,
            file_size_bytes=event.file_size_bytes,
            validation_error_code=event.validation_error_code,
            validation_error_detail=event.validation_error_detail,
        )
        return self._arrive(idem, event.batch_id, [arrival])

    def replay(self, idem: Idempotency) -> Done | None:
        """Return what this event led to before; None when it is new. Raises IdempotencyConflict."""
        with self.pool.connection() as conn:
            return _replayed(conn, idem)

    def accept(self, idem: Idempotency, batch_id: str, contents: int) -> Done:
        """Note that every part of a large upload has been handed on."""

        def write() -> Done:
            with ledger.transaction(self.pool) as conn:
                if done := _replayed(conn, idem):
                    return done
                value = _accepted(batch_id, contents)
                ledger.write_key(conn, idem, batch_id, value)
                return Done(value)

        return _unless_overtaken(write)

    def _arrive(
        self, idem: Idempotency, batch_id: str, arrivals: list[Arrival], *, sent: int | None = None
    ) -> Done:
        """Take the hot path, one claim and one statement; settle the unusual with a closer look.

        `sent` is the number of contents of a bulk message; None for a single arrival.
        """
        claims = self.slots.claim(batch_id, [arrival.claimant for arrival in arrivals])
        crashpoint("claimed")
        if claims and (slots := _all_slots(claims)):
            value = _placed_value(batch_id, arrivals[0], slots[0], sent)
            with self.pool.connection() as conn:
                try:
                    placed = ledger.place(
                        conn,
                        batch_id,
                        list(zip(arrivals, slots, strict=True)),
                        idem=idem,
                        outcome=value,
                        routed=self.slot_events,
                    )
                except (pg.UniqueViolation, pg.NotNullViolation):
                    placed = None
            if placed:
                return Done(value, full=placed[1] == 0, posted=self.slot_events)
        return self._settle(idem, batch_id, arrivals, claims, sent)

    def _settle(
        self,
        idem: Idempotency,
        batch_id: str,
        arrivals: list[Arrival],
        claims: list[Claim] | None,
        sent: int | None,
    ) -> Done:
        """Decide by Postgres where arrivals belong whose claims did not simply hold.

        Redis was stale, flushed or empty, or this is a repeat. Raises SlotsInFlight when slots
        are open but others are claiming them just now.
        """
        for round_ in range(ROUNDS):
            try:
                with ledger.transaction(self.pool) as conn:
                    done, held = self._settle_once(conn, idem, batch_id, arrivals, claims, sent)
            except (StaleSlots, pg.UniqueViolation):
                time.sleep(uniform(0, ROUND_WAIT_S * 2**round_) if round_ else 0)
                claims = self._claim_anew(batch_id, claims or [], arrivals)
            except IdempotencyConflict:
                self._give_back(batch_id, claims or [], {})
                raise
            else:
                self._give_back(batch_id, claims or [], held)
                return done
        raise SlotsInFlight(
            f"batch {batch_id} has open slots, but other contents are claiming them; try again"
        )

    def _settle_once(
        self,
        conn: Conn,
        idem: Idempotency,
        batch_id: str,
        arrivals: list[Arrival],
        claims: list[Claim] | None,
        sent: int | None,
    ) -> tuple[Done, dict[str, str | None]]:
        """Settle every arrival and write the key, or raise; also return the slots they hold."""
        if done := _replayed(conn, idem):
            return done, {}
        tracker = ledger.tracker(conn, batch_id)
        if tracker is None:
            return self._park(conn, idem, batch_id, arrivals, sent), {}
        held = {
            claimant: (place.essay_id, place.excess_reason)
            for claimant, place in ledger.whereabouts(conn, batch_id, arrivals).items()
        }
        slot_of = {c.claimant: c.essay_id for c in claims or [] if c.essay_id}
        rest = [arrival for arrival in arrivals if arrival.claimant not in held]
        is_open = tracker.available_slots > 0
        claimed = [a for a in rest if is_open and a.claimant in slot_of]
        homeless = [a for a in rest if not (is_open and a.claimant in slot_of)]
        left, posted = tracker.available_slots, False
        if claimed:
            pairs = [(arrival, slot_of[arrival.claimant]) for arrival in claimed]
            left = self._place_all(conn, batch_id, pairs)
            held |= {arrival.claimant: (essay_id, None) for arrival, essay_id in pairs}
            posted = self.slot_events
        if homeless:
            reason = tracker.excess_reason
            if not ledger.record_excess(conn, batch_id, homeless, reason):
                raise StaleSlots
            held |= {arrival.claimant: (None, reason) for arrival in homeless}
            posted = True
        value = _settled_value(batch_id, arrivals[0], held[arrivals[0].claimant], sent)
        ledger.write_key(conn, idem, batch_id, value)
        full = left == 0 if claimed else tracker.full and not rest  # a repeat dispatches again
        return Done(value, full, posted), {who: essay_id for who, (essay_id, _) in held.items()}

    def _place_all(self, conn: Conn, batch_id: str, pairs: list[tuple[Arrival, str]]) -> int:
        """Place arrivals without a key; return the open slots left. Raises StaleSlots."""
        placed = ledger.place(conn, batch_id, pairs, idem=None, outcome={}, routed=self.slot_events)
        if placed is None or placed[0] < len(pairs):
            raise StaleSlots
        return placed[1]

    def _park(
        self,
        conn: Conn,
        idem: Idempotency,
        batch_id: str,
        arrivals: list[Arrival],
        sent: int | None,
    ) -> Done:
        """Keep arrivals until their batch is registered. Raises StaleSlots if it is by now.

        The lock is shared with other arrivals and excludes a registration, so that none falls
        between "not registered" and "what waited has been taken".
        """
        ledger.share_registration_lock(conn, batch_id)
        if ledger.tracker(conn, batch_id):
            raise StaleSlots
        ledger.park_pending(conn, batch_id, arrivals)
        value = _value("pending", batch_id) if sent is None else _accepted(batch_id, sent)
        ledger.write_key(conn, idem, batch_id, value)
        return Done(value)

    def _give_back(self, batch_id: str, claims: list[Claim], held: dict[str, str | None]) -> None:
        """Take back the claims that were made just now and led to nothing."""
        spare = [c for c in claims if c.new and c.essay_id != held.get(c.claimant)]
        if not spare:
            return
        with self.pool.connection() as conn:
            is_open = set(ledger.open_slots(conn, batch_id))
        self.slots.release(batch_id, [c for c in spare if c.essay_id in is_open], still_open=True)
        taken = [c for c in spare if c.essay_id not in is_open]
        self.slots.release(batch_id, taken, still_open=False)

    def _claim_anew(
        self, batch_id: str, claims: list[Claim], arrivals: list[Arrival]
    ) -> list[Claim] | None:
        """Rebuild the batch's free slots from Postgres; claim for those that have no place yet."""
        with self.pool.connection() as conn:
            open_slots = ledger.open_slots(conn, batch_id)
            places = ledger.whereabouts(conn, batch_id, arrivals)
        held = {claimant: place.essay_id for claimant, place in places.items()}
        wrong = [c for c in claims if c.essay_id not in {*open_slots, held.get(c.claimant)}]
        wrong += [c for c in claims if c.claimant in held and c.essay_id != held[c.claimant]]
        self.slots.release(batch_id, wrong, still_open=False)
        seeded = self.slots.seed(batch_id, open_slots)
        log.warning("slots_reseeded", batch_id=batch_id, open=len(open_slots), seeded=seeded)
        rest = [arrival.claimant for arrival in arrivals if arrival.claimant not in held]
        return self.slots.claim(batch_id, rest) if rest else []

    # --- a full batch is sealed and announced ----------------------------------------------------

    def seal_ranges(self, batch_id: str) -> list[tuple[str, str | None]]:
        """Cut the slots of a batch into ranges of at most `RANGE`: from, up to (None: the end)."""
        with self.pool.connection() as conn:
            starts = ledger.range_starts(conn, batch_id, RANGE)
        return list(zip(starts, [*starts[1:], None], strict=True))

    def seal_slots(self, batch_id: str, low: str, high: str | None) -> Seal:
        """Check that each slot of a range is accounted for, and digest what they hold."""
        with self.pool.connection() as conn:
            return seal_of(low, high, ledger.slot_range(conn, batch_id, low, high))

    def seal_books(self, batch_id: str) -> bool:
        """Check the accounts of a batch: the counter against the slots, and what still waits."""
        with self.pool.connection() as conn:
            books = ledger.books(conn, batch_id)
        free = len(self.slots.free(batch_id))
        if books["pending"] or free:
            log.warning("books_differ", pending=books["pending"], free_in_redis=free)
        accounted = books["assigned"] + books["failed"] == books["expected_count"]
        return bool(accounted and books["available_slots"] == books["open"] == 0)

    def announce_ready(self, batch_id: str, seals: Sequence[Seal], books_sealed: bool) -> Done:
        """Say once that all slots are accounted for and, for a guest batch, that it is ready.

        The update of the tracker decides who speaks; whoever comes later finds nothing to do.
        Raises BrokenSeal when the batch is not what the seals say.
        """
        with ledger.transaction(self.pool) as conn:
            batch = ledger.announce(conn, batch_id)
            if batch is None:
                return Done(_value("nothing_to_announce", batch_id), posted=True)
            if not books_sealed:
                raise BrokenSeal(f"batch {batch_id}: its counter and its slots disagree")
            essays = ledger.essays_in(conn, batch_id, EssayStatus.READY_FOR_PROCESSING)
            failed = ledger.essays_in(conn, batch_id, EssayStatus.CONTENT_INGESTION_FAILED)
            told = announcement(batch, essays, failed, seals)
            ledger.set_completed(conn, batch_id, told.status, len(essays), told.manifest_sha256)
            ledger.post(conn, batch_id, told.events)
            crashpoint("announcing")
        crashpoint("announced")
        self.slots.expire(batch_id)
        log.info(
            "announced",
            batch_id=batch_id,
            correlation_id=str(batch.correlation_id),
            status=told.status,
            essays=len(essays),
            failed=len(failed),
        )
        return Done({**_value("announced", batch_id), "status": told.status}, posted=True)

    def complete(self, batch_id: str) -> Done:
        """Seal and announce a full batch here and now, as the chord does with many hands."""
        seals = [self.seal_slots(batch_id, *bounds) for bounds in self.seal_ranges(batch_id)]
        return self.announce_ready(batch_id, seals, self.seal_books(batch_id))

    # --- students are confirmed, or the batch is given up ----------------------------------------

    def confirm_students(self, event: StudentAssociationsConfirmed, idem: Idempotency) -> Done:
        """Store whose essays they are, and make a regular batch ready.

        A batch that is full but not announced yet is announced first. Raises UnknownBatch,
        UnknownEssay, WrongBatchState.
        """
        with self.pool.connection() as conn:
            tracker = ledger.tracker(conn, event.batch_id)
        if tracker and tracker.full:
            self.complete(event.batch_id)
        return _unless_overtaken(lambda: self._confirm(event, idem))

    def _confirm(self, event: StudentAssociationsConfirmed, idem: Idempotency) -> Done:
        batch_id = event.batch_id
        rows = [association.model_dump(mode="json") for association in event.associations]
        value = {"outcome": "confirmed", "batch_id": batch_id, "associated": len(rows)}
        with ledger.transaction(self.pool) as conn:
            tracker = ledger.tracker(conn, batch_id, lock=True)
            if done := _replayed(conn, idem):
                return done
            if tracker is None:
                raise UnknownBatch(f"batch {batch_id} is not registered; register it, then replay")
            if tracker.class_id != event.class_id:
                raise WrongBatchState(
                    f"batch {batch_id} has class {tracker.class_id}, not {event.class_id}"
                )
            students = ledger.students(conn, batch_id)
            if unknown := sorted({row["essay_id"] for row in rows} - students.keys()):
                named = ", ".join(unknown[:5])
                raise UnknownEssay(f"batch {batch_id} has no essay {named}; correct it and resend")
            if tracker.status is BatchStatus.READY_FOR_PIPELINE_EXECUTION and all(
                students[row["essay_id"]] == row["student_id"] for row in rows
            ):
                ledger.write_key(conn, idem, batch_id, value)
                return Done(value)
            if tracker.status is not BatchStatus.AWAITING_STUDENT_VALIDATION:
                raise WrongBatchState(
                    f"batch {batch_id} is {tracker.status}; students are confirmed while it is"
                    f" {BatchStatus.AWAITING_STUDENT_VALIDATION}"
                )
            ledger.associate(conn, batch_id, rows)
            essays = ledger.essays_in(conn, batch_id, EssayStatus.READY_FOR_PROCESSING)
            ledger.set_ready(conn, batch_id)
            assert tracker.manifest_sha256 is not None, f"batch {batch_id} was never sealed"
            ledger.post(conn, batch_id, [essays_ready(tracker, essays, tracker.manifest_sha256)])
            ledger.write_key(conn, idem, batch_id, value)
        return Done(value, posted=True)

    def cancel_batch(self, event: BatchCancelled, idem: Idempotency) -> Done:
        """Close a batch before it is ready. Raises UnknownBatch, WrongBatchState."""
        done = _unless_overtaken(lambda: self._cancel(event, idem))
        self.slots.expire(event.batch_id)
        return done

    def _cancel(self, event: BatchCancelled, idem: Idempotency) -> Done:
        batch_id = event.batch_id
        value = _value("cancelled", batch_id)
        with ledger.transaction(self.pool) as conn:
            if done := _replayed(conn, idem):
                return done
            ledger.close_open_slots(conn, batch_id)
            cancelled = ledger.cancel(conn, batch_id, event.reason, sources(BatchStatus.CANCELLED))
            if cancelled:
                told = {"batch_id": batch_id, "reason": event.reason}
                ledger.post(conn, batch_id, [Outgoing("BatchCancelled", told)])
            else:
                tracker = ledger.tracker(conn, batch_id)
                if tracker is None:
                    raise UnknownBatch(f"batch {batch_id} is not registered")
                if tracker.status is not BatchStatus.CANCELLED:
                    raise WrongBatchState(
                        f"batch {batch_id} is {tracker.status} already; it cannot be cancelled"
                    )
            ledger.write_key(conn, idem, batch_id, value)
        return Done(value, posted=cancelled)


def _replayed(conn: Conn, idem: Idempotency) -> Done | None:
    """Return the stored outcome of a repeat; None for a new event. Raises IdempotencyConflict."""
    stored = ledger.stored_outcome(conn, idem.key)
    if stored is None:
        return None
    if (stored.task, stored.fingerprint) != (idem.task, idem.fingerprint):
        raise IdempotencyConflict(
            f"event {idem.key} was seen before with another body ({stored.task});"
            " send it with an event_id of its own"
        )
    return Done(stored.outcome, full=stored.full, posted=True)


def _already_registered(conn: Conn, tracker: Tracker, digest: bytes, idem: Idempotency) -> Done:
    if tracker.essay_ids_sha256 != digest:
        raise RegistrationConflict(
            f"batch {tracker.batch_id} is registered with other essay ids; it keeps those"
        )
    value = _value("already_registered", tracker.batch_id)
    ledger.write_key(conn, idem, tracker.batch_id, value)
    return Done(value, full=tracker.full)


def _unless_overtaken(step: Callable[[], T]) -> T:
    """Run a step again when another delivery of its event committed in between."""
    try:
        return step()
    except pg.UniqueViolation:
        return step()


def _content(content: Content) -> Arrival:
    return Arrival(
        file_upload_id=content.file_upload_id,
        original_file_name=content.original_file_name,
        text_storage_id=content.text_storage_id,
        raw_file_storage_id=content.raw_file_storage_id,
        file_size_bytes=content.file_size_bytes,
        content_md5_hash=content.content_md5_hash,
    )


def _all_slots(claims: Sequence[Claim]) -> list[str] | None:
    """List the claimed slots; None when a claim has none."""
    slots = [claim.essay_id for claim in claims if claim.essay_id]
    return slots if len(slots) == len(claims) else None


def _value(outcome: str, batch_id: str) -> Value:
    return {"outcome": outcome, "batch_id": batch_id}


def _accepted(batch_id: str, contents: int) -> Value:
    return {**_value("accepted", batch_id), "contents": contents}


def _placed_value(batch_id: str, arrival: Arrival, essay_id: str, sent: int | None) -> Value:
    if sent is not None:
        return _accepted(batch_id, sent)
    outcome = "failed_slot" if arrival.validation_error_code else "assigned"
    return {**_value(outcome, batch_id), "essay_id": essay_id}


def _settled_value(
    batch_id: str, arrival: Arrival, place: tuple[str | None, ExcessReason | None], sent: int | None
) -> Value:
    """Say where an arrival ended: in a slot, as excess, or at a closed batch."""
    essay_id, reason = place
    if sent is not None or essay_id:
        return _placed_value(batch_id, arrival, essay_id or "", sent)
    return _value("excess" if reason is ExcessReason.NO_AVAILABLE_SLOT else "closed", batch_id)
