"""Send to the Essay Lifecycle Service, receive from it once, and test against it."""

from els_client.errors import (
    BrokerAway,
    ELSError,
    InvalidEvent,
    SpoolFull,
    SpoolUnusable,
    TaskFailed,
)
from els_client.events import read_event, verify_manifest
from els_client.ids import correlation_id, event_id
from els_client.sender import Sender
from els_client.spool import Spooled
from els_client.upstream import Sent, Upstream

__all__ = [
    "BrokerAway",
    "ELSError",
    "InvalidEvent",
    "Sender",
    "Sent",
    "SpoolFull",
    "SpoolUnusable",
    "Spooled",
    "TaskFailed",
    "Upstream",
    "correlation_id",
    "event_id",
    "read_event",
    "verify_manifest",
]
