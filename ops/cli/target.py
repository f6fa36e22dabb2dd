"""Which servers a command acts on: those that the settings name, else those of the home's stack."""

from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from core.db.url import parameters
from core.errors import BadSettings, StackError
from core.settings import Settings
from ops.stack.supervisor import Endpoints, running

URLS = ("database_url", "redis_url", "broker_url")
POSTGRES, REDIS, BROKER = URLS
SCHEMES = {
    REDIS: ("redis", "rediss", "unix"),
    BROKER: ("redis", "rediss", "unix", "redis+socket", "sentinel", "amqp", "amqps", "pyamqp"),
}
PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "pyamqp": 5672, "amqps": 5671}
LOOPBACK_NAMES = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}


def endpoints(settings: Settings, *needed: str) -> Endpoints:
    """Find the servers; a URL that is not needed may be missing, and is empty then.

    Explicit URLs win over a stack that runs on the home, which completes them only where they are
    its own. Raises StackError that names what is missing, and BadSettings for a malformed URL.
    """
    given, found = _given(settings), _running(settings)
    if found and not _different(given, found):
        return found
    if not given:
        raise StackError(
            f"no stack runs on {settings.home.absolute()}; start one with `els run`,"
            " or set ELS_DATABASE_URL and ELS_REDIS_URL"
        )
    urls = {name: given.get(name, "") for name in URLS}
    urls[BROKER] = urls[BROKER] or urls[REDIS]
    if missing := [name for name in needed or URLS if not urls[name]]:
        raise StackError(
            f"the command needs {_variables(missing)} beside {_variables(given)}: set what is"
            " missing, or none of them to use a stack that `els run` started"
        )
    for name, url in given.items():
        place(name, url)  # raises where it is malformed
    return Endpoints(
        **urls,
        ops_url=f"http://{settings.ops_host}:{settings.ops_port}",
        flower_url=f"http://{settings.flower_host}:{settings.flower_port}",
        pid=0,
        home=str(settings.home.absolute()),
    )


def explicit(settings: Settings) -> bool:
    """Tell whether the settings name the servers, and not the stack of a home."""
    return bool(_given(settings))


def conflict(settings: Settings) -> str | None:
    """Say how the URLs differ from the stack of the home, where both were given."""
    found = _running(settings) if "home" in settings.model_fields_set else None
    different = _different(_given(settings), found) if found else []
    if not found or not different:
        return None
    name = different[0]
    here, there = place(name, getattr(settings, name)), place(name, getattr(found, name))
    return f"{_variables([name])} names {here}, but the stack on {found.home} uses {there}"


def places(found: Endpoints) -> str:
    """Write where a command acts, without passwords."""
    database = f"database {place(POSTGRES, found.database_url)}" if found.database_url else ""
    name = REDIS if found.broker_url == found.redis_url else BROKER
    broker = f"broker {place(name, found.broker_url)}" if found.broker_url else ""
    return ", ".join(each for each in (database, broker) if each)


def place(name: str, url: str) -> str:
    """Write the host, port and database of a URL. Raises BadSettings that says no password."""
    if name == POSTGRES:
        hosts, database, _ = _database(url)
        return f"{hosts}/{database}"
    return ", ".join(f"{each.scheme}://{_host(each)}{each.path}" for each in _parsed(name, url))


def _running(settings: Settings) -> Endpoints | None:
    """Find the stack of the home; another user's is no matter to those who name their servers."""
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
    """List the URLs that name other data than a running stack's."""
    return [name for name in given if _data(name, given[name]) != _data(name, getattr(found, name))]


def _data(name: str, url: str) -> object:
    """Tell URLs of the same data by: servers and database, whoever connects and however."""
    if name == POSTGRES:
        return _database(url)
    return [(_host(each), each.path.strip("/") or "0") for each in _parsed(name, url)]


def _database(url: str) -> tuple[str, str, str]:
    """Read the hosts, the database and the options of a URL, which may name another schema."""
    said = {key: str(value) for key, value in parameters(url).items()}
    hosts = (said.get("host") or said.get("hostaddr") or said.get("service") or "local").split(",")
    ports = (said.get("port") or "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    at = [
        f"{LOOPBACK_NAMES.get(host, host)}:{port or 5432}"
        for host, port in zip(hosts, ports, strict=False)
    ]
    return ",".join(at), said.get("dbname") or said.get("user", ""), said.get("options", "")


def _host(url: SplitResult) -> str:
    if not url.hostname:
        return ""  # a socket: its path says where it is
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
        raise BadSettings(f"{_variables([name])} cannot be read: its port is no number") from error
    if wrong:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES[name])
        raise BadSettings(f"{_variables([name])} begins with none of {known}")
    return found
