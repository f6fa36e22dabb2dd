"""What a sender may have to deal with. Each is an ELSError."""

from els_client._service.errors import ELSError, InvalidEvent

__all__ = ["BrokerAway", "ELSError", "InvalidEvent", "SpoolFull", "SpoolUnusable", "TaskFailed"]


class BrokerAway(ELSError):
    """The broker does not take messages, and there is no spool. The message is not sent."""

    code = "BROKER_AWAY"


class SpoolFull(ELSError):
    """The spool holds as much as it may. The message is not sent; send it again later."""

    code = "SPOOL_FULL"


class SpoolUnusable(ELSError):
    """The spool cannot be read or written. The message is not sent."""

    code = "SPOOL_UNUSABLE"


class TaskFailed(ELSError):
    """The service met an error that it did not expect, and keeps the message as a dead letter."""

    code = "INTERNAL_ERROR"
