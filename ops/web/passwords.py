"""The password of the ops page, and how long a client waits that has given wrong ones.

A wait begins before the password is compared, so it slows the right one as well: otherwise whoever
guesses would know the right one by its quick answer.
"""

import asyncio
import base64
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from time import monotonic

import structlog
from pydantic import SecretStr

from ops.web.limits import Crowded

FREE = 3  # wrong passwords without a wait
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 4.0  # doubles with each wrong one
AT_ONCE = 8  # requests of one client that may wait: a page loads its files together
FORGOTTEN_S = 600.0  # without a wrong password
CLIENTS = 1_000  # remembered, the last ones

log = structlog.get_logger(__name__)


@dataclass
class Guesses:
    """What one client has tried."""

    wrong: int = 0
    waiting: int = 0
    last_at: float = 0.0

    @property
    def wait_s(self) -> float:
        if self.wrong < FREE:
            return 0.0
        return float(min(FIRST_WAIT_S * 2 ** min(self.wrong - FREE, 10), LONGEST_WAIT_S))


class Password:
    """Compares what clients give with `user:password`."""

    def __init__(self, wanted: SecretStr) -> None:
        self._wanted = base64.b64encode(wanted.get_secret_value().encode())
        self.guesses: OrderedDict[str, Guesses] = OrderedDict()

    async def admits(self, client: str, authorization: bytes) -> bool:
        """Tell whether the header has the password, after the wait of this client.

        Raises Crowded if so many of its requests wait already.
        """
        scheme, _, given = authorization.partition(b" ")
        if not given:
            return False  # a browser's first request: nothing was guessed
        await self._wait(client)
        right = secrets.compare_digest(given.strip(), self._wanted)
        if right and scheme.lower() == b"basic":
            self.guesses.pop(client, None)
            return True
        self._note_wrong(client)
        return False

    async def _wait(self, client: str) -> None:
        guesses = self.guesses.get(client)
        if guesses is None:
            return
        if monotonic() - guesses.last_at > FORGOTTEN_S:
            del self.guesses[client]
        elif guesses.waiting >= AT_ONCE:
            raise Crowded
        elif guesses.wait_s:
            guesses.waiting += 1
            try:
                await asyncio.sleep(guesses.wait_s)
            finally:
                guesses.waiting -= 1

    def _note_wrong(self, client: str) -> None:
        guesses = self.guesses.setdefault(client, Guesses())
        self.guesses.move_to_end(client)
        guesses.wrong, guesses.last_at = guesses.wrong + 1, monotonic()
        log.warning("password_refused", client=client, times=guesses.wrong)
        while len(self.guesses) > CLIENTS:
            self.guesses.popitem(last=False)
