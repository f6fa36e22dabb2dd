"""The version of the messages between our own tasks, so that two releases work side by side.

A message says it in a header; 1.0.0 sends none, and that is version 1. All messages of a completion
chord have the version of whoever dispatched it, and a step answers in the version of its message. A
release that changes a message reads both versions and sends the old one; the next one sends the
new. Fields that a step does not know it ignores, so most changes need no new version.
"""

from typing import Any

from core.errors import ELSError

HEADER = "els-version"
OLDEST, NEWEST = 1, 1  # versions that this release reads
SENT = 1  # one that the last release reads too


class UnknownVersion(ELSError):
    """A message of a newer release, or of one that is no longer supported."""

    code = "UNKNOWN_VERSION"


def headers() -> dict[str, int]:
    """Return the headers of a message that this release sends to its own tasks."""
    return {HEADER: SENT}


def check(request: Any) -> None:  # Any: Celery's context of a task
    """Check that this release reads a message. Raises UnknownVersion."""
    said = (request.headers or {}).get(HEADER, 1)
    if type(said) is not int or not OLDEST <= said <= NEWEST:
        raise UnknownVersion(
            f"the message has version {str(said)[:20]}; this release reads {OLDEST} to {NEWEST}:"
            " start workers of the release that sent it, or discard it"
        )
