"""Seals: what the completion chord checks, and the events that its callback announces. Pure."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from core.db.batches import Tracker
from core.db.completion import Announcement
from core.errors import BrokenSeal
from core.events import (
    EVENT_LIMIT,
    KIB,
    Outgoing,
    canonical,
    manifest_line,
    manifest_sha256,
)
from core.states import ACCOUNTED, BatchStatus, OnDeadline, completed_status

Row = Mapping[str, Any]  # Any: a database row
ESSAYS_IN_REF = 1_000  # essays that an event over the limit still carries, if they fit
ROOM = 64 * KIB  # of an event over the limit: for its names, its references and the first essays
OBJECTS = ("metadata", "student_prompt_ref")  # the sender's, of up to 8 MiB
NOT_RECEIVED = "NOT_RECEIVED"  # category of a slot that nothing came for until the deadline
MISSING_NAMED = 5_000  # missing essays named in an event: 330 KiB of ids at most
NEVER_FITS = EVENT_LIMIT // 100  # essays; each takes over 100 bytes of JSON


class Seal(TypedDict):
    """One range of slots, as a header of the chord saw it. JSON, as it travels through Redis."""

    low: str
    high: str | None
    sealed: bool
    provisioned: int
    failed: int
    digest: str


class Sealed(NamedTuple):
    """What the headers of a chord saw of a batch: its slots by range; whether its books agree."""

    slots: Sequence[Seal]
    books: bool


def seal_of(low: str, high: str | None, slots: Sequence[Row]) -> Seal:
    """Seal a range: each slot must be assigned or failed; the digest is over the assigned ones."""
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
    """Write the events of a complete batch, after holding its slots against the seals.

    `slots` are the assigned and the failed ones, in the order of their ids. Raises BrokenSeal.
    """
    if not sealed.books:
        raise BrokenSeal(f"batch {batch.batch_id}: its counter and its slots disagree")
    essays, failed = _by_outcome(slots)
    _hold_against(batch.batch_id, essays, failed, sealed.slots)
    status = completed_status(batch.class_type, len(essays))
    manifest = manifest_sha256(essays)
    completed = {
        "batch_id": batch.batch_id,
        "expected_count": batch.expected_count,
        "provisioned_count": len(essays),
        "failed_count": len(failed),
        "manifest_sha256": manifest,
        **_registered(batch, "metadata"),
    }
    events = [
        Outgoing("BatchContentProvisioningCompleted", _with_essays(completed, "essays", essays))
    ]
    if failed:
        events.append(_validation_errors(batch.batch_id, failed, critical=not essays))
    if status is BatchStatus.READY_FOR_PIPELINE_EXECUTION:
        events.append(essays_ready(batch, essays, manifest))
    return Announcement(status, len(essays), manifest, events)


def essays_ready(batch: Tracker, essays: Sequence[Row], manifest: str) -> Outgoing:
    """Write the readiness event."""
    data = {
        "batch_id": batch.batch_id,
        "expected_count": batch.expected_count,
        "ready_count": len(essays),
        "failed_count": batch.expected_count - len(essays),
        "manifest_sha256": manifest,
        **_registered(batch, *OBJECTS),
    }
    return Outgoing("BatchEssaysReady", _with_essays(data, "ready_essays", essays))


def timeout_event(
    batch: Tracker,
    essays: Sequence[Row],
    missing: Sequence[str],
    waited_s: float,
    on_deadline: OnDeadline,
) -> Outgoing:
    """Write the event of a passed deadline; `missing` are the essays that nothing came for."""
    data = {
        "batch_id": batch.batch_id,
        "expected_count": batch.expected_count,
        "actual_count": len(essays),
        "failed_count": batch.expected_count - len(essays) - len(missing),
        "missing_count": len(missing),
        "missing_essay_ids": list(missing[:MISSING_NAMED]),
        "waited_s": round(waited_s, 3),
        "on_deadline": on_deadline,
    }
    return Outgoing("BatchReadinessTimeout", _with_essays(data, "ready_essays", essays))


def _registered(batch: Tracker, *objects: str) -> Row:
    """Tell what the registration said of a batch, to the letter; what it left out is left out."""
    names = ("class_type", "course_code", "user_id", "org_id", "class_id", *objects)
    told = {name: getattr(batch, name) for name in names}
    return {name: value for name, value in told.items() if value is not None}


def _by_outcome(slots: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Pick the assigned slots, and the failed ones."""
    assigned, failed = ([s for s in slots if s["current_status"] == each] for each in ACCOUNTED)
    return assigned, failed


