# `make reference` copies this module from core/errors.py; change that one.
"""The errors that this service raises on purpose. `core.faults` decides what follows them."""


class ELSError(Exception):
    """Its text says what happened, to which id, and what to do next."""


class Refusal(ELSError):
    """The message is wrong and has changed nothing. Keep it as a dead letter; do not retry."""

    code: str  # of the dead letter


class InvalidEvent(Refusal):
    code = "VALIDATION_ERROR"


class IdempotencyConflict(Refusal):
    """Another body came with this event id before."""

    code = "IDEMPOTENCY_CONFLICT"


class RegistrationConflict(Refusal):
    """The batch is registered already, and this registration contradicts it."""

    code = "REGISTRATION_CONFLICT"


class UnknownBatch(Refusal):
    code = "UNKNOWN_BATCH"

    @classmethod
    def named(cls, batch_id: str) -> "UnknownBatch":
        return cls(f"batch {batch_id} is not registered; register it and resend, or correct the id")


class UnknownEssay(Refusal):
    """The message names an essay that is not of its batch."""

    code = "UNKNOWN_ESSAY"


class WrongBatchState(Refusal):
    code = "WRONG_BATCH_STATE"


class NotExecuted(ELSError):
    """The message never became a task, or must not run any more: it becomes a dead letter."""


class SlotsInFlight(ELSError):
    """The batch has open slots, but other messages have claimed them all. Retry in a moment."""


class BrokenSeal(ELSError):
    """The slots of a batch are not what its seals say. The sweep seals the batch again."""


class NotSent(ELSError):
    """The broker does not take events; it has taken only the first ones, if any."""

    def __init__(self, text: str, sent: int) -> None:
        super().__init__(text)
        self.sent = sent


class BadSettings(ELSError):
    """A setting is wrong or missing."""


class StackError(ELSError):
    """`els` cannot start, find or stop a stack, or reach its servers."""
