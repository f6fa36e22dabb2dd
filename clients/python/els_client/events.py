"""The events that downstream services receive, as pydantic models. They are the service's own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from els_client._service.catalogue import EVENTS, event_task
from els_client._service.event_bodies import (
    BODIES,
    BatchCancelled,
    BatchContentProvisioningCompleted,
    BatchEssaysReady,
    BatchReadinessTimeout,
    BatchValidationErrors,
    Body,
    CloudEvent,
    Essay,
    EssaySlotAssigned,
    EssaysRef,
    ExcessContentProvisioned,
    FailedEssay,
    MessageRefused,
    ObjectRef,
    ReadyEssay,
)
from els_client._service.events import manifest_sha256

__all__ = [
    "TASKS_BY_TYPE",
    "BatchCancelled",
    "BatchContentProvisioningCompleted",
    "BatchEssaysReady",
    "BatchReadinessTimeout",
    "BatchValidationErrors",
    "Body",
    "CloudEvent",
    "Essay",
    "EssaySlotAssigned",
    "EssaysLeftOut",
    "EssaysRef",
    "ExcessContentProvisioned",
    "FailedEssay",
    "ManifestMismatch",
    "MessageRefused",
    "ObjectRef",
    "ReadyEssay",
    "Received",
    "manifest_sha256",
    "read_event",
    "verify_manifest",
]
# The Celery task that gets events of a type where no route of the service says otherwise.
TASKS_BY_TYPE = {name: event_task(name) for name in EVENTS}


class ManifestMismatch(ValueError):
    """The essays are not those of the manifest: some are missing, changed or of another batch."""


class EssaysLeftOut(ValueError):
    """The event is too large to carry its essays. Read them, then verify them."""


@dataclass(frozen=True)
class Received:
    """An event: its envelope, and its body by type; None: a type that this release does not know.

    `envelope.data` is the whole body as it came. `body` leaves out fields that this release does
    not know.
    """

    envelope: CloudEvent
    body: Body | None


def read_event(event: Mapping[str, Any]) -> Received:  # Any: JSON
    """Read what a receiving task got as `event`. Raises pydantic.ValidationError."""
    envelope = CloudEvent.model_validate(event, extra="ignore")
    known = BODIES.get(envelope.type)
    body = known.model_validate(envelope.data, extra="ignore") if known else None
    return Received(envelope, body)


def verify_manifest(
    body: BatchContentProvisioningCompleted | BatchEssaysReady,
    essays: Iterable[Essay | Mapping[str, Any]] | None = None,  # Any: JSON
) -> None:
    """Check that the essays of an event are those that the service sealed, all and unchanged.

    `essays`: read elsewhere, such as from the service's `/v1`, for an event with `essays_ref` in
    place of its list. Raises ManifestMismatch, and EssaysLeftOut where they are needed and not
    given.
    """
    if essays is None:
        essays = body.ready_essays if isinstance(body, BatchEssaysReady) else body.essays
    if essays is None:
        raise EssaysLeftOut(f"batch {body.batch_id}: the event is too large to carry its essays")
    found = manifest_sha256(
        essay.model_dump() if isinstance(essay, Essay) else essay for essay in essays
    )
    if found != body.manifest_sha256:
        raise ManifestMismatch(
            f"batch {body.batch_id}: the manifest of these essays is {found}, and that of the"
            f" event {body.manifest_sha256}"
        )