def _hold_against(
    batch_id: str, essays: Sequence[Row], failed: Sequence[Row], seals: Sequence[Seal]
) -> None:
    counted = (sum(s["provisioned"] for s in seals), sum(s["failed"] for s in seals))
    if not all(s["sealed"] for s in seals) or counted != (len(essays), len(failed)):
        raise BrokenSeal(
            f"batch {batch_id}: {counted} slots were sealed as assigned and failed,"
            f" but it has {(len(essays), len(failed))}; the sweep will seal it anew"
        )
    start = 0
    for seal in seals:
        end = start + seal["provisioned"]
        if _digest(essays[start:end]) != seal["digest"]:
            raise BrokenSeal(
                f"batch {batch_id}: the slots from {seal['low']} on have changed"
                " since they were sealed; the sweep will seal them anew"
            )
        start = end


def _digest(essays: Sequence[Row]) -> str:
    return hashlib.sha256("".join(map(manifest_line, essays)).encode()).hexdigest()


def _validation_errors(batch_id: str, failed: Sequence[Row], *, critical: bool) -> Outgoing:
    categories = Counter(essay["validation_error_code"] or NOT_RECEIVED for essay in failed)
    data = {
        "batch_id": batch_id,
        "total_errors": len(failed),
        "error_categories": dict(sorted(categories.items())),
        "critical_failure": critical,
    }
    return Outgoing("BatchValidationErrors", _with_essays(data, "failed_essays", failed))


def _with_essays(data: Row, field: str, rows: Sequence[Row]) -> Row:
    """Add the essays, or a reference to them where the event would be over `EVENT_LIMIT`."""
    if len(rows) <= NEVER_FITS:
        whole = {**data, field: [_essay(row) for row in rows]}
        if _size(whole) <= EVENT_LIMIT:
            return whole
    reference: dict[str, object] = {
        "field": field,
        "total": len(rows),
        "first": [],
        "rest": "essay_states of this batch, ordered by essay_id",
    }
    data = {**_without_large_objects(data), "essays_ref": reference}
    reference["first"] = _that_fit(rows[:ESSAYS_IN_REF], EVENT_LIMIT - _size(data))
    return data


def _without_large_objects(data: Row) -> Row:
    """Refer to the sender's objects, the larger first, where they leave no `ROOM` in an event."""
    sizes = {name: _size(data[name]) for name in OBJECTS if name in data}
    references: dict[str, Row] = {}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if _size(data) <= EVENT_LIMIT - ROOM:
            break
        references[name] = {"bytes": sizes[name], "rest": f"batch_essay_trackers.{name}"}
        data = {key: value for key, value in data.items() if key != name}
    return {**data, "objects_ref": references} if references else data


def _that_fit(rows: Sequence[Row], room: int) -> list[Row]:
    """Tell of the first essays, of as many as fit into so many bytes."""
    told = []
    for essay in map(_essay, rows):
        room -= _size(essay) + 1  # a comma
        if room < 0:
            break
        told.append(essay)
    return told


def _size(value: object) -> int:
    """Measure a value as canonical JSON, in bytes."""
    return len(canonical(value).encode())


def _essay(row: Row) -> Row:
    """Tell what an event says of an essay; what it does not have is left out."""
    names = (
        "essay_id",
        "text_storage_id",
        "file_upload_id",
        "original_file_name",
        "validation_error_code",
        "student_id",
    )
    return {name: row[name] for name in names if row[name] is not None}
