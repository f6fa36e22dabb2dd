"""Whether the Redis broker refuses this process: it answers, but with an error.

A replica, a full memory, a disk that fails, a missing right: the connection is well, so connecting
again would not help. A worker pauses instead, and asks again every few seconds.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic

import structlog
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 10.0
ERROR_CHARS = 300  # of an error's text; that of a script may quote it
# What a server says that can be reached. redis-py makes lost connections of the first two.
AT_CONNECT = (AuthenticationError, BusyLoadingError, ResponseError)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Refusal:
    """What the broker says, and since when it refuses."""

    error: str
    since: datetime


class Refusals:
    """The present state of one process. A pause doubles until the broker takes a command."""

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

    def note(self, error: RedisError, *, while_connecting: bool = False) -> None:
        """Pause, and log the first refusal and each one with another code."""
        text = _text(error)
        code = text.partition(" ")[0]
        if self.current is None or code != self._code:
            log.error("broker_refuses", error=text)
        since = self.current.since if self.current else datetime.now(UTC)
        self.current, self._code = Refusal(text, since), code
        self._while_connecting = while_connecting
        self._paused_until = monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def connected(self) -> None:
        """Note that a connection was made, which ends a refusal to make one."""
        if self.current and self._while_connecting:
            self.end()

    def end(self) -> None:
        """Note that the broker has taken a command."""
        if self.current is None:
            return
        log.warning(
            "broker_takes_again", error=self.current.error, since=self.current.since.isoformat()
        )
        self.current, self._pause_s = None, FIRST_PAUSE_S


def _text(error: RedisError) -> str:
    """Write the error as Redis sent it: redis-py cuts the code off the codes that it knows."""
    return " ".join(filter(None, (error.status_code, str(error))))[:ERROR_CHARS]
