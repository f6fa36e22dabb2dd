"""TLS for the three servers: what the settings say, as parameters of each server's own URL.

A parameter of the URL wins. A server is verified, its host too, unless somebody turns that off by
name. `describe` says in a line what is wrong with a certificate.
"""

import re
import socket
import ssl
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

# Redis and RabbitMQ: the parameters that redis-py, Kombu and Celery read. Others are an error, as a
# misspelt `ssl_ca_cert` would go unnoticed.
VERIFY, HOSTNAME = "ssl_cert_reqs", "ssl_check_hostname"
CA, CERTIFICATE, KEY = "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"
PARAMETERS = (CA, CERTIFICATE, KEY, VERIFY, HOSTNAME)
VERIFIED = {"required": "required", "optional": "required", "none": "none"}
SYSTEM_BUNDLES = (  # of certification authorities, as a file: libpq of a wheel finds no other
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # Postgres: speak TLS from here on
ALERT_S = 0.5  # for a server to refuse our certificate, after the handshake


@dataclass(frozen=True)
class TLS:
    """What `ELS_TLS_*` say. `verify` None: nothing is said, so servers are verified."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    verify: bool | None = None

    def parameters(self, given: Mapping[str, str]) -> dict[str, str]:
        """Complete the `ssl_…` parameters of a URL of Redis or RabbitMQ. Raises ValueError."""
        if unknown := sorted(n for n in given if n.startswith("ssl_") and n not in PARAMETERS):
            raise ValueError(
                f"there is no parameter {unknown[0]}; there are {', '.join(PARAMETERS)}"
            )
        said = given.get(VERIFY, "none" if self.verify is False else "required")
        verified = VERIFIED.get(said.lower().removeprefix("cert_"))
        if verified is None:
            raise ValueError(f"{VERIFY} is required or none")
        client = {CERTIFICATE: self.certificate, KEY: self.key}
        if CERTIFICATE in given or KEY in given:
            client = {CERTIFICATE: given.get(CERTIFICATE), KEY: given.get(KEY)}
        hostname = "false" if verified == "none" else given.get(HOSTNAME, "true").lower()
        if hostname not in {"true", "false"}:
            raise ValueError(f"{HOSTNAME} is true or false")
        found = {CA: given.get(CA, self.ca), **client, VERIFY: verified, HOSTNAME: hostname}
        result = {name: value for name, value in found.items() if value}
        check_files(result.get(CA), result.get(CERTIFICATE), result.get(KEY))
        return result

    def for_postgres(self, given: Mapping[str, str], hosts: list[str]) -> dict[str, str]:
        """Return what to add to the parameters of a URL of Postgres.

        A server on this host is asked for TLS only where the URL does. Raises ValueError.
        """
        mode = given.get("sslmode")
        wanted = self.ca or self.certificate or self.verify
        if mode is None and (not wanted or all(map(is_local, hosts))):
            return {}
        if mode == "disable":
            return {}
        more: dict[str, str | None] = {}
        if mode is None:
            mode = more["sslmode"] = "require" if self.verify is False else "verify-full"
        if mode.startswith("verify") and "sslrootcert" not in given:
            more["sslrootcert"] = self.ca or system_bundle()
        if "sslcert" not in given and "sslkey" not in given:
            more |= {"sslcert": self.certificate, "sslkey": self.key}
        found = {name: value for name, value in more.items() if value}
        check_files(found.get("sslrootcert"), found.get("sslcert"), found.get("sslkey"))
        return found


def is_local(host: str) -> bool:
    """Say whether a host is this one: a socket, or loopback."""
    if host in {"", "localhost"} or host.startswith(("/", "@")):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def system_bundle() -> str | None:
    """Return the file of the system's authorities; None if the user has one, or there is none."""
    if (Path.home() / ".postgresql" / "root.crt").exists():  # libpq finds it by itself
        return None
    found = (ssl.get_default_verify_paths().cafile, *SYSTEM_BUNDLES)
    return next((path for path in found if path and Path(path).exists()), None)


def check_files(ca: str | None, certificate: str | None, key: str | None) -> None:
    """Read the files as a connection will. Raises ValueError that names the file and its fault."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca:
            context.load_verify_locations(ca)
    except OSError as error:
        raise ValueError(f"{ca} holds no certificates of authorities: {_why(error)}") from error
    if key and not certificate:
        raise ValueError(f"there is a key ({key}), but no certificate")
    try:
        if certificate:
            context.load_cert_chain(certificate, key, password="")  # else it asks the terminal
    except (OSError, ValueError) as error:
        pair = f"{certificate} and {key}" if key else certificate
        raise ValueError(f"{pair} are no certificate and its key: {_why(error)}") from error


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).replace("_", " ").lower()
    return str(getattr(error, "strerror", None) or error)


# --- what is wrong with a certificate ------------------------------------------------------------


class Fault(NamedTuple):
    """What is wrong with the certificate of a server, or with ours, and the next step."""

    wrong: str
    step: str


RENEW = "renew the certificate of the server"
GIVE_CA = "give the file of its authority as ELS_TLS_CA, or in the URL"
GIVE_OURS = "give ELS_TLS_CERT and ELS_TLS_KEY, signed by an authority that the server knows"
# What OpenSSL, libpq and Postgres say, the more telling words first.
FAULTS: tuple[tuple[str, Fault], ...] = (
    ("alert certificate expired", Fault("our client certificate has expired", "renew it")),
    ("certificate has expired", Fault("its certificate has expired", RENEW)),
    ("not yet valid", Fault("its certificate is not valid yet", "compare the clocks; " + RENEW)),
    ("certificate revoked", Fault("a certificate is revoked", RENEW)),
    (
        "hostname mismatch|ip address mismatch|does not match host name",
        Fault(
            "its certificate is for another host",
            "name the server in the URL as its certificate does, or get one for this name",
        ),
    ),
    (
        "certificate required|requires a valid client|did not return a certificate"
        "|client certificate|handshake failure",
        Fault("it wants a client certificate", GIVE_OURS),
    ),
    (
        "alert (unknown ca|bad certificate|certificate unknown|unsupported certificate)",
        Fault("it does not accept our client certificate", GIVE_OURS),
    ),
    (
        "self[- ]signed|unable to get (local )?issuer|unable to verify the first"
        "|certificate verify failed",
        Fault("no authority that we know signed its certificate", GIVE_CA),
    ),
    (
        "wrong version number|does not support ssl|record layer failure|packet length too long",
        Fault("it speaks no TLS at this port", "give its TLS port, or a URL without TLS"),
    ),
    (
        "takes no plain connection",
        Fault("it speaks TLS at this port", "ask for TLS in the URL: ?ssl_cert_reqs=required"),
    ),
    (
        "no master found for",
        Fault(
            "no Sentinel names the primary",
            "start the Sentinels, or mend the URL or ELS_REDIS_MASTER",
        ),
    ),
    ("eof occurred in violation|unexpected eof", Fault("it ended the TLS handshake", GIVE_OURS)),
)
NO_PRIMARY, ENDED = (fault.wrong for _, fault in FAULTS[-2:])
OPEN = (NO_PRIMARY, ENDED)  # which a handshake may explain


def describe(error: BaseException | str | None) -> Fault | None:
    """Say what is wrong with a certificate; None if the error is about something else."""
    texts = [error] if isinstance(error, str) else []
    seen: BaseException | None = None if isinstance(error, str) else error
    while seen is not None:
        texts.append(str(seen))
        seen = seen.__cause__ or seen.__context__
    text = re.sub(r"\[SSL[^]]*\] ?", "", "\n".join(texts)).replace("_", " ")
    found = [(match, fault) for words, fault in FAULTS if (match := re.search(words, text, re.I))]
    if not found:
        return None
    match, fault = found[0]
    detail = _detail(text, match)
    return Fault(f"{fault.wrong} ({detail})", fault.step)


def _detail(text: str, match: re.Match[str]) -> str:
    """Return the words around a match: from the colon before to the end of the line."""
    start = max(text.rfind(mark, 0, match.start()) for mark in ("\n", ": "))
    line, _, _ = text[max(start, 0) :].strip(" :\n").partition("\n")
    return re.split(r" \(| : <", line)[0][:200]  # redis-py shows whole objects after " : <"


def handshake(
    at: tuple[str, int], given: Mapping[str, str], timeout_s: float, *, postgres: bool = False
) -> None:
    """Speak TLS with a server, by the `ssl_…` parameters of a URL. Raises OSError.

    Libraries say little of a wrong certificate, or of ours; Python's `ssl` says what is wrong.
    """
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
