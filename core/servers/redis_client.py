"""Clients of Redis, by URL: plain, encrypted, by socket, or of Sentinels."""

from typing import Any, cast

from redis import Redis, Sentinel
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError  # noqa: A004 - redis-py's
from redis.retry import Retry

from core.servers.urls import completed, for_redis_py, sentinels

HEALTH_CHECK_S = 15  # of rest, after which a connection is asked for a sign of life before its use
# Of a Sentinel, in seconds; then the next one is asked. redis-py tries one that is away for longer.
ASKED_ONCE: dict[str, Any] = {  # Any: options of redis-py
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "retry": Retry(NoBackoff(), 0),
}


def connect(url: str, *, timeout_s: float = 5) -> Redis:
    """Connect to Redis; a lost reply is asked for again a few times, for half a second at most.

    Every script here may be repeated, so that is safe. Silence is not asked again, or it would take
    many times `timeout_s` until it is noticed: redis.TimeoutError goes to the caller. Limits that
    the URL names win. Of Sentinels, each new connection goes to the primary of that moment.
    """
    retry = Retry(ExponentialWithJitterBackoff(cap=0.2, base=0.02), 4, (ConnectionError,))
    health = {"socket_keepalive": True, "health_check_interval": HEALTH_CHECK_S}
    return _client(url, timeout_s, retry, health)


def connect_once(url: str, *, timeout_s: float = 2) -> Redis:
    """Connect for one who waits for the answer: each call is tried once, and briefly."""
    return _client(url, timeout_s, Retry(NoBackoff(), 0), {})


def _client(
    url: str,
    timeout_s: float,
    retry: Retry,
    more: dict[str, Any],  # Any: options of redis-py
) -> Redis:
    url = completed(url)
    options = {
        "decode_responses": True,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": retry,
        **more,
    }
    if url.startswith("sentinel://"):
        return _of_sentinels(url, options)
    if url.startswith(("unix://", "redis+socket://")):
        options.pop("socket_keepalive", None)
    return Redis.from_url(for_redis_py(url), **options)


def _of_sentinels(url: str, options: dict[str, Any]) -> Redis:  # Any: likewise
    said = sentinels(url)
    found: Any = Sentinel(  # type: ignore[no-untyped-call] # redis-py's
        said.hosts, sentinel_kwargs={**ASKED_ONCE, **said.own, **said.tls}
    )
    server = {"db": said.db, "username": said.username, "password": said.password}
    return cast(Redis, found.master_for(said.primary, Redis, **server, **said.tls, **options))
