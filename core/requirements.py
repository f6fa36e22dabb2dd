"""What the service needs of its servers, and what of it they do not give.

A fault loses messages, or carries none out, though nothing fails: the service is not ready. A
warning is what a crash, or an outage, would make worse. `docs/runbook.md` has a section for each.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, ReadOnlyError
from redis.retry import Retry

from core.db.connection import Conn, connect_once
from core.errors import ELSError
from core.settings import Settings

OLDEST_POSTGRES = 130_000  # the oldest that Postgres' own project kept alive of late
OLDEST_REDIS = (6, 2)  # CLIENT TRACKING came with 6.0, LPOP with a count with 6.2
SKEW_S = 5.0  # clocks further apart than that are named; signs of life are believed for 15 s
PATIENCE_S = 5  # for a server of which a check asks
ASK_EVERY_S, SIGN_EVERY_S = 3.0, 1.0  # while a worker waits for its schema
MIGRATIONS = Path(__file__).parents[1] / "migrations" / "versions"
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
AMQP_SCHEMES = ("amqp://", "amqps://", "pyamqp://")
AWAY = (redis.ConnectionError, redis.TimeoutError)
# The verbs that workers use on each table; `els purge`, which a person runs, deletes more.
RIGHTS: Mapping[str, tuple[str, ...]] = {
    "batch_essay_trackers": ("SELECT", "INSERT", "UPDATE"),
    "essay_states": ("SELECT", "INSERT", "UPDATE"),
    "batch_pending_content": ("SELECT", "INSERT", "DELETE"),
    "excess_content": ("SELECT", "INSERT"),
    "idempotency_keys": ("SELECT", "INSERT"),
    "event_outbox": ("SELECT", "INSERT", "UPDATE"),
    "dead_letters": ("SELECT", "INSERT", "UPDATE"),
    "repairs": ("SELECT", "INSERT"),
    "unmended": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
NO_RIGHT = """
    SELECT name, verb, to_regclass(name) IS NULL AS absent
    FROM unnest(%(names)s::text[], %(verbs)s::text[]) AS needed (name, verb)
    WHERE CASE
        WHEN to_regclass(name) IS NULL THEN true
        WHEN verb = 'DELETE' THEN NOT has_table_privilege(to_regclass(name), verb)
        ELSE NOT has_any_column_privilege(to_regclass(name), verb)
    END
"""


class Severity(StrEnum):
    """Whether the service can work with this at all."""

    FAULT = "fault"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a server, why that matters, and the next step."""

    server: str  # postgres, redis, broker
    severity: Severity
    wrong: str
    why: str
    step: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.server}: {self.wrong}; {self.why}. Next: {self.step}"

    def as_json(self) -> dict[str, str]:
        """Write it for programs."""
        return asdict(self)


def check_servers(settings: Settings) -> list[Finding]:
    """Ask every server of these settings; takes `PATIENCE_S` for each that does not answer."""
    assert settings.database_url, "whoever asks has refused to start without"
    assert settings.redis_url, "whoever asks has refused to start without"
    broker_url = settings.broker_url or settings.redis_url
    shared = broker_url == settings.redis_url
    found = _postgres(settings.database_url)
    if not shared:
        found += _redis(settings.redis_url, "redis")
    if broker_url.startswith(REDIS_SCHEMES):
        found += _redis(broker_url, "broker")
    elif broker_url.startswith(AMQP_SCHEMES):
        found += _listens(broker_url)
    return found


def _postgres(url: str) -> list[Finding]:
    try:
        with connect_once(url) as conn:
            return check_postgres(conn)
    except (psycopg.Error, ELSError) as error:
        return [_away("postgres", error, "start it, or mend ELS_DATABASE_URL")]


def _redis(url: str, server: str) -> list[Finding]:
    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=PATIENCE_S,
            socket_connect_timeout=PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        return [_away(server, error, f"mend {_setting(server)}")]
    with client:
        return check_redis(client, server)


def _listens(urls: str) -> list[Finding]:
    error: Exception | None = None
    for url in urls.split(";"):
        try:
            parts = urlsplit(url)
            default = 5671 if parts.scheme == "amqps" else 5672
            at = (parts.hostname or "localhost", parts.port or default)
            socket.create_connection(at, PATIENCE_S).close()
        except (OSError, ValueError) as away:
            error = away
        else:
            return []
    assert error is not None, "there is one URL at least"
    return [_away("broker", error, "start it, or mend ELS_BROKER_URL")]


