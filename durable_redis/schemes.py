"""What Kombu forgets of URLs where `broker_transport` names the transport: their schemes.

Then `rediss://` would be a plain connection; and the next URL of a list, to which Kombu goes on
after an error, would bring the transport of its scheme, which is Kombu's own.
"""

import ssl
from functools import wraps
from typing import Any

from kombu import connection, transport

VERIFIED = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
# Kombu accepts any certificate where a `rediss://` URL says nothing of it. Who means that also says
# `ssl_check_hostname=false`.
KOMBUS_DEFAULT = {"ssl_cert_reqs": ssl.CERT_NONE}


class SecureHost(str):
    """The host of a `rediss://` URL."""

    __slots__ = ()


def remember_tls() -> None:
    """Let Kombu keep the scheme `rediss` in the host, as it parses a URL. Others see a text."""
    parse: Any = connection.parse_url  # type: ignore[attr-defined] # not in Kombu's types

    @wraps(parse)
    def parse_url(url: str) -> dict[str, Any]:  # Any: as Kombu has it
        parts: dict[str, Any] = parse(url)
        if parts["transport"] == "rediss":
            parts["hostname"] = SecureHost(parts["hostname"] or "localhost")
        return parts

    connection.parse_url = parse_url  # type: ignore[attr-defined] # likewise


def asked_tls(client: Any) -> object:  # Any: Kombu's connection
    """Return what a connection asks of TLS: a server is verified unless that is turned off."""
    asked = client.ssl or isinstance(client.hostname, SecureHost)
    return VERIFIED if asked is True or asked == KOMBUS_DEFAULT else client.ssl


def keep_transport(client: Any) -> None:  # Any: likewise
    """Stay on the transport that somebody named, whatever URL of a list is the next."""
    named, switch = client.transport_cls, client.switch
    if named in transport.TRANSPORT_ALIASES or "switch" in vars(client):
        return

    def switch_host(url: str) -> None:
        switch(url)
        client.transport_cls = named

    client.switch = switch_host
