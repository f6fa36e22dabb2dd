"""What is wrong with a certificate: errors of libraries in plain words, and a handshake of our own.

Libraries say little of a wrong certificate, or of ours; Python's `ssl` says what is wrong.
"""

import re
import socket
import ssl
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from core.servers.tls import CA, CERTIFICATE, HOSTNAME, KEY, VERIFY

SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # Postgres: speak TLS from here on
ALERT_S = 0.5  # for a server to refuse our certificate, after the handshake


class Fault(NamedTuple):
    """What is wrong with the certificate of a server, or with ours, and the next step."""

    wrong: str
    step: str


RENEW = "renew the certificate of the server"
GIVE_CA = "give the file of its authority as ELS_TLS_CA, or in the URL"
GIVE_OURS = "give ELS_TLS_CERT and ELS_TLS_KEY, signed by an authority that the server knows"
# What OpenSSL, libpq and Postgres say, the more telling words first.
FAULTS: tuple[tuple[str, str, str], ...] = (
    ("alert certificate expired", "our client certificate has expired", "renew it"),
    ("certificate has expired", "its certificate has expired", RENEW),
    ("not yet valid", "its certificate is not valid yet", "compare the clocks; " + RENEW),
    ("certificate revoked", "a certificate is revoked", RENEW),
    (
        "hostname mismatch|ip address mismatch|does not match host name",
        "its certificate is for another host",
        "name the server in the URL as its certificate does, or get one for this name",
    ),
    (
        "certificate required|requires a valid client|did not return a certificate"
        "|client certificate|handshake failure",
        "it wants a client certificate",
        GIVE_OURS,
    ),
    (
        "alert (unknown ca|bad certificate|certificate unknown|unsupported certificate)",
        "it does not accept our client certificate",
        GIVE_OURS,
    ),
    (
        "self[- ]signed|unable to get (local )?issuer|unable to verify the first"
        "|certificate verify failed",
        "no authority that we know signed its certificate",
        GIVE_CA,
    ),
    (
        "wrong version number|does not support ssl|record layer failure|packet length too long",
        "it speaks no TLS at this port",
        "give its TLS port, or a URL without TLS",
    ),
    (
        "takes no plain connection",
        "it speaks TLS at this port",
        "ask for TLS in the URL: ?ssl_cert_reqs=required",
    ),
    (
        "no master found for",
        "no Sentinel names the primary",
        "start the Sentinels, or mend the URL or ELS_REDIS_MASTER",
    ),
    ("eof occurred in violation|unexpected eof", "it ended the TLS handshake", GIVE_OURS),
)
NO_PRIMARY, ENDED = (wrong for _, wrong, _ in FAULTS[-2:])
OPEN = (NO_PRIMARY, ENDED)  # which a handshake may explain


def describe(error: BaseException | str | None) -> Fault | None:
    """Say what is wrong with a certificate; None if the error is about something else."""
    texts = [str(error)]
    while isinstance(error, BaseException):
        error = error.__cause__ or error.__context__
        texts.append(str(error))
    text = re.sub(r"\[SSL[^]]*\] ?", "", "\n".join(texts)).replace("_", " ")
    for words, wrong, step in FAULTS:
        if match := re.search(words, text, re.I):
            return Fault(f"{wrong} ({_detail(text, match)})", step)
    return None


def _detail(text: str, match: re.Match[str]) -> str:
    """Return the words around a match: from the colon before to the end of the line."""
    start = max(text.rfind(mark, 0, match.start()) for mark in ("\n", ": "))
    line, _, _ = text[max(start, 0) :].strip(" :\n").partition("\n")
    return re.split(r" \(| : <", line)[0][:200]  # redis-py shows whole objects after " : <"


def handshake(
    at: tuple[str, int], given: Mapping[str, str], timeout_s: float, *, postgres: bool = False
) -> None:
    """Speak TLS with a server, by the `ssl_…` parameters of a URL. Raises OSError."""
    context = ssl.create_default_context(cafile=given.get(CA))
    context.check_hostname = given.get(HOSTNAME) != "false"
    if given.get(VERIFY) == "none":
        context.verify_mode = ssl.CERT_NONE
    if certificate := given.get(CERTIFICATE):
        context.load_cert_chain(certificate, given.get(KEY))
    with socket.create_connection(at, timeout_s) as plain:
        if postgres:
            plain.sendall(SSL_REQUEST)
            if plain.recv(1) != b"S":
                raise ConnectionError("the server does not support SSL")
        with context.wrap_socket(plain, server_hostname=at[0]) as secure:
            secure.settimeout(ALERT_S)
            with suppress(TimeoutError):
                secure.recv(1)  # a server that does not take our certificate says so here


def speaks_tls(at: tuple[str, int], timeout_s: float) -> bool:
    """Say whether a server takes part in a handshake, whatever it thinks of our certificate."""
    try:
        handshake(at, {VERIFY: "none", HOSTNAME: "false"}, timeout_s)
    except OSError as error:
        return isinstance(error, ssl.SSLError) and "ALERT" in str(error.reason)
    return True


def speaks_plainly(at: tuple[str, int], timeout_s: float) -> bool:
    """Say whether a Redis answers without TLS: it waits for the rest of a handshake."""
    with suppress(OSError), socket.create_connection(at, timeout_s) as plain:
        plain.settimeout(timeout_s)
        plain.sendall(b"PING\r\n")
        return plain.recv(1) in {b"+", b"-"}
    return False
