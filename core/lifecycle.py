"""The story: a batch is registered, its slots are filled, it is sealed and announced, once.

Every method is one idempotent step. Its effect, its key and its events commit together. Redis
learns of it afterwards, and may forget at any time. `StepResult` says what follows the commit.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from uuid import UUID, uuid5

import structlog
from psycopg import Rollback

from core import db, metrics
from core.assignment import Assignment
from core.catalogue import AMEND_BATCH, BATCH_READINESS_TIMEOUT
from core.crash import crashpoint
from core.db.completion import Announcement, Bounds
from core.db.connection import Conn, Row, jsonb
from core.errors import RegistrationConflict, UnknownBatch, UnknownEssay, WrongBatchState
from core.events import batch_cancelled, essays_ready, timeout_event
from core.idempotency import replayed, retry_on_conflict
from core.messages import (
    BatchAmended,
    BatchCancelled,
    BatchEssaysRegistered,
    Idempotency,
    StudentAssociationsConfirmed,
)
from core.model import Message, StepResult, outcome
from core.seals import Seal, Sealed, announcement, seal_of
from core.states import ACCOUNTED, BatchStatus, EssayStatus, ExcessReason, OnDeadline
from core.tracker import Tracker

DRAIN_NAMESPACE = UUID("2f5a0e9c-7f0e-5e0b-9a53-5d3a1f0c8a11")  # of the keys of drained rows
SLOTS_PER_HEADER = 2_500  # of the completion chord, which itself costs 3 ms
AMENDABLE = frozenset(AMEND_BATCH.known_by)
WHOLE_BATCH: Bounds = ("", None)
Watch = Callable[[Conn], AbstractContextManager[object]]  # sees a batch before and after a change

log = structlog.get_logger(__name__)


class Lifecycle(Assignment):
    """The steps of a batch, on one Postgres and one Redis."""

    # --- a batch is registered -----------------------------------------------------------------

    @retry_on_conflict
    def register_batch(self, event: BatchEssaysRegistered, idem: Idempotency) -> StepResult:
        """Write the batch, all of its slots, and what waited for it: all or nothing.

        Raises RegistrationConflict when it is registered otherwise.
        """
        batch_id = event.batch_id
        essay_ids = sorted(event.essay_ids)  # the order of slots, ranges and manifest
        row = vars(event) | {
            "student_prompt_ref": jsonb(event.student_prompt_ref),
            "metadata": jsonb(event.metadata),
            "essay_ids_sha256": hashlib.sha256("\n".join(essay_ids).encode()).digest(),
        }
        with db.transaction(self.pool) as conn:
            db.batches.hold_registration_lock(conn, batch_id)
            if done := replayed(conn, idem):
                return done
            if tracker := db.batches.tracker(conn, batch_id):
                _refuse_contradictions(conn, event, row)
                return _already_registered(conn, tracker, idem)
            left, assigned, over = db.batches.register(conn, row, essay_ids)
            if over:
                db.slots.record_excess(conn, batch_id, over, ExcessReason.NO_AVAILABLE_SLOT)
            if self.slot_events and assigned:
                db.outbox.post_slot_events(conn, batch_id)
            value = outcome("registered", batch_id, slots=len(essay_ids), pending_assigned=assigned)
            db.idempotency.write_key(conn, idem, batch_id, value)
        crashpoint("registered_before_seed")
        self.slots.seed(batch_id, essay_ids[len(essay_ids) - left :])
        return StepResult(
            value, full=left == 0, posted=bool(over) or (self.slot_events and assigned > 0)
        )

    # --- contents and rejected files arrive: see `core/assignment.py` ---------------------------

    def drain(self, batch_id: str) -> None:
        """Give contents their slots that wait although their batch is registered."""
        with self.pool.connection() as conn:
            waiting = db.slots.pending(conn, batch_id)
        for row_id, submission in waiting:  # no connection is held: assigning needs one as well
            key = Idempotency(uuid5(DRAIN_NAMESPACE, f"{batch_id}/{row_id}"), "drain", b"")
            [result] = self.assign([Message(key, batch_id, [submission])])
            if not isinstance(result, StepResult):
                raise result
            with self.pool.connection() as conn:
                db.slots.unpark(conn, row_id)

    # --- a full batch is sealed and announced ----------------------------------------------------

    def headers(self, batches: Mapping[str, int | None]) -> Iterator[list[dict[str, Bounds]]]:
        """Say for each completion chord which range of which batches each of its headers seals.

        `batches` has the number of slots of each, where that is known. Batches of
        `SLOTS_PER_HEADER` slots together share a chord of one header; a larger one has its own,
        and a header for each range.
        """
        shared: dict[str, Bounds] = {}
        room = SLOTS_PER_HEADER
        for batch_id, slots in batches.items():
            if slots is None or slots > SLOTS_PER_HEADER:
                yield [{batch_id: bounds} for bounds in self.ranges(batch_id)]
                continue
            if slots > room:
                yield [shared]
                shared, room = {}, SLOTS_PER_HEADER
            shared[batch_id] = WHOLE_BATCH
            room -= slots
        if shared:
            yield [shared]

    def ranges(self, batch_id: str) -> list[Bounds]:
        """Cut the slots of a batch into ranges of at most `SLOTS_PER_HEADER`."""
        with self.pool.connection() as conn:
            starts = db.completion.range_starts(conn, batch_id, SLOTS_PER_HEADER)
        return list(zip(starts, [*starts[1:], None], strict=False))

    def seal_slots(self, ranges: Mapping[str, Bounds]) -> dict[str, Seal]:
        """Check that each slot of a range of each batch is accounted for; digest what they hold."""
        with self.pool.connection() as conn:
            slots = db.completion.slot_ranges(conn, ranges)
        return {batch_id: seal_of(*ranges[batch_id], those) for batch_id, those in slots.items()}

    def seal_books(self, batches: Sequence[str]) -> dict[str, bool]:
        """Check the accounts of each batch: the counter against the slots, and what still waits."""
        with self.pool.connection() as conn:
            accounts = db.completion.accounts(conn, batches)
        free = dict(zip(batches, self.slots.free_counts(batches), strict=True))
        for batch_id, b in accounts.items():
            if b["pending"] or free[batch_id]:
                log.warning(
                    "accounts_differ",
                    batch_id=batch_id,
                    pending=b["pending"],
                    free_in_redis=free[batch_id],
                )
        return {
            batch_id: b["assigned"] + b["failed"] == b["expected_count"]
            and b["available_slots"] == b["open"] == 0
            for batch_id, b in accounts.items()
        }

    def announce_ready(self, sealed: Mapping[str, Sealed]) -> dict[str, StepResult]:
        """Say once that all slots are accounted for and, of a guest batch, that it is ready.

        The update of the trackers decides who speaks; whoever comes later finds nothing to do.
        Raises BrokenSeal, and announces none, when a batch is not what its seals say.
        """
        batches = sorted(sealed)
        done = {b: StepResult(outcome("nothing_to_announce", b), posted=True) for b in batches}
        with self.pool.connection() as conn:
            slots = db.slots.essays_of(conn, batches, *ACCOUNTED)
            trackers = db.batches.trackers(conn, batches)  # last: if full, the slots are so
            announcements = {
                batch_id: announcement(batch, slots[batch_id], sealed[batch_id])
                for batch_id, batch in trackers.items()
                if batch.full
            }
            if not announcements:
                return done
            crashpoint("announcing")
            announced = db.completion.announce(conn, announcements)
        crashpoint("announced")
        self.slots.close(announced)
        for batch_id, seconds in announced.items():
            metrics.ready(seconds)
            _log_announced(trackers[batch_id], announcements[batch_id])
            value = outcome("announced", batch_id, status=announcements[batch_id].status)
            done[batch_id] = StepResult(value, posted=True)
        return done

    def complete(self, batch_id: str) -> StepResult:
        """Seal and announce a full batch here and now, as the chord does with many hands."""
        seal = self.seal_slots({batch_id: WHOLE_BATCH})[batch_id]
        agrees = self.seal_books([batch_id]).get(batch_id, False)
        return self.announce_ready({batch_id: Sealed([seal], agrees)})[batch_id]

    # --- the deadline passes -------------------------------------------------------------------

    def time_out(self, batch_id: str) -> StepResult:
        """Do what a batch wants at its deadline: close it, or proceed with what is there.

        Nothing happens before the deadline, in the database's clock, or a second time.
        """
        done, seconds = StepResult(outcome("not_due", batch_id)), None
        with db.transaction(self.pool) as conn:
            missing = db.batches.fail_open_slots(conn, batch_id)  # slots before tracker, as always
            batch = db.batches.overdue(conn, batch_id)
            if batch is None:
                raise Rollback
            essays = db.slots.essays_in(conn, batch_id, EssayStatus.READY_FOR_PROCESSING)
            events = []
            if not db.outbox.was_posted(conn, batch_id, BATCH_READINESS_TIMEOUT.name):  # once
                events.append(
                    timeout_event(batch.tracker, essays, missing, batch.waited_s, batch.on_deadline)
                )
            proceeds = batch.on_deadline is OnDeadline.PROCEED
            if not proceeds:
                db.batches.time_out(conn, batch_id)
            elif batch.tracker.manifest_sha256 is None:
                db.batches.fill_up(conn, batch_id)
            else:
                seconds = db.completion.set_ready(conn, batch_id)
                manifest = batch.tracker.manifest_sha256
                events.append(essays_ready(batch.tracker, essays, manifest, after_deadline=True))
            db.outbox.post(conn, batch_id, events)
            full = proceeds and batch.tracker.manifest_sha256 is None
            done = StepResult(outcome("timed_out", batch_id), full=full, posted=True)
        if done.posted:
            metrics.ready(seconds)
            log.warning("deadline_passed", batch_id=batch_id, missing=len(missing))
            self.slots.close([batch_id])
        return self.complete(batch_id) if done.full else done

    # --- students are confirmed, the batch is amended or given up ------------------------------

    def confirm_students(
        self, event: StudentAssociationsConfirmed, idem: Idempotency
    ) -> StepResult:
        """Store whose essays they are, and make a regular batch ready.

        A batch that is full but not announced yet is announced first. Raises UnknownBatch,
        UnknownEssay, WrongBatchState.
        """
        with self.pool.connection() as conn:
            tracker = db.batches.tracker(conn, event.batch_id)
        if tracker and tracker.full:
            self.complete(event.batch_id)
        return self._confirm(event, idem)

    @retry_on_conflict
    def _confirm(self, event: StudentAssociationsConfirmed, idem: Idempotency) -> StepResult:
        batch_id = event.batch_id
        rows = [association.model_dump(mode="json") for association in event.associations]
        value = outcome("confirmed", batch_id, associated=len(rows))
        with db.transaction(self.pool) as conn:
            tracker = db.batches.tracker(conn, batch_id, lock=True)
            if done := replayed(conn, idem):
                return done
            if tracker is None:
                raise UnknownBatch.named(batch_id)
            students = db.slots.students(conn, batch_id)
            _check_of_this_class(tracker, event, students)
            if tracker.status is BatchStatus.READY_FOR_PIPELINE_EXECUTION and all(
                students[row["essay_id"]] == row["student_id"] for row in rows
            ):
                db.idempotency.write_key(conn, idem, batch_id, value)
                return StepResult(value)
            if tracker.status is not BatchStatus.AWAITING_STUDENT_VALIDATION:
                raise WrongBatchState(
                    f"batch {batch_id} is {tracker.status}; students are confirmed while it is"
                    f" {BatchStatus.AWAITING_STUDENT_VALIDATION}"
                )
            db.slots.associate(conn, batch_id, rows)
            essays = db.slots.essays_in(conn, batch_id, EssayStatus.READY_FOR_PROCESSING)
            seconds = db.completion.set_ready(conn, batch_id)
            assert tracker.manifest_sha256 is not None, f"batch {batch_id} was never sealed"
            late = db.outbox.was_posted(conn, batch_id, BATCH_READINESS_TIMEOUT.name)
            ready = essays_ready(tracker, essays, tracker.manifest_sha256, after_deadline=late)
            db.outbox.post(conn, batch_id, [ready])
            db.idempotency.write_key(conn, idem, batch_id, value)
        metrics.ready(seconds)
        return StepResult(value, posted=True)

    @retry_on_conflict
    def amend_batch(
        self, event: BatchAmended, idem: Idempotency, watch: Watch = nullcontext
    ) -> StepResult:
        """Change a batch before it is sealed. Raises UnknownBatch, WrongBatchState.

        An announcement that read the batch before the change takes no effect, so a full batch is
        sealed again: `StepResult.full` says so.
        """
        batch_id = event.batch_id
        value = outcome("amended", batch_id)
        with db.transaction(self.pool) as conn:
            if done := replayed(conn, idem):
                return done
            with watch(conn):
                open_slots = db.batches.amend(
                    conn, batch_id, event.student_prompt_ref, event.deadline_s, event.on_deadline
                )
            if open_slots is None:
                tracker = _registered(conn, batch_id)
                raise WrongBatchState(
                    f"batch {batch_id} is {tracker.status}; it can be amended until it is sealed"
                )
            db.idempotency.write_key(conn, idem, batch_id, value)
        return StepResult(value, full=open_slots == 0)

    def cancel_batch(
        self, event: BatchCancelled, idem: Idempotency, watch: Watch = nullcontext
    ) -> StepResult:
        """Close a batch before it is ready. Raises UnknownBatch, WrongBatchState."""
        done = self._cancel(event, idem, watch)
        self.slots.close([event.batch_id])
        return done

    @retry_on_conflict
    def _cancel(self, event: BatchCancelled, idem: Idempotency, watch: Watch) -> StepResult:
        batch_id = event.batch_id
        value = outcome("cancelled", batch_id)
        with db.transaction(self.pool) as conn:
            if done := replayed(conn, idem):
                return done
            with watch(conn):
                db.batches.close_open_slots(conn, batch_id)
                cancelled = db.batches.cancel(conn, batch_id, event.reason)
            if cancelled:
                db.outbox.post(conn, batch_id, [batch_cancelled(batch_id, event.reason)])
            else:
                tracker = _registered(conn, batch_id)
                if tracker.status is not BatchStatus.CANCELLED:
                    raise WrongBatchState(
                        f"batch {batch_id} is {tracker.status} already; it cannot be cancelled"
                    )
            db.idempotency.write_key(conn, idem, batch_id, value)
        return StepResult(value, posted=cancelled)


def _log_announced(batch: Tracker, announced: Announcement) -> None:
    log.info(
        "announced",
        batch_id=batch.batch_id,
        correlation_id=str(batch.correlation_id),
        status=announced.status,
        essays=announced.provisioned_count,
        failed=batch.expected_count - announced.provisioned_count,
    )


def _check_of_this_class(
    batch: Tracker, event: StudentAssociationsConfirmed, students: Collection[str]
) -> None:
    """Refuse another class, and essays that are none of those that `students` has."""
    if batch.class_id != event.class_id:
        raise WrongBatchState(
            f"batch {batch.batch_id} was registered with another class_id than this one, or"
            " without; correct it and resend"
        )
    if unknown := sorted({each.essay_id for each in event.associations} - set(students)):
        named = ", ".join(unknown[:5])
        raise UnknownEssay(f"batch {batch.batch_id} has no essay {named}; correct it and resend")


def _registered(conn: Conn, batch_id: str) -> Tracker:
    """Read a batch. Raises UnknownBatch."""
    tracker = db.batches.tracker(conn, batch_id)
    if tracker is None:
        raise UnknownBatch.named(batch_id)
    return tracker


def _refuse_contradictions(conn: Conn, event: BatchEssaysRegistered, row: Row) -> None:
    """Compare the second registration of a batch, whose row would be this, with its first one."""
    given = {name for name in event.model_fields_set if getattr(event, name) is not None}
    if other := db.batches.contradictions(conn, row, given):
        names = ", ".join(other)
        step = f"; {AMEND_BATCH.name} changes it" if AMENDABLE.issuperset(other) else ""
        raise RegistrationConflict(
            f"batch {event.batch_id} is registered with other {names}; it keeps those{step}"
        )


def _already_registered(conn: Conn, tracker: Tracker, idem: Idempotency) -> StepResult:
    value = outcome("already_registered", tracker.batch_id)
    db.idempotency.write_key(conn, idem, tracker.batch_id, value)
    return StepResult(value, full=tracker.full)
