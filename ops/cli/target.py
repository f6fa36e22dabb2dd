"""Which servers a command acts on: those of the settings, else those of the home's stack."""

from collections.abc import Sequence
from dataclasses import asdict
from urllib.parse import SplitResult, urlsplit

from core.errors import BadSettings, StackError
from core.servers.postgres_url import parameters
from core.servers.urls import SCHEMES as KNOWN
from core.settings import Settings
from ops.stack.home import Endpoints, running

URLS = ("database_url", "redis_url", "broker_url")
POSTGRES, REDIS, BROKER = URLS
SCHEMES = {name: KNOWN[f"ELS_{name.upper()}"] for name in (REDIS, BROKER)}
PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "pyamqp": 5672, "amqps": 5671}
LOOPBACK_NAMES = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}


def endpoints(settings: Settings, *needed: str) -> Endpoints:
    """Find the servers; a URL that is not needed may be missing, and is then empty.

    Explicit URLs win over the stack of the home. If they name the same servers, that stack supplies
    the URLs that are missing. Raises StackError that names a missing URL, and BadSettings for a
    malformed one.
    """
    given, found = _given(settings), _running(settings)
    if found and not _different(given, found):
        return Endpoints(**{**asdict(found), **given})
    if not given:
        raise StackError(
            f"no stack runs on {settings.home.absolute()}; start one with `els run`,"
            " or set ELS_DATABASE_URL and ELS_REDIS_URL"
        )
    urls = {name: given.get(name, "") for name in URLS}
    urls[BROKER] = urls[BROKER] or urls[REDIS]
    if missing := [name for name in needed or URLS if not urls[name]]:
        which = "both, or neither" if len(missing) + len(given) == 2 else "all of them, or none"
        raise StackError(
            f"this command needs {_variables(missing)} as well as {_variables(given)}: set"
            f" {which} to use a stack that `els run` started"
        )
    for name, url in given.items():
        location(name, url)  # raises where it is malformed
    return Endpoints(
        **urls,
        ops_url=f"http://{settings.ops_host}:{settings.ops_port}",
        flower_url=f"http://{settings.flower_host}:{settings.flower_port}",
        pid=0,
        home=str(settings.home.absolute()),
    )


def explicit(settings: Settings) -> bool:
    """Say whether the settings name the servers."""
    return bool(_given(settings))


def conflict(settings: Settings) -> str | None:
    """Describe how the URLs differ from the stack of the home; None if they agree."""
    found = _running(settings) if "home" in settings.model_fields_set else None
    different = _different(_given(settings), found) if found else []
    if not found or not different:
        return None
    name = different[0]
    here, there = (location(name, getattr(each, name)) for each in (settings, found))
    return f"{_variables([name])} names {here}, but the stack on {found.home} uses {there}"


def locations(found: Endpoints) -> str:
    """Name the database and broker that a command acts on, without passwords."""
    database = f"database {location(POSTGRES, found.database_url)}" if found.database_url else ""
    name = REDIS if found.broker_url == found.redis_url else BROKER
    broker = f"broker {location(name, found.broker_url)}" if found.broker_url else ""
    return ", ".join(each for each in (database, broker) if each)


def location(name: str, url: str) -> str:
    """Return host, port and database of a URL, without password. Raises BadSettings."""
    if name == POSTGRES:
        hosts, database, _ = _database(url)
        return f"{hosts}/{database}"
    return ", ".join(f"{each.scheme}://{_host(each)}{each.path}" for each in _parsed(name, url))


def _running(settings: Settings) -> Endpoints | None:
    """Find the stack of the home; ignore another user's if the settings name the servers."""
    try:
        return running(settings.home)
    except StackError:
        if explicit(settings):
            return None
        raise


def _given(settings: Settings) -> dict[str, str]:
    return {name: value for name in URLS if (value := getattr(settings, name))}


def _variables(names: Sequence[str] | dict[str, str]) -> str:
    return " and ".join(f"ELS_{name.upper()}" for name in names)


def _different(given: dict[str, str], found: Endpoints) -> list[str]:
    """List the URLs that name other servers or databases than a running stack's."""
    return [
        name
        for name in given
        if _identity(name, given[name]) != _identity(name, getattr(found, name))
    ]


def _identity(name: str, url: str) -> object:
    """Reduce a URL to what two URLs of the same data share: servers and database, not the user."""
    if name == POSTGRES:
        return _database(url)
    return [(_host(each), each.path.strip("/") or "0") for each in _parsed(name, url)]


def _database(url: str) -> tuple[str, str, str]:
    """Read the hosts, the database and the options of a URL, which may name another schema."""
    given = {key: str(value) for key, value in parameters(url).items()}
    host = given.get("host") or given.get("hostaddr") or given.get("service") or "local"
    hosts = host.split(",")
    ports = (given.get("port") or "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    at = [
        f"{LOOPBACK_NAMES.get(host, host)}:{port or 5432}"
        for host, port in zip(hosts, ports, strict=False)
    ]
    return ",".join(at), given.get("dbname") or given.get("user", ""), given.get("options", "")


def _host(url: SplitResult) -> str:
    if not url.hostname:
        return ""  # a socket: its path is its location
    host = LOOPBACK_NAMES.get(url.hostname, url.hostname)
    return f"{host}:{url.port or PORTS.get(url.scheme, '')}".rstrip(":")


def _parsed(name: str, urls: str) -> list[SplitResult]:
    """Read one URL, or several as Celery takes them for a broker."""
    try:
        found = [urlsplit(url) for url in urls.split(";")]
        wrong = [url.scheme for url in found if url.scheme not in SCHEMES[name]]
        for url in found:
            url.port  # noqa: B018 - read for its ValueError
    except ValueError as error:
        raise BadSettings(
            f"{_variables([name])} cannot be read: its port must be a number from 1 to 65535"
        ) from error
    if wrong:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES[name])
        raise BadSettings(f"{_variables([name])} must begin with one of {known}")
    return found
