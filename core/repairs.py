"""The repairs: each mends one batch that breaks a rule of `core/rules.py`. Each may run twice.

A repair returns whether it changed anything. The sweep checks the rule again to see whether that
helped.
"""

from dataclasses import dataclass

from core import db, outbox
from core.catalogue import BATCH_ESSAYS_READY, BATCH_READINESS_TIMEOUT
from core.errors import BrokenSeal
from core.events import essays_ready
from core.lifecycle import Lifecycle
from core.seals import Sealed, announcement, seal_of
from core.states import ACCOUNTED, BatchStatus, EssayStatus


@dataclass(frozen=True)
class RepairContext:
    """What repairs work with."""

    lifecycle: Lifecycle
    send: outbox.Send


def restore_status(context: RepairContext, batch_id: str) -> bool:
    """Restore a status that somebody changed by hand; a closed batch keeps no open slot."""
    with db.transaction(context.lifecycle.pool) as conn:
        restored = db.sweep.restore_status(conn, batch_id)
        if restored is BatchStatus.CANCELLED:
            db.batches.close_open_slots(conn, batch_id)
        elif restored is BatchStatus.TIMED_OUT:
            db.batches.fail_open_slots(conn, batch_id)
    if restored is not None:
        reseed(context, batch_id)
    return restored is not None


def reopen_slots(context: RepairContext, batch_id: str) -> bool:
    """Undo the cancellation of single slots, and offer those that are open again."""
    reopened = False
    with db.transaction(context.lifecycle.pool) as conn:
        reopened = db.sweep.reopen_cancelled_slots(conn, batch_id)
    if reopened:
        reseed(context, batch_id)
    return reopened


def recount(context: RepairContext, batch_id: str) -> bool:
    with db.transaction(context.lifecycle.pool) as conn:
        return db.sweep.recount(conn, batch_id)


def drain(context: RepairContext, batch_id: str) -> bool:
    context.lifecycle.drain(batch_id)
    return True


def announce(context: RepairContext, batch_id: str) -> bool:
    return bool(context.lifecycle.complete(batch_id).value["outcome"] == "announced")


def reseed(context: RepairContext, batch_id: str) -> bool:
    """Rebuild the free slots in Redis from Postgres."""
    with context.lifecycle.pool.connection() as conn:
        open_slots = db.slots.open_slots(conn, batch_id)
    if open_slots:
        context.lifecycle.slots.seed(batch_id, open_slots)
    else:
        context.lifecycle.slots.close([batch_id])
    return True


def bring_deadline_near(context: RepairContext, batch_id: str) -> bool:
    with context.lifecycle.pool.connection() as conn:
        return db.batches.bring_deadline_near(conn, batch_id)


def time_out(context: RepairContext, batch_id: str) -> bool:
    return bool(context.lifecycle.time_out(batch_id).value["outcome"] != "not_due")


def relay(context: RepairContext, batch_id: str) -> bool:
    return outbox.relay(context.lifecycle.pool, [batch_id], context.send) > 0


def post_missing(context: RepairContext, batch_id: str) -> bool:
    """Write the missing events of a sealed or ready batch again.

    Their ids follow from their contents, so a consumer that has one drops the repeat. Raises
    BrokenSeal where the slots have changed since the batch was sealed.
    """
    with db.transaction(context.lifecycle.pool) as conn:
        tracker = db.batches.tracker(conn, batch_id, lock=True)
        rows = db.outbox.missing_events(conn, [batch_id])
        if tracker is None or not rows:
            return False
        slots = db.slots.essays_in(conn, batch_id, *ACCOUNTED)
        written = announcement(
            tracker, slots, Sealed([seal_of("", None, slots)], accounts_agree=True)
        )
        if written.manifest_sha256 != tracker.manifest_sha256:
            raise BrokenSeal(f"batch {batch_id}: its slots have changed since they were sealed")
        events = {event.type: event for event in written.events}
        if tracker.status is BatchStatus.READY_FOR_PIPELINE_EXECUTION:
            essays = [s for s in slots if s["current_status"] == EssayStatus.READY_FOR_PROCESSING]
            late = db.outbox.was_posted(conn, batch_id, BATCH_READINESS_TIMEOUT.name)
            events[BATCH_ESSAYS_READY.name] = essays_ready(
                tracker, essays, written.manifest_sha256, after_deadline=late
            )
        db.outbox.post_again(conn, batch_id, [events[each] for each in rows[0]["types"]])
    return True
