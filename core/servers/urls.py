"""The URLs of Redis and the broker: checked, and completed with what other settings say of them.

A URL then holds all that a connection needs, so it is enough to pass it on, to other processes too.
"""

import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from core.servers.tls import HOSTNAME, TLS, VERIFY

REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+socket", "sentinel")
AMQP_SCHEMES = ("amqp", "amqps", "pyamqp")
SCHEMES = {
    "ELS_REDIS_URL": REDIS_SCHEMES,
    "ELS_BROKER_URL": (*REDIS_SCHEMES, *AMQP_SCHEMES),
}
SECURE = ("rediss", "amqps")
SENTINEL_PORT = 26379
MASTER = "master_name"  # as Kombu and Celery call the primary's name
OF_SENTINELS = ("sentinel_username", "sentinel_password")
SOCKETS = ("unix", "redis+socket")
ONE_AT_A_TIME = ("redis", "rediss", *SOCKETS)
NUMBER, WHOLE, ANYTHING = r"\d+(\.\d+)?", r"\d+", r".*"
# What the URL of one Redis may set beside login, database and TLS, as redis-py and Kombu call it.
LIMITS = {
    "socket_timeout": NUMBER,
    "socket_connect_timeout": NUMBER,
    "socket_keepalive": ANYTHING,
    "health_check_interval": WHOLE,
    "max_connections": WHOLE,
    "retry_on_timeout": ANYTHING,
    "client_name": ANYTHING,
    "protocol": "[23]",
}
PLACES = ("username", "password", "db", "virtual_host")  # which have a place of their own as well
PORT = re.compile(r"(\[[^]]*\]|[^:]*):?")  # what stands before it, in a host
ESCAPE = "in a password write @ / : # ? % as %40 %2F %3A %23 %3F %25"
CLUSTER = ("redis+cluster", "rediss+cluster", "redis-cluster", "rediscluster", "cluster")


def complete(name: str, url: str, tls: TLS, primary: str | None = None) -> str:
    """Check a URL of Redis or of a broker; add its TLS, and to Sentinels the name of the primary.

    Raises ValueError, which names no part of the URL that may hold a password.
    """
    written = url.split(";")
    if url.startswith("sentinel://"):
        return _complete_sentinels(written, tls, primary)
    schemes = {_checked(name, each).scheme for each in written}
    if len(written) > 1 and (len(schemes) > 1 or schemes & {*ONE_AT_A_TIME}):
        raise ValueError(
            "it names several servers: give one, or Sentinels (sentinel://…;sentinel://…),"
            " or a cluster of RabbitMQ (amqp://…;amqp://…)"
        )
    done = ";".join(_with_tls(_one_redis(each), tls) for each in written)
    return done.replace("pyamqp://", "amqp://") if done.startswith("pyamqp://") else done


def completed(url: str) -> str:
    """Return a URL that may not come from the settings, with all that a connection needs.

    Raises ValueError.
    """
    secure = url.startswith(("rediss://", "amqps://", "sentinel://"))
    return complete("ELS_BROKER_URL", url, TLS()) if secure else url


def _checked(name: str, url: str) -> SplitResult:
    known = SCHEMES[name]
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme.lower() in CLUSTER:
        raise ValueError(
            "Redis Cluster is not supported: give one Redis (redis://, rediss://), or Sentinels"
            " (sentinel://)"
        )
    if scheme not in known:
        near = get_close_matches(scheme, known, n=1)
        listed = ", ".join(f"{each}://" for each in known)
        hint = f"; did you mean {near[0]}://?" if near and scheme else ""
        raise ValueError(f"it must begin with one of {listed}{hint}")
    parts = urlsplit(url)
    check_ports([PORT.sub("", parts.netloc.rpartition("@")[2], count=1)])
    return parts


def check_ports(written: Iterable[str]) -> None:
    """Raise ValueError unless each is a port, or empty: the usual one."""
    for each in written:
        if each and not (re.fullmatch("[0-9]{1,5}", each) and 0 < int(each) < 2**16):
            raise ValueError(f"its port must be a number from 1 to 65535; {ESCAPE}")


