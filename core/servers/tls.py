"""TLS for the three servers: what the settings say, as parameters of each server's own URL.

A parameter of the URL wins. A server is verified, its host too, unless somebody turns that off by
name.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

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
