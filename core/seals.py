"""Seals: the headers of the completion chord check the slots, its callback checks the seals."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from core.db.completion import Announcement
from core.errors import BrokenSeal
from core.events import Row, completion, essays_ready, lacks_some, manifest_line, manifest_sha256
from core.states import ACCOUNTED, BatchStatus, completed_status
from core.tracker import Tracker


class Seal(TypedDict):
    """One range of slots, as a header of the chord found it. Celery sends it as JSON."""

    low: str
    high: str | None
    sealed: bool
    provisioned: int
    failed: int
    digest: str


class Sealed(NamedTuple):
    """What the headers of a chord found: a seal for each range; whether the counter is right."""

    slots: Sequence[Seal]
    accounts_agree: bool


def seal_of(low: str, high: str | None, slots: Sequence[Row]) -> Seal:
    """Seal a range, from `low` up to but not including `high`. The digest is of assigned slots."""
    assigned, failed = _by_outcome(slots)
    return Seal(
        low=low,
        high=high,
        sealed=len(assigned) + len(failed) == len(slots),
        provisioned=len(assigned),
        failed=len(failed),
        digest=_digest(assigned),
    )


def announcement(batch: Tracker, slots: Sequence[Row], sealed: Sealed) -> Announcement:
    """Check the slots of a complete batch against its seals, then write its events.

    `slots` are the assigned and the failed ones, in the order of their ids. Raises BrokenSeal.
    """
    if not sealed.accounts_agree:
        raise BrokenSeal(f"batch {batch.batch_id}: its counter and its slots disagree")
    essays, failed = _by_outcome(slots)
    _check(batch.batch_id, essays, failed, sealed.slots)
    status = completed_status(batch.class_type, len(essays))
    manifest = manifest_sha256(essays)
    events = completion(batch, essays, failed, manifest)
    if status is BatchStatus.READY_FOR_PIPELINE_EXECUTION:
        events.append(essays_ready(batch, essays, manifest, after_deadline=lacks_some(failed)))
    return Announcement(status, len(essays), manifest, batch.amendments, events)


def _by_outcome(slots: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    assigned, failed = ([s for s in slots if s["current_status"] == each] for each in ACCOUNTED)
    return assigned, failed


def _check(
    batch_id: str, essays: Sequence[Row], failed: Sequence[Row], seals: Sequence[Seal]
) -> None:
    counted = (sum(s["provisioned"] for s in seals), sum(s["failed"] for s in seals))
    if not all(s["sealed"] for s in seals) or counted != (len(essays), len(failed)):
        raise BrokenSeal(
            f"batch {batch_id}: {counted} slots were sealed as assigned and failed,"
            f" but it has {(len(essays), len(failed))}; the sweep will seal it again"
        )
    start = 0
    for seal in seals:
        end = start + seal["provisioned"]
        if _digest(essays[start:end]) != seal["digest"]:
            raise BrokenSeal(
                f"batch {batch_id}: the slots from {seal['low']} on have changed"
                " since they were sealed; the sweep will seal them again"
            )
        start = end


def _digest(essays: Sequence[Row]) -> str:
    return hashlib.sha256("".join(map(manifest_line, essays)).encode()).hexdigest()
