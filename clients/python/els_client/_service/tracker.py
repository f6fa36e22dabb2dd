# `make reference` copies this module from core/tracker.py; change that one.
"""A batch, as its row says."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from els_client._service.states import CLOSED, BatchStatus, ClassType, ExcessReason


@dataclass(frozen=True)
class Tracker:
    """A row of `batch_essay_trackers`."""

    batch_id: str
    status: BatchStatus
    class_id: str | None
    org_id: str | None
    user_id: str
    course_code: str
    course_language: str | None
    correlation_id: UUID
    expected_count: int
    available_slots: int
    essay_ids_sha256: bytes
    completed_at: datetime | None
    manifest_sha256: str | None
    student_prompt_ref: Mapping[str, Any] | None  # Any: the sender's JSON
    metadata: Mapping[str, Any] | None  # Any: the sender's JSON
    amendments: int

    @property
    def class_type(self) -> ClassType:
        return ClassType.of(self.class_id)

    @property
    def full(self) -> bool:
        """Every slot is accounted for, but the batch is not announced yet."""
        return (
            self.status is BatchStatus.AWAITING_CONTENT_VALIDATION
            and self.available_slots == 0
            and self.completed_at is None
        )

    @property
    def excess_reason(self) -> ExcessReason:
        """Why a submission that finds no slot is excess."""
        return CLOSED.get(self.status, ExcessReason.NO_AVAILABLE_SLOT)
