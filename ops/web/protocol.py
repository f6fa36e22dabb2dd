"""HTTP/1.1 as uvicorn speaks it, with what it lacks: an end to each wait for a client.

uvicorn limits neither the time of a request's head, nor that of reading an answer, nor the
connections of one client. Here a connection over the limit displaces the one that has sent no
request for the longest, so half-open ones keep nobody out.
"""

from asyncio import BaseTransport, Transport
from time import monotonic
from typing import cast

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from ops.web.limits import BEHIND_S, CONNECTIONS, HEAD_S, OF_CLIENT, network_of

CHECKED_EVERY = 10  # ticks of uvicorn's main loop: a second
CLOSING = b"connection: close\r\ncontent-length: 0\r\n\r\n"
LATE = b"HTTP/1.1 408 Request Timeout\r\n" + CLOSING
FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 10\r\n" + CLOSING


class LimitedProtocol(H11Protocol):
    """One connection."""

    waits_since = 0.0  # for a request
    behind_since: float | None = None  # has not taken all that was sent
    network = ""  # of the client

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast("Transport", transport))
        self.waits_since = monotonic()
        self.network = network_of(self.client[0]) if self.client else ""
        self._make_room()

    def on_response_complete(self) -> None:
        self.waits_since = monotonic()
        super().on_response_complete()

    @property
    def answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def behind(self) -> bool:
        return self.transport.get_write_buffer_size() > 0

    def check(self, now: float) -> None:
        """End the connection if its client is too slow."""
        self.behind_since = (self.behind_since or now) if self.behind else None
        if self.behind_since is not None and now - self.behind_since > BEHIND_S:
            self.transport.abort()
        elif not self.answering and now - self.waits_since > HEAD_S:
            self._end(LATE)

    def _end(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()

    def _make_room(self) -> None:
        """End a connection that waits for its request, if there are too many; else this one."""
        everybody = connections_of(self.connections)
        crowd = [each for each in everybody if each.network == self.network]
        if len(crowd) <= OF_CLIENT:
            if len(everybody) <= CONNECTIONS:
                return
            crowd = everybody
        waiting = [each for each in crowd if each is not self and not each.answering]
        if waiting:
            min(waiting, key=lambda each: each.waits_since).transport.abort()
        else:
            self._end(FULL)


def connections_of(protocols: object) -> list[LimitedProtocol]:
    """List the connections that still hold a socket."""
    listed = cast("set[LimitedProtocol]", protocols)
    return [each for each in listed if each.behind or not each.transport.is_closing()]


class LimitedServer(Server):
    """Looks every second which clients are too slow; `ticked_at` tells that its loop runs."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ticked_at = monotonic()

    async def on_tick(self, counter: int) -> bool:
        self.ticked_at = monotonic()
        if counter % CHECKED_EVERY == 0:
            for connection in connections_of(self.server_state.connections):
                connection.check(self.ticked_at)
        return await super().on_tick(counter)
