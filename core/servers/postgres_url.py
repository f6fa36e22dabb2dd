"""The URL of Postgres, as SQLAlchemy or libpq writes it, with TLS and our parameters added.

libpq reads it, for the service and for the migrations alike, so both see the same schema. A
parameter of the URL wins over ours.

Settings that the URL gives as `options` are taken out of it: poolers refuse them at the start of a
connection. The connection sets them itself (`core/db/session.py`).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from core.errors import BadSettings
from core.servers.tls import TLS
from core.servers.urls import check_ports

STATEMENT_TIMEOUT_MS = 60_000  # registering 100 000 slots takes a few seconds
LOCK_TIMEOUT_MS = 10_000  # below the statement's, so that a lock is reported as a lock (55P03)
URL = re.compile(r"(\w+)(?:\+\w+)?(://(?:[^@/]*@)?[^?]*)(?:\?(.*))?", re.DOTALL)  # as libpq cuts it
# The kernel notices within 20 s that a peer is gone without a word, in use or not.
OURS: Mapping[str, Any] = {  # Any: parameters of libpq
    "application_name": "els",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,  # ms
}
SESSION: Mapping[str, str] = {  # settings of a session
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "timezone": "UTC",
    # A role or a database may have others, with which psycopg reads no time and sends no "ł".
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "client_encoding": "UTF8",
}
HOST_PORT = re.compile(r"^(\[[^]]*\]|[^/:]*):(\d+)$")  # an IPv6 address with a port has brackets
ARGUMENT = re.compile(r"(?:\\.|[^\s\\])+", re.DOTALL)  # as Postgres cuts `options`
SETTING = re.compile(r"(?:-c\s*|--)([\w.-]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Address:
    """Where to connect, as libpq takes it, and the settings that a session gets there."""

    conninfo: str
    settings: Mapping[str, str]


def address(url: str, ours: Mapping[str, str] = SESSION, *, writes: bool = True) -> Address:
    """Read a URL; add our parameters and our settings where it leaves them open.

    Among several hosts the one that takes writes is meant, unless `writes` is False. A service file
    and PGOPTIONS count as the URL. Raises BadSettings.
    """
    given = parameters(url)
    known = _defaults(given.get("service")) | given
    added = {name: value for name, value in OURS.items() if name not in known}
    several = "," in f"{known.get('host', '')}{known.get('hostaddr', '')}"
    if several and writes and known.get("target_session_attrs") == "any":  # libpq's default
        added["target_session_attrs"] = "read-write"
    added = {name: value for name, value in added.items() if name not in given}
    settings, others = _settings(known.get("options", ""))
    return Address(make_conninfo(**given | added | {"options": others}), {**ours, **settings})


def complete_database(url: str, tls: TLS) -> str:
    """Check the ports of a URL, in either form of libpq, and add TLS. Raises ValueError."""
    try:
        given = parameters(url)
    except BadSettings:
        return url  # who connects says what is wrong with it
    check_ports(given.get("port", "").split(","))
    if "service" in given:
        return url  # its file may say more
    hosts = given.get("host") or given.get("hostaddr", "")
    more = tls.for_postgres(given, hosts.split(","))
    if not more:
        return url
    found = URL.fullmatch(url)
    if found is None:
        return make_conninfo(url, **more)
    mark = "&" if found[3] else "" if url.endswith("?") else "?"
    return url + mark + urlencode(more, safe="/", quote_via=quote)


def _settings(options: str) -> tuple[dict[str, str], str]:
    """Split `options` into the settings, the last one of a name, and all else."""
    words = ARGUMENT.findall(options)
    settings, others = {}, []
    while words:
        word = words.pop(0)
        if word == "-c" and words:
            word += words.pop(0)
        if found := SETTING.fullmatch(re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL)):
            settings[found[1].lower().replace("-", "_")] = found[2]
        else:
            others.append(word)
    return settings, " ".join(others)


def parameters(url: str) -> dict[str, Any]:  # Any: strings; so psycopg types them
    """Read the parameters of a URL. Raises BadSettings, which names the fault and no password."""
    try:
        return dict(conninfo_to_dict(_for_libpq(url)))
    except psycopg.ProgrammingError as error:
        _, _, query = url.partition("?")
        reason = re.sub(
            r'"([^"]*)"', lambda word: word[0] if word[1] in query else '"…"', str(error).strip()
        )
        raise BadSettings(
            f"the database's URL cannot be read: {reason};"
            " ELS_DATABASE_URL is written postgresql://user:password@host:5432/name"
        ) from error


def _for_libpq(url: str) -> str:
    """Translate what SQLAlchemy reads and libpq does not.

    These are a driver's name, several hosts with ports, "=" in a value, "+" for a space in options.
    """
    found = URL.fullmatch(url)
    if not found:
        return url  # host=… dbname=…
    scheme, base, query = found.groups()
    pairs = [pair.partition("=")[::2] for pair in (query or "").split("&") if pair]
    values = [(name, unquote(_spaced(name, value))) for name, value in pairs]
    others = [(name, value) for name, value in values if name not in {"host", "port"}]
    values = [*_hosts(values), *others]
    written = "&".join(f"{name}={quote(value, safe='')}" for name, value in values)
    return f"{scheme}{base}?{written}" if written else f"{scheme}{base}"


def _spaced(name: str, value: str) -> str:
    """Read "+" as a space where an option begins or ends with it."""
    if name != "options":
        return value
    return value.replace("-c+", "-c ").replace("+-", " -").strip("+")


def _hosts(values: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Write hosts, each with a port of its own or not, as libpq's two lists."""
    hosts = [each for name, value in values if name == "host" for each in value.split(",")]
    ports = [each for name, value in values if name == "port" for each in value.split(",")]
    cut = [HOST_PORT.match(host) for host in hosts]
    if any(cut):
        default = ports[0] if len(ports) == 1 else ""
        ports = [found[2] if found else default for found in cut]
        hosts = [HOST_PORT.sub(r"\1", host).strip("[]") for host in hosts]
    lists = {"host": hosts, "port": ports}
    return [(name, ",".join(each)) for name, each in lists.items() if each]


def _defaults(service: str | None) -> dict[str, str]:
    """Read the service file and libpq's own variables, as libpq does."""
    before = os.environ.get("PGSERVICE")
    try:
        if service:
            os.environ["PGSERVICE"] = service  # libpq looks it up by this name alone
        options = Conninfo.get_defaults()
    finally:
        if service and before is None:
            del os.environ["PGSERVICE"]
        elif before is not None:
            os.environ["PGSERVICE"] = before
    return {each.keyword.decode(): each.val.decode() for each in options if each.val}
