# `make reference` copies this module from core/events.py; change that one.
"""Outgoing events: their bodies, their limits of size, CloudEvents, and the manifest."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from uuid import UUID, uuid5

from els_client._service.catalogue import (
    BATCH_CANCELLED,
    BATCH_CONTENT_PROVISIONING_COMPLETED,
    BATCH_ESSAYS_READY,
    BATCH_READINESS_TIMEOUT,
    BATCH_VALIDATION_ERRORS,
    ESSAY_SLOT_ASSIGNED,
    MESSAGE_REFUSED,
)
from els_client._service.messages import KIB
from els_client._service.parsing import canonical
from els_client._service.states import EssayStatus, OnDeadline
from els_client._service.tracker import Tracker

Row = Mapping[str, Any]  # Any: a database row, or a JSON object
SOURCE = "urn:essay-lifecycle-service"
EVENT_IDS = UUID("6f1d5c1e-6b4c-5f0a-9d51-0c6f5a3f7f5e")  # namespace of the outgoing event ids
EVENT_LIMIT = 512 * KIB  # an event over this carries `essays_ref`
ESSAYS_IN_REF = 1_000  # essays that an event over the limit still carries, if they fit
ROOM = 64 * KIB  # of an event over the limit: for its names, its references and the first essays
OBJECTS = ("metadata", "student_prompt_ref")  # the sender's, of up to 8 MiB
NOT_RECEIVED = "NOT_RECEIVED"  # category of a slot that was open at the deadline
NO_BATCH = "unknown"  # the subject of a refusal that names no batch
DEADLINE_PASSED = "DEADLINE_PASSED"  # why a batch went on without some contents or students
MISSING_NAMED = 5_000  # missing essays named in an event: 330 KiB of ids at most
LISTED_STATES = {  # the essays of a list, where the read API lists them
    "essays": EssayStatus.READY_FOR_PROCESSING,
    "ready_essays": EssayStatus.READY_FOR_PROCESSING,
    "failed_essays": EssayStatus.CONTENT_INGESTION_FAILED,
}
NEVER_FITS = EVENT_LIMIT // 100  # essays; each takes over 100 bytes of JSON


@dataclass(frozen=True)
class Outgoing:
    """An event for the outbox. `generation` distinguishes events of one type and batch."""

    type: str
    data: Row
    generation: str = "1"


def outgoing_id(batch_id: str, event_type: str, generation: str) -> UUID:
    """Return the id of an event: always the same, so that consumers can drop repeats."""
    return uuid5(EVENT_IDS, f"{batch_id}/{event_type}/{generation}")


# --- bodies ------------------------------------------------------------------------------------


def completion(
    batch: Tracker, essays: Sequence[Row], failed: Sequence[Row], manifest: str
) -> list[Outgoing]:
    """Write the events of any batch with all of its slots accounted for."""
    data = {
        "batch_id": batch.batch_id,
        "expected_count": batch.expected_count,
        "provisioned_count": len(essays),
        "failed_count": len(failed),
        "manifest_sha256": manifest,
        **_registered(batch, "metadata"),
        **_reason(after_deadline=lacks_some(failed)),
    }
    events = [
        Outgoing(
            BATCH_CONTENT_PROVISIONING_COMPLETED.name,
            _with_essays(data, "essays", essays),
        )
    ]
    if failed:
        events.append(_validation_errors(batch.batch_id, failed, critical=not essays))
    return events


def essays_ready(
    batch: Tracker, essays: Sequence[Row], manifest: str, *, after_deadline: bool
) -> Outgoing:
    data = {
        "batch_id": batch.batch_id,
        "expected_count": batch.expected_count,
        "ready_count": len(essays),
        "failed_count": batch.expected_count - len(essays),
        "manifest_sha256": manifest,
        **_registered(batch, *OBJECTS),
        **_reason(after_deadline=after_deadline),
    }
    return Outgoing(BATCH_ESSAYS_READY.name, _with_essays(data, "ready_essays", essays))


def timeout_event(
    batch: Tracker,
    essays: Sequence[Row],
    missing: Sequence[str],
    waited_s: float,
    on_deadline: OnDeadline,
) -> Outgoing:
    """Write the event of a passed deadline; `missing` are the essays of the open slots."""
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
    return Outgoing(BATCH_READINESS_TIMEOUT.name, _with_essays(data, "ready_essays", essays))


def slot_assigned(batch_id: str, essay: Row) -> Outgoing:
    names = ("essay_id", "text_storage_id", "file_upload_id", "original_file_name")
    data = {"batch_id": batch_id, **{name: essay[name] for name in names}}
    return Outgoing(ESSAY_SLOT_ASSIGNED.name, data, generation=essay["text_storage_id"])


def batch_cancelled(batch_id: str, reason: str) -> Outgoing:
    return Outgoing(BATCH_CANCELLED.name, {"batch_id": batch_id, "reason": reason})


def message_refused(letter: int, task: str, code: str, message: str, ids: Row) -> Outgoing:
    """Write the event of a dead letter; `ids` are those of its message that are well-formed."""
    data = {"dead_letter": letter, "task": task, "code": code, "message": message, **ids}
    return Outgoing(MESSAGE_REFUSED.name, data, generation=str(letter))


def _validation_errors(batch_id: str, failed: Sequence[Row], *, critical: bool) -> Outgoing:
    categories = Counter(essay["validation_error_code"] or NOT_RECEIVED for essay in failed)
    data = {
        "batch_id": batch_id,
        "total_errors": len(failed),
        "error_categories": dict(sorted(categories.items())),
        "critical_failure": critical,
    }
    return Outgoing(BATCH_VALIDATION_ERRORS.name, _with_essays(data, "failed_essays", failed))


def lacks_some(failed: Iterable[Row]) -> bool:
    """Tell whether a deadline has passed before every slot had a content or a rejected file."""
    return any(essay["validation_error_code"] is None for essay in failed)


def _reason(*, after_deadline: bool) -> Row:
    return {"reason": DEADLINE_PASSED} if after_deadline else {}


def _registered(batch: Tracker, *objects: str) -> Row:
    """Repeat fields of the registration to the letter, without those that it left out."""
    names = (
        "class_type",
        "course_code",
        "course_language",
        "user_id",
        "org_id",
        "class_id",
        *objects,
    )
    fields = {name: getattr(batch, name) for name in names}
    return {name: value for name, value in fields.items() if value is not None}


# --- sizes -------------------------------------------------------------------------------------


def _with_essays(data: Row, field: str, rows: Sequence[Row]) -> Row:
    """Add the essays, or a reference to them if the event would be over `EVENT_LIMIT`."""
    if len(rows) <= NEVER_FITS:
        whole = {**data, field: [_essay(row) for row in rows]}
        if _size(whole) <= EVENT_LIMIT:
            return whole
    reference: dict[str, object] = {
        "field": field,
        "total": len(rows),
        "first": [],
        "rest": f"/v1/batches/{data['batch_id']}/essays?state={LISTED_STATES[field]}",
    }
    data = {**_without_large_objects(data), "essays_ref": reference}
    reference["first"] = _that_fit(rows[:ESSAYS_IN_REF], EVENT_LIMIT - _size(data))
    return data


def _without_large_objects(data: Row) -> Row:
    """Replace the sender's objects by references, the larger first, until `ROOM` is left."""
    sizes = {name: _size(data[name]) for name in OBJECTS if name in data}
    references: dict[str, Row] = {}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if _size(data) <= EVENT_LIMIT - ROOM:
            break
        references[name] = {"bytes": sizes[name], "rest": f"batch_essay_trackers.{name}"}
        data = {key: value for key, value in data.items() if key != name}
    return {**data, "objects_ref": references} if references else data


