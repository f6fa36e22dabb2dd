"""What the service needs of its servers, and what these servers lack.

With a fault the service loses messages, or carries none out, without an error: it is not ready.
A warning names what makes a crash or an outage worse. `docs/runbook.md` has a section for each.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import psycopg
import redis
from redis.exceptions import NoPermissionError, ReadOnlyError

from core.db.connection import Conn, Prepare, UnfitPooler, connect_once
from core.db.url import parameters
from core.errors import ELSError
from core.schema import State, read_standing
from core.servers.tls import (
    CA,
    CERTIFICATE,
    KEY,
    OPEN,
    VERIFY,
    describe,
    handshake,
    speaks_plainly,
    speaks_tls,
)
from core.servers.urls import SENTINEL_PORT, is_amqp, is_redis, pieces, query_of
from core.settings import Settings
from core.slots import connect_once as connect_to_redis

OLDEST_POSTGRES = 130_000  # the oldest that the project of Postgres supported lately
OLDEST_REDIS = (6, 2)  # CLIENT TRACKING came with 6.0, LPOP with a count with 6.2
SKEW_S = 5.0  # clocks further apart than this get a warning; a heartbeat counts for 15 s
PATIENCE_S = 5  # for the answer of a server
ASK_EVERY_S, BEAT_EVERY_S = 3.0, 1.0  # while a worker waits for its schema
AWAY = (redis.ConnectionError, redis.TimeoutError)
INFORMATION = "version, eviction and append-only file"  # what INFO says
# The verbs that workers use on each table.
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
    "operator_actions": ("SELECT", "INSERT"),
    "purged_batches": ("SELECT", "INSERT", "UPDATE"),
}
# What workers need besides, where ELS_RETENTION_DAYS lets them delete.
RIGHTS_TO_PURGE: Mapping[str, tuple[str, ...]] = {
    name: (*verbs, *({"UPDATE", "DELETE"} - {*verbs}))
    for name, verbs in RIGHTS.items()
    if name != "purged_batches"
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
        return f"{self.server}: {self.wrong}; {self.why}. Next: {self.step}"

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def check_servers(settings: Settings) -> list[Finding]:
    """Ask every server of these settings; takes `PATIENCE_S` for each that does not answer."""
    assert settings.database_url, "callers refuse to start without"
    assert settings.redis_url, "callers refuse to start without"
    broker_url = settings.broker_url or settings.redis_url
    shared = broker_url == settings.redis_url
    found = find_in_postgres(settings.database_url, settings.database_prepare)
    if not shared:
        found += _redis(settings.redis_url, "redis")
    if is_redis(broker_url):
        found += _redis(broker_url, "broker")
    elif is_amqp(broker_url):
        found += _listens(broker_url)
    return found


def find_in_postgres(url: str, prepare: Prepare = "auto") -> list[Finding]:
    """Check Postgres by a connection of its own; an error is a finding."""
    try:
        with connect_once(url, prepare=prepare) as conn:
            return check_postgres(conn)
    except UnfitPooler as error:
        why = "statements would run with other settings, or those of others would"
        return [Finding("postgres", Severity.FAULT, error.wrong, why, error.step)]
    except (psycopg.Error, ELSError) as error:
        return [away("postgres", url, error)]


def away(server: str, url: str, error: Exception) -> Finding:
    """Say why a server cannot be reached; ask it once more where TLS leaves the reason open."""
    fault = describe(error)
    open_ = fault is None or fault.wrong.startswith(OPEN) or server == "postgres"
    if open_ and (fault or url.startswith(("rediss://", "amqps://"))):
        reason = _reason(url)
        error = reason if reason and describe(reason) else error
    return _away(server, error, f"start it, or mend {_setting(server)}")


def _reason(url: str) -> Exception | None:
    """Speak TLS with the servers of a URL, until one says what is wrong."""
    reason: Exception | None = None
    for at, given in _addresses(url):
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
            return error
    return reason


def _addresses(url: str) -> Iterator[tuple[tuple[str, int], dict[str, str]]]:
    """Yield each host and port of a URL, with its TLS parameters, named as for Redis."""
    if is_redis(url) or is_amqp(url):
        for parts in pieces(url):
            default = {"rediss": 6379, "amqps": 5671}.get(parts.scheme, SENTINEL_PORT)
            yield (parts.hostname or "localhost", parts.port or default), query_of(parts)
        return
    given = {name: str(value) for name, value in parameters(url).items()}
    files = {CA: "sslrootcert", CERTIFICATE: "sslcert", KEY: "sslkey"}
    tls = {name: given[theirs] for name, theirs in files.items() if given.get(theirs)}
    hosts, ports = given.get("host", "").split(","), given.get("port", "5432").split(",")
    for host, port in zip(hosts, ports * len(hosts), strict=False):
        yield (host, int(port or 5432)), tls


def _redis(url: str, server: str) -> list[Finding]:
    try:
        client = connect_to_redis(url, timeout_s=PATIENCE_S)
    except ValueError as error:
        return [_away(server, error, f"mend {_setting(server)}")]
    with client:
        return check_redis(client, server, url)


def _listens(urls: str) -> list[Finding]:
    """Ask the nodes of RabbitMQ, until one answers; over TLS where the URL does."""
    error: Exception | None = None
    for parts in pieces(urls):
        try:
            secure = parts.scheme == "amqps"
            at = (parts.hostname or "localhost", parts.port or (5671 if secure else 5672))
            if secure:
                handshake(at, query_of(parts), PATIENCE_S)
            else:
                socket.create_connection(at, PATIENCE_S).close()
        except (OSError, ValueError) as refusal:
            error = refusal
        else:
            return []
    assert error is not None, "there is one URL at least"
    return [_away("broker", error, "start it, or mend ELS_BROKER_URL")]


def _setting(server: str) -> str:
    names = {"postgres": "ELS_DATABASE_URL", "redis": "ELS_REDIS_URL"}
    return names.get(server, "ELS_BROKER_URL")


def _away(server: str, error: Exception | str, step: str) -> Finding:
    wrong = " ".join(str(error).split()) or type(error).__name__
    if fault := describe(error):
        wrong, step = fault
    return Finding(server, Severity.FAULT, wrong, "the service does nothing without it", step)


# --- Postgres ------------------------------------------------------------------------------------


def check_postgres(conn: Conn) -> list[Finding]:
    """Check Postgres over a connection like those of the service. Raises psycopg.Error."""
    version = conn.info.server_version
    if version < OLDEST_POSTGRES:
        wrong = f"it is version {version // 10_000}"
        why = f"the service needs {OLDEST_POSTGRES // 10_000} or newer"
        return [Finding("postgres", Severity.FAULT, wrong, why, "upgrade the server")]
    missing = missing_for_work(conn)
    found = [missing] if missing else [*_other_schema(conn)]
    return [*found, *_settings_of(conn), *_skew_of_postgres(conn)]


def missing_for_work(conn: Conn) -> Finding | None:
    """Find what keeps this connection from any work. Raises psycopg.Error."""
    return _read_only(conn) or _schema(conn) or _rights(conn)


def _read_only(conn: Conn) -> Finding | None:
    row = conn.execute(
        "SELECT pg_is_in_recovery() AS standby,"
        " current_setting('transaction_read_only')::boolean AS read_only"
    ).fetchone()
    assert row is not None
    if not row["standby"] and not row["read_only"]:
        return None
    wrong = "it is a standby" if row["standby"] else "its transactions are read-only"
    step = (
        "name the primary in ELS_DATABASE_URL, or every host and target_session_attrs=read-write"
        if row["standby"]
        else "find out who set default_transaction_read_only: a full disk, an upgrade, a person"
    )
    return Finding("postgres", Severity.FAULT, wrong, "no worker can write an outcome", step)


def _schema(conn: Conn) -> Finding | None:
    try:
        found = read_standing(conn)
    except psycopg.errors.InsufficientPrivilege:
        return _no_rights(["SELECT ON alembic_version"], conn)
    return None if found.usable else _unusable(found.wrong, found.step)


def _other_schema(conn: Conn) -> Iterator[Finding]:
    """Warn of a schema that this version can use, and that is not its own: during an upgrade."""
    found = read_standing(conn)
    if found.state is not State.HEAD:
        why = "this version works on it, as during an upgrade"
        yield Finding("postgres", Severity.WARNING, found.wrong, why, found.step)


def _unusable(wrong: str, step: str = "els migrate") -> Finding:
    why = "workers can carry nothing out"
    return Finding("postgres", Severity.FAULT, wrong, why, step)


def _rights(conn: Conn) -> Finding | None:
    needed = [(name, verb) for name, verbs in RIGHTS.items() for verb in verbs]
    names, verbs = zip(*needed, strict=True)
    rows = conn.execute(NO_RIGHT, {"names": list(names), "verbs": list(verbs)}).fetchall()
    if absent := sorted({row["name"] for row in rows if row["absent"]}):
        named = ", ".join(absent)
        return _unusable(f"there is no table {named}, or the role may not enter its schema")
    return _no_rights([f"{row['verb']} ON {row['name']}" for row in rows], conn) if rows else None


def _no_rights(lacking: list[str], conn: Conn) -> Finding:
    role = conn.info.user
    return Finding(
        "postgres",
        Severity.FAULT,
        f"the role {role} lacks {', '.join(lacking)}",
        "workers cannot carry messages out",
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
    """Compare clocks: the server read its own at some moment before its answer came."""
    if -SKEW_S <= ahead_s <= took_s + SKEW_S:
        return
    wrong = f"its clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} ours"
    why = "two clocks decide on deadlines and heartbeats"
    yield Finding(server, Severity.WARNING, wrong, why, "let NTP set the clocks of both machines")


# --- Redis and Valkey ----------------------------------------------------------------------------


def check_redis(client: redis.Redis, server: str, url: str = "") -> list[Finding]:
    """Check a Redis: `redis` holds the slots, `broker` the queues, and maybe the slots too.

    With its URL, a fault of TLS is named better.
    """
    is_broker = server == "broker"
    found: list[Finding] = []
    try:
        client.ping()
        found += _allowed(_information(client, server, is_broker=is_broker), server, INFORMATION)
        found += _writes(client, server)
        found += _tracking(client) if is_broker else []
        found += _allowed(_skew_of_redis(client, server), server, "the clock")
    except AWAY as error:
        return [away(server, url, error)]
    except redis.RedisError as error:  # of PING: the others name what they met
        return [_away(server, error, f"mend {_setting(server)}, or the ACL of its user")]
    return [*{each.wrong: each for each in reversed(found)}.values()][::-1]


def _allowed(checks: Iterator[Finding], server: str, what: str) -> list[Finding]:
    """Run checks; where the server refuses their command, warn of that. Raises AWAY."""
    found: list[Finding] = []
    try:
        found += checks
    except AWAY:
        raise
    except redis.RedisError as error:
        found.append(_unchecked(server, what, error))
    return found


def _information(client: redis.Redis, server: str, *, is_broker: bool) -> Iterator[Finding]:
    info = client.info()
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
        yield _unchecked(server, "eviction", "INFO has no maxmemory_policy")
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
        yield _unchecked("broker", "the append-only file", "INFO has no aof_enabled")
    elif not enabled:
        why = "a restart of the server loses the messages that wait"
        step = "CONFIG SET appendonly yes, and in its configuration"
        yield Finding("broker", Severity.WARNING, "appendonly is off", why, step)


def _writes(client: redis.Redis, server: str) -> Iterator[Finding]:
    """Write a key that expires at once, named as slots are: no batch has such an id."""
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
        why = "workers cannot carry messages out"
        yield Finding(server, Severity.FAULT, str(error), why, step)
    except redis.RedisError as error:
        step = "look at its log and its INFO: memory, disk, replicas"
        yield Finding(server, Severity.FAULT, str(error), "it refuses writes", step)


def _tracking(client: redis.Redis) -> Iterator[Finding]:
    """Turn on what an idle worker uses, on a connection of its own."""
    try:
        with client.client() as alone:  # type: ignore[no-untyped-call] # redis-py's
            alone.execute_command("CLIENT", "TRACKING", "ON", "NOLOOP")
            alone.execute_command("CLIENT", "TRACKING", "OFF")
    except AWAY:
        raise
    except redis.RedisError as error:
        why = "an idle worker does not hear of new messages"
        step = "allow CLIENT TRACKING to the user of ELS_BROKER_URL"
        yield Finding("broker", Severity.FAULT, str(error), why, step)


def _skew_of_redis(client: redis.Redis, server: str) -> Iterator[Finding]:
    before = datetime.now(UTC)
    seconds, micros = client.time()
    ahead_s = seconds + micros / 1e6 - before.timestamp()
    yield from _skew(server, ahead_s, _since(before))


# --- waiting for the schema ----------------------------------------------------------------------


def wait_for_schema(
    url: str,
    say: Callable[[Finding], object],
    stopped: Callable[[], bool],
    beat: Callable[[], object] = lambda: None,
    prepare: Prepare = "auto",
) -> bool:
    """Wait until a connection of this URL sees the schema that this code needs, with its rights.

    `say` gets each finding that differs from the one before; `beat` is called every second
    meanwhile. False: `stopped` came true first. Raises UnfitPooler, which no waiting mends.
    """
    said: str | None = None
    again = 0.0
    while not stopped():
        beat()
        if time.monotonic() >= again:
            finding = _missing(url, prepare)
            if finding is None:
                return True
            if finding.wrong != said:
                said = finding.wrong
                say(finding)
            again = time.monotonic() + ASK_EVERY_S
        time.sleep(min(BEAT_EVERY_S, max(0.0, again - time.monotonic())))
    return False


def _missing(url: str, prepare: Prepare) -> Finding | None:
    try:
        with connect_once(url, prepare=prepare) as conn:
            return missing_for_work(conn)
    except UnfitPooler:
        raise
    except (psycopg.Error, ELSError) as error:
        return away("postgres", url, error)
