"""How much one client, and all of them, may have of the ops page at once.

A client is an address; behind a reverse proxy everybody is one client.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

from starlette.types import Scope

CONNECTIONS, OF_CLIENT = 600, 300  # open connections: fit, with all else, into 1 024 descriptors
BACKLOG = 100  # connections accepted at once: so a new one is read before others displace it
STREAMS, STREAMS_OF_CLIENT = 400, 200  # live pages
HEAD_S = 10.0  # from the connection, or the last answer, to the end of a request's head
BEHIND_S = 30.0  # for a client to take what was sent
KEEP_ALIVE_S = 5  # for the first byte of the next request
HEAD_BYTES = 32 * 1024  # request line and headers
FORM_BYTES = 32 * 1024  # the body of a form of a page that acts
ADDRESS_BYTES = 16 * 1024  # path and query: a search of 1 024 characters fits
NETWORK_BITS = 64  # of an IPv6 address: a host may have all addresses that begin with them


class Crowded(Exception):
    """So many have what was asked for that there is none left for now."""


def network_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the network of an IPv6 address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    bits = 128 - NETWORK_BITS
    return f"{IPv6Address(int(parsed) >> bits << bits)}/{NETWORK_BITS}"


def client_of(scope: Scope) -> str:
    """Return what counts as the client of a request."""
    return network_of(scope["client"][0]) if scope["client"] else ""


@dataclass
class Places:
    """A number of places, of which one client may take some."""

    total: int
    of_client: int
    taken: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def place(self, client: str) -> Iterator[None]:
        """Take a place for a while. Raises Crowded."""
        if self.taken.total() >= self.total or self.taken[client] >= self.of_client:
            raise Crowded
        self.taken[client] += 1
        try:
            yield
        finally:
            self.taken[client] -= 1
            if not self.taken[client]:
                del self.taken[client]