def _one_redis(url: str) -> str:
    """Write the URL of a Redis so that redis-py, Kombu and Celery find the same in it.

    Login and database may be parameters, as redis-py reads them: its database wins over that of the
    path, its login does not. Kombu would drop them. Other URLs stay.
    """
    parts, given = urlsplit(url), query_of(urlsplit(url))
    if parts.scheme not in ONE_AT_A_TIME:
        return url
    is_socket, path = parts.scheme in SOCKETS, parts.path
    more = {name: value for name, value in given.items() if name not in PLACES}
    _check_redis(parts, more, is_socket=is_socket)
    database = (
        given.get("db") or given.get("virtual_host") or ("" if is_socket else path.strip("/"))
    )
    if not re.fullmatch(r"\d{0,9}", database):
        raise ValueError("its database is a number, such as /0")
    if database and is_socket:
        more = {"db": database, **more}
    elif database:
        path = f"/{database}"
    query = urlencode(more, safe="/", quote_via=quote)
    return f"{parts.scheme}://{_place(parts, given)}{path}" + (f"?{query}" if query else "")


def _place(parts: SplitResult, given: Mapping[str, str]) -> str:
    login, _, host = parts.netloc.rpartition("@")
    user, password = login.partition(":")[::2]
    user = user or quote(given.get("username", ""), safe="")
    password = password or quote(given.get("password", ""), safe="")
    return f"{user}:{password}@{host}" if password else f"{user}@{host}" if user else host


def _check_redis(parts: SplitResult, given: Mapping[str, str], *, is_socket: bool) -> None:
    if parts.fragment:
        raise ValueError(f"it has a #; {ESCAPE}")
    if is_socket and parts.netloc.rpartition("@")[2]:
        raise ValueError("a socket is a path and no host, such as unix:///run/redis.sock")
    for name in (each for each in given if not each.startswith("ssl_")):
        if name not in LIMITS:
            raise ValueError(_no_parameter(name, [*PLACES, *LIMITS], parts.query))
        if not re.fullmatch(LIMITS[name], given[name]):
            raise ValueError(f"its {name} cannot be {given[name]}")


def _no_parameter(name: str, known: Iterable[str], query: str) -> str:
    """Say so, without the name where a password may be cut off in there."""
    if "@" in query:
        return f"after its ? stands no parameter; {ESCAPE}"
    return f"there is no parameter {name}; there are {', '.join(known)}"


def query_of(parts: SplitResult) -> dict[str, str]:
    return dict(parse_qsl(parts.query, keep_blank_values=True))


def _with_tls(url: str, tls: TLS) -> str:
    parts = urlsplit(url)
    given = query_of(parts)
    said = sorted(name for name in given if name.startswith("ssl_"))
    if parts.scheme not in SECURE:
        if said:
            secure = "amqps" if parts.scheme in AMQP_SCHEMES else "rediss"
            raise ValueError(f"{said[0]} needs TLS: begin the URL with {secure}://")
        return url
    others = {name: value for name, value in given.items() if not name.startswith("ssl_")}
    query = urlencode(others | tls.parameters(given), safe="/", quote_via=quote)
    return parts._replace(query=query).geturl()


# --- Sentinel ------------------------------------------------------------------------------------


class Sentinels(NamedTuple):
    """What a complete URL of Sentinels says. User, password and database are the servers' own."""

    hosts: list[tuple[str, int]]
    primary: str
    db: int
    username: str | None
    password: str | None
    own: dict[str, str]  # user and password of the Sentinels, as redis-py names them
    tls: dict[str, Any]  # empty, or options of redis-py and Kombu


