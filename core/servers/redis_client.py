"""Clients of Redis, by URL: plain, encrypted, by socket, or of Sentinels."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import redis
from redis import InvalidResponse, Redis, Sentinel
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from core.servers.urls import completed, for_redis_py, sentinels

T = TypeVar("T")
HEALTH_CHECK_S = 15  # of rest, after which a connection is asked for a sign of life before its use
# Of a Sentinel, in seconds; then the next one is asked. redis-py tries one that is away for longer.
ASKED_ONCE: dict[str, Any] = {  # Any: options of redis-py
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "retry": Retry(NoBackoff(), 0),
}
# What redis-py raises where a reply is none that Redis gives to this command.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError)


class Reading(Retry):
    """redis-py's way to retry; it blames the server, or a proxy before it, for a senseless reply.

    Raises redis.InvalidResponse then. Another reply may follow, so that error ends the connection.
    """

    def call_with_retry(self, do: Callable[[], T], *args: Any, **options: Any) -> T:  # Any: theirs
        def read() -> T:
            try:
                return do()
            except UNREADABLE as error:
                name = type(error).__name__
                raise InvalidResponse(f"a reply cannot be read: {name}") from error

        return super().call_with_retry(read, *args, **options)


def connect(url: str, *, timeout_s: float = 5) -> Redis:
    """Connect to Redis; a lost or senseless reply is asked for again, for half a second at most.

    Every script here may be repeated, so that is safe. Silence is not asked again, or it would take
    many times `timeout_s` until it is noticed: redis.TimeoutError goes to the caller. Limits that
    the URL names win. Of Sentinels, each new connection goes to the primary of that moment.
    """
    backoff = ExponentialWithJitterBackoff(cap=0.2, base=0.02)
    retry = Reading(backoff, 4, (redis.ConnectionError, InvalidResponse))
    health = {"socket_keepalive": True, "health_check_interval": HEALTH_CHECK_S}
    return _client(url, timeout_s, retry, health)


def connect_once(url: str, *, timeout_s: float = 2) -> Redis:
    """Connect for one who waits for the answer: each call is tried once, and briefly.

    What other programs have written may be no UTF-8; it is read all the same.
    """
    ends = (redis.ConnectionError, redis.TimeoutError, InvalidResponse)
    return _client(url, timeout_s, Reading(NoBackoff(), 0, ends), {"encoding_errors": "replace"})


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
    return cast(Redis, found.master_for(said.primary, **server, **said.tls, **options))
