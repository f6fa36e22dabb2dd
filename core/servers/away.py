"""Why a server cannot be reached, in words; TLS is asked once more, as its errors say little."""

from collections.abc import Iterator

from core.servers.finding import Finding, Severity
from core.servers.handshake import OPEN, describe, handshake, speaks_plainly, speaks_tls
from core.servers.postgres_url import parameters
from core.servers.tls import CA, CERTIFICATE, KEY, VERIFY
from core.servers.urls import SENTINEL_PORT, is_amqp, is_redis, pieces, query_of

PATIENCE_S = 5  # for the answer of a server
PORTS = {"rediss": 6379, "amqp": 5672, "amqps": 5671}  # where a URL names none


def away(server: str, url: str, error: Exception) -> Finding:
    """Say why a server cannot be reached; ask it once more where TLS leaves the reason open."""
    fault = describe(error)
    open_ = fault is None or fault.wrong.startswith(OPEN) or server == "postgres"
    if open_ and (fault or url.startswith(("rediss://", "amqps://"))):
        reason = _reason(url)
        error = reason if reason and describe(reason) else error
    return refused(server, error, f"start it, or mend {setting_of(server)}")


def _reason(url: str) -> Exception | None:
    """Speak TLS with the servers of a URL, until one says what is wrong."""
    reason: Exception | None = None
    for at, given in addresses(url):
        if url.startswith("sentinel://") and VERIFY not in given:
            if speaks_tls(at, PATIENCE_S):
                return ConnectionError("the server takes no plain connection")
            continue
        try:
            handshake(at, given, PATIENCE_S, postgres=url.startswith("postgres"))
        except TimeoutError as silence:
            plain = url.startswith("rediss://") and speaks_plainly(at, PATIENCE_S)
            reason = ConnectionError("the server does not support SSL") if plain else silence
        except (OSError, ValueError) as error:
            reason = error
            if describe(error):
                break
    return reason


def addresses(url: str) -> Iterator[tuple[tuple[str, int], dict[str, str]]]:
    """Yield each host and port of a URL, with its TLS parameters, named as for Redis."""
    if is_redis(url) or is_amqp(url):
        for parts in pieces(url):
            default = PORTS.get(parts.scheme, SENTINEL_PORT)
            yield (parts.hostname or "localhost", parts.port or default), query_of(parts)
        return
    given = {name: str(value) for name, value in parameters(url).items()}
    files = {CA: "sslrootcert", CERTIFICATE: "sslcert", KEY: "sslkey"}
    tls = {name: given[theirs] for name, theirs in files.items() if given.get(theirs)}
    hosts = (given.get("host") or given.get("hostaddr", "")).split(",")
    ports = given.get("port", "5432").split(",")
    for host, port in zip(hosts, ports * len(hosts), strict=False):
        yield (host, int(port or 5432)), tls


def setting_of(server: str) -> str:
    names = {"postgres": "ELS_DATABASE_URL", "redis": "ELS_REDIS_URL"}
    return names.get(server, "ELS_BROKER_URL")


def refused(server: str, error: Exception | str, step: str) -> Finding:
    wrong = " ".join(str(error).split()) or type(error).__name__
    if fault := describe(error):
        wrong, step = fault
    return Finding(server, Severity.FAULT, wrong, "the service does nothing without it", step)