def _setting(server: str) -> str:
    names = {"postgres": "ELS_DATABASE_URL", "redis": "ELS_REDIS_URL"}
    return names.get(server, "ELS_BROKER_URL")


def _away(server: str, error: Exception, step: str) -> Finding:
    told = " ".join(str(error).split()) or type(error).__name__
    return Finding(server, Severity.FAULT, told, "nothing is carried out without it", step)


# --- Postgres ------------------------------------------------------------------------------------


def check_postgres(conn: Conn) -> list[Finding]:
    """Ask Postgres, over a connection like those of the service. Raises psycopg.Error."""
    version = conn.info.server_version
    if version < OLDEST_POSTGRES:
        told = f"it is version {version // 10_000}"
        why = f"the service needs {OLDEST_POSTGRES // 10_000} or newer"
        return [Finding("postgres", Severity.FAULT, told, why, "upgrade the server")]
    missing = missing_for_work(conn)
    found = [missing] if missing else [*_newer(conn)]
    return [*found, *_settings_of(conn), *_skew_of_postgres(conn)]


def missing_for_work(conn: Conn) -> Finding | None:
    """Say what keeps this connection from working at all. Raises psycopg.Error."""
    return _read_only(conn) or _schema(conn) or _rights(conn)


def _read_only(conn: Conn) -> Finding | None:
    row = conn.execute(
        "SELECT pg_is_in_recovery() AS standby,"
        " current_setting('transaction_read_only')::boolean AS read_only"
    ).fetchone()
    assert row is not None
    if not row["standby"] and not row["read_only"]:
        return None
    told = "it is a standby" if row["standby"] else "its transactions are read-only"
    step = (
        "name the primary in ELS_DATABASE_URL, or every host and target_session_attrs=read-write"
        if row["standby"]
        else "find out who set default_transaction_read_only: a full disk, an upgrade, a person"
    )
    return Finding("postgres", Severity.FAULT, told, "no outcome can be written", step)


def _schema(conn: Conn) -> Finding | None:
    try:
        revision, head = _revision(conn), head_revision()
    except psycopg.errors.UndefinedTable:
        return _old("there is no schema where this URL looks (search_path)")
    except psycopg.errors.InsufficientPrivilege:
        return _no_rights(["SELECT ON alembic_version"], conn)
    if revision is None or (revision != head and revision in _revisions()):
        return _old(f"the schema is at {revision or 'nothing'}, and this version needs {head}")
    return None


def _newer(conn: Conn) -> Iterator[Finding]:
    """Name a revision of a newer release, which migrates while older workers run."""
    revision, head = _revision(conn), head_revision()
    if revision != head:
        told = f"the schema is at {revision}, which this version, at {head}, does not know"
        why = "a newer release may have made it"
        yield Finding("postgres", Severity.WARNING, told, why, "update this process")


def _revision(conn: Conn) -> str | None:
    row = conn.execute("SELECT version_num FROM alembic_version").fetchone()
    return row["version_num"] if row else None


def _old(told: str) -> Finding:
    why = "nothing can be carried out"
    return Finding("postgres", Severity.FAULT, told, why, "els migrate")


def head_revision() -> str:
    """Return the newest revision that this code knows, without Alembic: workers stay small."""
    return max(_revisions())


def _revisions() -> set[str]:
    return {path.name.partition("_")[0] for path in MIGRATIONS.glob("[0-9]*_*.py")}


def _rights(conn: Conn) -> Finding | None:
    needed = [(name, verb) for name, verbs in RIGHTS.items() for verb in verbs]
    names, verbs = zip(*needed, strict=True)
    rows = conn.execute(NO_RIGHT, {"names": list(names), "verbs": list(verbs)}).fetchall()
    if absent := sorted({row["name"] for row in rows if row["absent"]}):
        return _old(f"there is no table {', '.join(absent)}, or the role may not enter its schema")
    return _no_rights([f"{row['verb']} ON {row['name']}" for row in rows], conn) if rows else None