def _complete_sentinels(written: Sequence[str], tls: TLS, primary: str | None) -> str:
    """Write all that one of the parts says into each; Celery reads the first, Kombu any."""
    hosts: list[str] = []
    users, paths, query = set[str](), set[str](), dict[str, str]()
    for each in written:
        parts = urlsplit(each if "://" in each else f"sentinel://{each}")
        if parts.scheme != "sentinel":
            raise ValueError("one of its parts does not begin with sentinel://")
        user, _, names = parts.netloc.rpartition("@")
        hosts += names.split(",")
        users |= {user} - {""}
        paths |= {parts.path.strip("/")} - {""}
        query |= query_of(parts)
    if max(len(users), len(paths)) > 1:
        raise ValueError("its parts differ in user, password or database: say each once")
    if not all(re.fullmatch(r"(\[[^]]+\]|[^:\s]+)(:\d{1,5})?", host) for host in hosts):
        raise ValueError("each Sentinel is a host and its port: sentinel://host:26379;…")
    check_ports(PORT.sub("", host, count=1) for host in hosts)
    if paths and not "".join(paths).isdigit():
        raise ValueError("its path is the number of a database, such as /0")
    query = _of_sentinels(query, tls, primary)
    at = f"{users.pop()}@" if users else ""
    end = f"/{paths.pop() if paths else 0}?{urlencode(query, safe='/', quote_via=quote)}"
    named = [host if re.search(r":\d+$", host) else f"{host}:{SENTINEL_PORT}" for host in hosts]
    return ";".join(f"sentinel://{at}{host}{end}" for host in named)


def _of_sentinels(query: dict[str, str], tls: TLS, primary: str | None) -> dict[str, str]:
    known = {MASTER, *OF_SENTINELS}
    if unknown := sorted(n for n in query if n not in known and not n.startswith("ssl_")):
        raise ValueError(_no_parameter(unknown[0], sorted(known), urlencode(query, safe="@")))
    if not (query.get(MASTER) or primary):
        raise ValueError(
            f"name the primary that the Sentinels watch: ELS_REDIS_MASTER, or ?{MASTER}=…"
        )
    found = {MASTER: query.get(MASTER) or str(primary)}
    found |= {name: query[name] for name in OF_SENTINELS if query.get(name)}
    if any(name.startswith("ssl_") for name in query):
        found |= tls.parameters(query)
    return found


def sentinels(url: str) -> Sentinels:
    """Read a complete URL of Sentinels."""
    parts = pieces(url)
    first, query = parts[0], query_of(parts[0])
    tls = for_ssl(query)
    return Sentinels(
        [(str(each.hostname), each.port or SENTINEL_PORT) for each in parts],
        query[MASTER],
        int(first.path.strip("/") or 0),
        unquote(first.username) if first.username else None,
        unquote(first.password) if first.password else None,
        {name.removeprefix("sentinel_"): query[name] for name in OF_SENTINELS if name in query},
        {"ssl": True, **tls} if tls else {},
    )


# --- for the libraries ---------------------------------------------------------------------------


def for_redis_py(url: str) -> str:
    """Write the URL of one Redis as redis-py reads it: a socket has another scheme there."""
    if not url.startswith("redis+socket://"):
        return url
    return _one_redis(url).replace("redis+socket", "unix", 1)


def for_ssl(parameters: Mapping[str, str]) -> dict[str, Any]:  # Any: strings, a flag, bool
    """Turn `ssl_…` parameters of a URL into the values that Celery and Flower compare."""
    given: dict[str, Any] = {n: v for n, v in parameters.items() if n.startswith("ssl_")}
    if VERIFY in given:
        given[VERIFY] = ssl.CERT_NONE if given[VERIFY] == "none" else ssl.CERT_REQUIRED
    if HOSTNAME in given:
        given[HOSTNAME] = given[HOSTNAME] != "false"
    return given


def is_redis(url: str) -> bool:
    return url.partition("://")[0] in REDIS_SCHEMES


def is_amqp(url: str) -> bool:
    return url.partition("://")[0] in AMQP_SCHEMES


def kind_and_path(url: str) -> str:
    """Name a broker's kind and its database or virtual host: `redis/0`, `amqp/school`.

    Its host has other names elsewhere, so this alone can be compared between hosts.
    """
    first = pieces(url)[0]
    if is_amqp(url):
        return f"amqp/{unquote(first.path[1:]) or '/'}"
    database = "" if first.scheme in ("unix", "redis+socket") else first.path.strip("/")
    given = query_of(first)
    return f"redis/{given.get('db') or given.get('virtual_host') or database or '0'}"


def pieces(urls: str) -> Sequence[SplitResult]:
    """Split what names several servers of a cluster."""
    return [urlsplit(url) for url in urls.split(";")]