def _that_fit(rows: Sequence[Row], room: int) -> list[Row]:
    """Return the first essays, as many as fit into `room` bytes."""
    fitting = []
    for essay in map(_essay, rows):
        room -= _size(essay) + 1  # a comma
        if room < 0:
            break
        fitting.append(essay)
    return fitting


def _size(value: object) -> int:
    return len(canonical(value).encode())


def _essay(row: Row) -> Row:
    names = (
        "essay_id",
        "text_storage_id",
        "file_upload_id",
        "original_file_name",
        "validation_error_code",
        "validation_error_detail",
        "failed_at",
        "student_id",
    )
    return {name: row[name] for name in names if row[name] is not None}


# --- what goes over the wire -------------------------------------------------------------------


def cloud_event(row: Row) -> dict[str, Any]:  # Any: a JSON object
    event = {
        "specversion": "1.0",
        "id": str(row["id"]),
        "source": SOURCE,
        "type": row["type"],
        "subject": row["batch_id"] or row["data"].get("batch_id", NO_BATCH),
        "time": row["created_at"].astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "sequence": row["sequence"],
        "correlationid": str(row["correlation_id"]),
        "data": row["data"],
    }
    if row["traceparent"]:
        event["traceparent"] = row["traceparent"]
    return event


def manifest_line(essay: Row) -> str:
    return f"{essay['essay_id']} {essay['text_storage_id']}\n"


def manifest_sha256(essays: Iterable[Row]) -> str:
    """Compute the manifest of these essays; compare it with `manifest_sha256` of an event.

    Each assigned essay has a line: its id, a space, its text_storage_id, a newline. The manifest is
    the SHA-256, in hex, of these lines in bytewise order. Failed slots have no line. No id contains
    a blank or a newline, so two different lists never have the same lines.
    """
    return hashlib.sha256("".join(sorted(map(manifest_line, essays))).encode()).hexdigest()
