"""The events that upstream services send, as pydantic models. They are the service's own."""

from els_client._service.messages import (
    Association,
    AtDeadline,
    BatchAmended,
    BatchCancelled,
    BatchContentsProvisioned,
    BatchEssaysRegistered,
    Content,
    ErrorCode,
    EssayContentProvisioned,
    EssayValidationFailed,
    Event,
    StudentAssociationsConfirmed,
)

__all__ = [
    "Association",
    "AtDeadline",
    "BatchAmended",
    "BatchCancelled",
    "BatchContentsProvisioned",
    "BatchEssaysRegistered",
    "Content",
    "ErrorCode",
    "EssayContentProvisioned",
    "EssayValidationFailed",
    "Event",
    "StudentAssociationsConfirmed",
]
