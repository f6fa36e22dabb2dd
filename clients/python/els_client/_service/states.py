# `make reference` copies this module from core/states.py; change that one.
"""The states of a batch and of an essay."""

from enum import StrEnum


class BatchStatus(StrEnum):
    """`batch_essay_trackers.status`."""

    AWAITING_CONTENT_VALIDATION = "awaiting_content_validation"
    AWAITING_STUDENT_VALIDATION = "awaiting_student_validation"
    READY_FOR_PIPELINE_EXECUTION = "ready_for_pipeline_execution"
    CONTENT_INGESTION_FAILED = "content_ingestion_failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


class EssayStatus(StrEnum):
    """`essay_states.current_status`. A slot is open while it awaits content."""

    AWAITING_CONTENT = "awaiting_content"
    READY_FOR_PROCESSING = "ready_for_processing"
    CONTENT_INGESTION_FAILED = "content_ingestion_failed"
    CANCELLED = "cancelled"


ACCOUNTED = EssayStatus.READY_FOR_PROCESSING, EssayStatus.CONTENT_INGESTION_FAILED  # of a slot


class ClassType(StrEnum):
    """A batch with a class id is regular, with or without an organisation."""

    GUEST = "GUEST"
    REGULAR = "REGULAR"

    @classmethod
    def of(cls, class_id: str | None) -> "ClassType":
        return cls.GUEST if class_id is None else cls.REGULAR


class ExcessReason(StrEnum):
    """Why a submission got no slot."""

    NO_AVAILABLE_SLOT = "NO_AVAILABLE_SLOT"
    BATCH_CANCELLED = "BATCH_CANCELLED"
    BATCH_TIMED_OUT = "BATCH_TIMED_OUT"


class OnDeadline(StrEnum):
    """What to do with a batch whose deadline passes."""

    FAIL = "fail"
    PROCEED = "proceed"


OPEN = {BatchStatus.AWAITING_CONTENT_VALIDATION, BatchStatus.AWAITING_STUDENT_VALIDATION}
CLOSED: dict[BatchStatus, ExcessReason] = {
    BatchStatus.CANCELLED: ExcessReason.BATCH_CANCELLED,
    BatchStatus.TIMED_OUT: ExcessReason.BATCH_TIMED_OUT,
}


def completed_status(class_type: ClassType, provisioned_count: int) -> BatchStatus:
    """Return the status of a batch once all of its slots are accounted for."""
    if provisioned_count == 0:
        return BatchStatus.CONTENT_INGESTION_FAILED
    if class_type is ClassType.REGULAR:
        return BatchStatus.AWAITING_STUDENT_VALIDATION
    return BatchStatus.READY_FOR_PIPELINE_EXECUTION
