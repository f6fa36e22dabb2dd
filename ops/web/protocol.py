"""HTTP/1.1 as uvicorn speaks it, with what it lacks: an end to each wait for a client.

uvicorn limits neither the time of a request's head, nor that of reading an answer, nor the
connections of one client. Here a connection over the limit displaces one that has sent no request,
and over the limit of all, one of the client that has the most. So no client keeps others out.
"""

from asyncio import BaseTransport, Transport
from collections import Counter
from collections.abc import Sequence
from time import monotonic
from typing import cast

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from ops.web.limits import BEHIND_S, CONNECTIONS, HEAD_S, OF_CLIENT, network_of

CHECKED_EVERY = 10  # ticks of uvicorn's main loop: a second
LINGER_S = 1.0  # to take the answer that ends a connection
LINGERING = 50  # connections that may do so at once
CLOSING = b"connection: close\r\ncontent-length: 0\r\n\r\n"
LATE = b"HTTP/1.1 408 Request Timeout\r\n" + CLOSING
FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 10\r\n" + CLOSING


class LimitedProtocol(H11Protocol):
    """One connection."""

    connected_at = 0.0
    waits_since = 0.0  # for a request
    behind_since: float | None = None  # has not taken all that was sent
    network = ""  # of the client
    ended = False  # it is answered for good, and reads no more

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast("Transport", transport))
        self.waits_since = self.connected_at = monotonic()
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
            begun, _ = self.conn.trailing_data
            self._end(LATE if begun else b"")  # a browser connects before it has a request

    def data_received(self, data: bytes) -> None:
        if not self.ended:
            super().data_received(data)

    def _end(self, answer: bytes) -> None:
        """Answer and close, a moment later: a client that still sends would lose the answer."""
        if self.ended or self.transport.is_closing():
            return
        self.ended = True
        self.transport.write(answer)
        if sum(each.ended for each in cast("set[LimitedProtocol]", self.connections)) > LINGERING:
            self.transport.close()
        else:
            self.loop.call_later(LINGER_S, self.transport.close)

    def _make_room(self) -> None:
        """If there are too many connections, end one of the client that has the most."""
        everybody = connections_of(self.connections)
        held = Counter(each.network for each in everybody)
        if held[self.network] > OF_CLIENT:
            self._displace([each for each in everybody if each.network == self.network])
        elif len(everybody) > CONNECTIONS:
            [(greediest, _)] = held.most_common(1)
            self._displace([each for each in everybody if each.network == greediest])

    def _displace(self, crowd: Sequence["LimitedProtocol"]) -> None:
        """End the one that has waited longest for its request, else the one that came last."""
        waiting = [each for each in crowd if each is not self and not each.answering]
        if waiting:
            min(waiting, key=lambda each: each.waits_since).transport.abort()
        elif self in crowd:
            self._end(FULL)
        else:
            max(crowd, key=lambda each: each.connected_at).transport.abort()


def connections_of(protocols: object) -> list[LimitedProtocol]:
    """List the connections that hold a socket, without those that are answered for good."""
    listed = [each for each in cast("set[LimitedProtocol]", protocols) if not each.ended]
    return [each for each in listed if each.behind or not each.transport.is_closing()]


class LimitedServer(Server):
    """Looks every second which clients are too slow; `ticked_at` tells that its loop runs."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ticked_at = monotonic()

    async def on_tick(self, counter: int) -> bool:
        self.ticked_at = monotonic()
        if counter % CHECKED_EVERY == 0:
            for connection in list(cast("set[LimitedProtocol]", self.server_state.connections)):
                connection.check(self.ticked_at)
        return await super().on_tick(counter)