def _no_rights(lacking: list[str], conn: Conn) -> Finding:
    role = conn.info.user
    return Finding(
        "postgres",
        Severity.FAULT,
        f"the role {role} lacks {', '.join(lacking)}",
        "messages cannot be carried out",
        "; ".join(f"GRANT {each} TO {role}" for each in lacking),
    )


def _settings_of(conn: Conn) -> Iterator[Finding]:
    rows = conn.execute(
        "SELECT name, setting FROM pg_settings"
        " WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes')"
    ).fetchall()
    off = {row["name"] for row in rows if row["setting"] == "off"}
    why = {
        "fsync": "a crash of its machine may destroy the database",
        "full_page_writes": "a crash of its machine may destroy the database",
        "synchronous_commit": "a crash of the server forgets outcomes of messages that are gone",
    }
    for name in sorted(off):
        step = f"{name} = on, in postgresql.conf or for this role"
        yield Finding("postgres", Severity.WARNING, f"{name} is off", why[name], step)


def _skew_of_postgres(conn: Conn) -> Iterator[Finding]:
    before = datetime.now(UTC)
    row = conn.execute("SELECT clock_timestamp() AS now").fetchone()
    assert row is not None
    yield from _skew("postgres", (row["now"] - before).total_seconds(), _since(before))


def _since(before: datetime) -> float:
    return (datetime.now(UTC) - before).total_seconds()


def _skew(server: str, ahead_s: float, took_s: float) -> Iterator[Finding]:
    """Compare clocks: the server's moment lies somewhere within the time that the answer took."""
    if -SKEW_S <= ahead_s <= took_s + SKEW_S:
        return
    told = f"its clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} ours"
    why = "deadlines and signs of life are judged by two clocks"
    yield Finding(server, Severity.WARNING, told, why, "let NTP set the clocks of both machines")


# --- Redis and Valkey ----------------------------------------------------------------------------


def check_redis(client: redis.Redis, server: str) -> list[Finding]:
    """Ask a Redis, which is `redis`, that of slots, or `broker`, which may be both."""
    is_broker = server == "broker"
    try:
        client.ping()
    except AWAY as error:
        return [_away(server, error, f"start it, or mend {_setting(server)}")]
    except redis.RedisError as error:
        return [_away(server, error, f"mend {_setting(server)}, or the ACL of its user")]
    try:
        found = [
            *_information(client, server, is_broker=is_broker),
            *_writes(client, server),
            *(_tracking(client) if is_broker else []),
            *_skew_of_redis(client, server),
        ]
    except AWAY as error:
        return [_away(server, error, f"start it, or mend {_setting(server)}")]
    return [*{each.wrong: each for each in reversed(found)}.values()][::-1]


def _information(client: redis.Redis, server: str, *, is_broker: bool) -> Iterator[Finding]:
    try:
        info = client.info()
    except AWAY:
        raise
    except redis.RedisError as error:
        yield _unchecked(server, "version, eviction and append-only file", error)
        return
    yield from _version(server, str(info.get("redis_version", "")))
    yield from _role(server, info)
    yield from _eviction(server, info.get("maxmemory_policy"), is_broker=is_broker)
    if is_broker:
        yield from _append_only(info)


def _unchecked(server: str, what: str, error: object) -> Finding:
    why = "a fault of it would show only when it does harm"
    step = "allow INFO to this user, or look at the server's own settings"
    return Finding(server, Severity.WARNING, f"{what} cannot be checked: {error}", why, step)


def _version(server: str, version: str) -> Iterator[Finding]:
    parts = version.split(".")
    if not all(part.isdigit() for part in parts[:2]):
        return  # a server that goes by other numbers
    if tuple(map(int, parts[:2])) < OLDEST_REDIS:
        why = f"the service needs {'.'.join(map(str, OLDEST_REDIS))} or newer"
        yield Finding(server, Severity.FAULT, f"it is version {version}", why, "upgrade the server")


def _role(server: str, info: Mapping[str, Any]) -> Iterator[Finding]:  # Any: as redis-py reads it
    if info.get("role") not in (None, "master"):
        yield _replica(server, f"{info.get('master_host')}:{info.get('master_port')}")


