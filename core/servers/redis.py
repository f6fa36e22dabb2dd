"""What the service needs of a Redis or Valkey: version, role, eviction, writes, clock."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import redis
from redis.exceptions import NoPermissionError, ReadOnlyError

from core.servers.away import away, refused, setting_of
from core.servers.finding import Finding, Severity, skew
from core.signs.pauses import server_time

OLDEST_REDIS = (6, 2)  # CLIENT TRACKING came with 6.0, LPOP with a count with 6.2
AWAY = (redis.ConnectionError, redis.TimeoutError)
INFORMATION = "version, eviction and append-only file"  # what INFO says
STEPS = {  # by words of an error
    "BUSY": "SCRIPT KILL, or FUNCTION KILL; what has written ends by itself",
    "max number of clients": "end some of CLIENT LIST, or CONFIG SET maxclients",
}


def check_redis(client: redis.Redis, server: str, url: str = "") -> list[Finding]:
    """Check a Redis: `redis` holds the slots, `broker` the queues, and maybe the slots too.

    With its URL, a fault of TLS is named better.
    """
    found: list[Finding] = []
    answers = False
    try:
        answers = bool(client.ping())
        found += _allowed(_information(client, server), server, INFORMATION)
        found += _writes(client, server)
        found += _tracking(client) if server == "broker" else []
        found += _allowed(skew(server, lambda: _now(client)), server, "the clock")
    except redis.RedisError as error:  # a refusal: of PING, as the others name what they met
        return [_unanswered(server, url, error, answers=answers)]
    return [*{each.wrong: each for each in reversed(found)}.values()][::-1]


def _unanswered(server: str, url: str, error: redis.RedisError, *, answers: bool) -> Finding:
    if answers and isinstance(error, redis.TimeoutError):
        wrong = "it answers, and holds writes back"
        return refused(server, wrong, "CLIENT UNPAUSE, or look at SLOWLOG GET")
    if step := next((step for words, step in STEPS.items() if words in str(error)), None):
        return refused(server, error, step)
    if isinstance(error, AWAY):
        return away(server, url, error)
    return refused(server, error, f"mend {setting_of(server)}, or the ACL of its user")


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


def _information(client: redis.Redis, server: str) -> Iterator[Finding]:
    info = client.info()
    yield from _version(server, str(info.get("redis_version", "")))
    yield from _role(server, info)
    yield from _eviction(server, info.get("maxmemory_policy"))
    if server == "broker":
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
    step = f"name its primary ({primary}) in {setting_of(server)}"
    return Finding(server, Severity.FAULT, "it is a replica", why, step)


def _eviction(server: str, policy: object) -> Iterator[Finding]:
    if policy is None:
        yield _unchecked(server, "eviction", "INFO has no maxmemory_policy")
    elif policy != "noeviction":
        severity, lost = Severity.WARNING, "slots, which the sweep then seeds again"
        if server == "broker":
            severity, lost = Severity.FAULT, "whole queues"
        why = f"when its memory is full it drops {lost}"
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


def _now(client: redis.Redis) -> datetime:
    return datetime.fromtimestamp(server_time(client), UTC)
