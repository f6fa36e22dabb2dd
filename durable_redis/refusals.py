"""Whether Redis refuses this process: it answers, but with an error.

A replica, a full memory, a disk that fails, a missing right: the connection is well, so connecting
again would not help. A worker pauses instead, and asks again every few seconds.
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic

from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 10.0
ONE_KEY = "WRONGTYPE"  # a queue is no list; Redis takes commands for the others
CALM_S = 3.0  # without that, until it counts as over
ERROR_CHARS = 300  # of an error's text; that of a script may quote it
# What a server says that a client can reach. redis-py takes the first two for lost connections.
AT_CONNECT = (AuthenticationError, BusyLoadingError, ResponseError)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """What Redis says, and since when it refuses."""

    error: str
    since: datetime


class Refusals:
    """The state of one process. A pause doubles until Redis takes a command."""

    def __init__(self) -> None:
        self.current: Refusal | None = None
        self._code = ""
        self._pause_s = FIRST_PAUSE_S
        self._paused_until = float("-inf")
        self._while_connecting = False

    @property
    def paused(self) -> bool:
        """Whether it is too early to ask again."""
        return self.current is not None and monotonic() < self._paused_until

    @property
    def is_over(self) -> bool:
        """Whether a command that Redis takes now is a sign that it refuses none."""
        return self._code != ONE_KEY or monotonic() > self._paused_until + CALM_S

    def begin(self, error: RedisError, *, while_connecting: bool = False) -> None:
        """Pause; log the first refusal, and each one with another code."""
        text = _text(error)
        code = text.partition(" ")[0]
        if self.current is None or code != self._code:
            log.error("broker_refuses: %s", text)
        since = self.current.since if self.current else datetime.now(UTC)
        self.current, self._code = Refusal(text, since), code
        self._while_connecting = while_connecting
        self._paused_until = monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def connected(self) -> None:
        """Take note of a new connection, which ends a refusal to connect."""
        if self.current and self._while_connecting:
            self.end()

    def end(self) -> None:
        """Take note that Redis has taken a command."""
        if self.current is None:
            return
        since = self.current.since.isoformat()
        log.warning("broker_takes_again: it refused since %s: %s", since, self.current.error)
        self.current, self._pause_s = None, FIRST_PAUSE_S


REFUSALS = Refusals()  # of this process


def refusal() -> Refusal | None:
    """Return what Redis refuses this worker with at present; None if it takes commands."""
    return REFUSALS.current


def note_refusal(error: BaseException, *, while_connecting: bool = False) -> bool:
    """Pause if this error, or its cause, is a refusal; False if it is another error."""
    refused = error if isinstance(error, AT_CONNECT) else error.__cause__
    if not isinstance(refused, AT_CONNECT):
        return False
    REFUSALS.begin(refused, while_connecting=while_connecting)
    return True


def _text(error: RedisError) -> str:
    """Write the error as Redis sent it: redis-py cuts off the codes that it knows."""
    text = str(error).partition(", with args")[0]  # what follows quotes the command
    return " ".join(filter(None, (error.status_code, text)))[:ERROR_CHARS]