def _replica(server: str, primary: str) -> Finding:
    why = "it takes no writes, or forgets them"
    step = f"name its primary ({primary}) in {_setting(server)}"
    return Finding(server, Severity.FAULT, "it is a replica", why, step)


def _eviction(server: str, policy: object, *, is_broker: bool) -> Iterator[Finding]:
    if policy is None:
        yield _unchecked(server, "eviction", "INFO does not tell maxmemory_policy")
    elif policy != "noeviction":
        severity = Severity.FAULT if is_broker else Severity.WARNING
        why = (
            "when its memory is full it drops whole queues"
            if is_broker
            else "when its memory is full it drops slots, which the sweep then seeds again"
        )
        step = "CONFIG SET maxmemory-policy noeviction, and in its configuration"
        yield Finding(server, severity, f"maxmemory-policy is {policy}", why, step)


def _append_only(info: Mapping[str, Any]) -> Iterator[Finding]:  # Any: as redis-py reads it
    enabled = info.get("aof_enabled")
    if enabled is None:
        yield _unchecked("broker", "the append-only file", "INFO does not tell aof_enabled")
    elif not enabled:
        why = "a restart of the server forgets the messages that wait"
        step = "CONFIG SET appendonly yes, and in its configuration"
        yield Finding("broker", Severity.WARNING, "appendonly is off", why, step)


def _writes(client: redis.Redis, server: str) -> Iterator[Finding]:
    """Write a key that expires at once, beside the slots: no batch has such an id."""
    key = "batch:{els.check}:available_slots"
    try:
        client.set(key, "1", px=1)
        client.eval("return redis.call('EXISTS', KEYS[1])", 1, key)
    except AWAY:
        raise
    except ReadOnlyError:
        yield _replica(server, "in ROLE")
    except NoPermissionError as error:
        step = "allow the commands and the keys of the service to its user"
        yield Finding(server, Severity.FAULT, str(error), "messages cannot be carried out", step)
    except redis.RedisError as error:
        step = "look at its log and its INFO: memory, disk, replicas"
        yield Finding(server, Severity.FAULT, str(error), "it refuses writes", step)


def _tracking(client: redis.Redis) -> Iterator[Finding]:
    """Ask for what an idle worker uses, on a connection that is not used again."""
    try:
        with client.client() as alone:  # type: ignore[no-untyped-call] # redis-py's
            alone.execute_command("CLIENT", "TRACKING", "ON", "NOLOOP")
            alone.execute_command("CLIENT", "TRACKING", "OFF")
    except AWAY:
        raise
    except redis.RedisError as error:
        why = "an idle worker is not told of new messages"
        step = "allow CLIENT TRACKING to the user of ELS_BROKER_URL"
        yield Finding("broker", Severity.FAULT, str(error), why, step)


def _skew_of_redis(client: redis.Redis, server: str) -> Iterator[Finding]:
    before = datetime.now(UTC)
    try:
        seconds, micros = client.time()
    except AWAY:
        raise
    except redis.RedisError as error:
        yield _unchecked(server, "the clock", error)
        return
    ahead_s = seconds + micros / 1e6 - before.timestamp()
    yield from _skew(server, ahead_s, _since(before))


# --- waiting for the schema ----------------------------------------------------------------------


def wait_for_schema(
    url: str,
    say: Callable[[Finding], object],
    stopped: Callable[[], bool],
    sign: Callable[[], object] = lambda: None,
) -> bool:
    """Wait until a connection of this URL sees the schema that this code needs, with its rights.

    `say` gets each finding that differs from the one before, `sign` is called every second
    meanwhile. False: `stopped` came true before.
    """
    said: str | None = None
    while not stopped():
        sign()
        finding = _missing(url)
        if finding is None:
            return True
        if finding.wrong != said:
            said = finding.wrong
            say(finding)
        again = time.monotonic() + ASK_EVERY_S
        while time.monotonic() < again and not stopped():
            sign()
            time.sleep(min(SIGN_EVERY_S, max(0.0, again - time.monotonic())))
    return False


def _missing(url: str) -> Finding | None:
    try:
        with connect_once(url) as conn:
            return missing_for_work(conn)
    except (psycopg.Error, ELSError) as error:
        return _away("postgres", error, "start it, or mend ELS_DATABASE_URL")
