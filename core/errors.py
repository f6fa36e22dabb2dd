"""The few errors, each a fact with the ids it is about.

`ELSError.code` is the public error code of the contract. An error is either a refusal (the
message is wrong: kept as a dead letter) or it may pass (`SlotsInFlight`: try again in a moment).
"""


class ELSError(Exception):
    """Anything that this service raises on purpose."""

    code = "ERROR"


class Refusal(ELSError):
    """The message cannot be carried out as it is; state is unchanged. Do not retry: park it."""


class InvalidEvent(Refusal):
    """The body does not validate against its event."""

    code = "VALIDATION_ERROR"


class IdempotencyConflict(Refusal):
    """This event id was seen before, with another body."""

    code = "IDEMPOTENCY_CONFLICT"


class RegistrationConflict(Refusal):
    """The batch is registered already, with other essay ids."""

    code = "REGISTRATION_CONFLICT"


class UnknownBatch(Refusal):
    """No such batch is registered."""

    code = "UNKNOWN_BATCH"


class UnknownEssay(Refusal):
    """An essay is named that does not belong to the batch."""

    code = "UNKNOWN_ESSAY"


class WrongBatchState(Refusal):
    """The batch is in a state that does not allow this."""

    code = "WRONG_BATCH_STATE"


class SlotsInFlight(ELSError):
    """Postgres has open slots, but others hold every claim on them. Retry in a moment."""

    code = "SLOTS_IN_FLIGHT"


class BrokenSeal(ELSError):
    """The slots of a batch are not what its seals say. The sweep seals it anew."""

    code = "BROKEN_SEAL"


class BadSettings(ELSError):
    """A setting is unknown or has a value that cannot be used."""

    code = "BAD_SETTINGS"


class StackError(ELSError):
    """The embedded stack cannot be started, found or stopped."""

    code = "STACK_ERROR"
