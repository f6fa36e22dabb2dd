"""Clients of Redis, by URL: plain, encrypted, by socket, or of Sentinels."""

from typing import Any, cast

from redis import Redis, Sentinel
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.client import Pipeline
from redis.exceptions import ConnectionError, InvalidResponse  # noqa: A004 - redis-py's
from redis.retry import Retry

from core.servers.urls import completed, for_redis_py, sentinels

HEALTH_CHECK_S = 15  # of rest, after which a connection is asked for a sign of life before its use
# Of a Sentinel, in seconds; then the next one is asked. redis-py tries one that is away for longer.
ASKED_ONCE: dict[str, Any] = {  # Any: options of redis-py
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "retry": Retry(NoBackoff(), 0),
}


# What redis-py raises where a reply is none that Redis gives to this command.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError)
AnyValue = Any  # Any: as redis-py types arguments and answers


class Client(Redis):
    """redis-py's client; it blames the server, or a proxy before it, for what it cannot read.

    Raises redis.InvalidResponse then. Another reply may follow, so no connection is used again.
    """

    def execute_command(self, *args: AnyValue, **options: AnyValue) -> AnyValue:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except UNREADABLE as error:
            raise _unreadable(self, error) from error

    def pipeline(self, transaction: bool = True, shard_hint: AnyValue = None) -> Pipeline:
        """Return a pipeline that does the same."""
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _Pipeline(Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[AnyValue]:
        try:
            return super().execute(raise_on_error)
        except UNREADABLE as error:
            raise _unreadable(self, error) from error


def _unreadable(client: Redis, error: Exception) -> InvalidResponse:
    client.connection_pool.disconnect(inuse_connections=False)
    return InvalidResponse(f"a reply cannot be read: {type(error).__name__}")


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
    """Connect for one who waits for the answer: each call is tried once, and briefly.

    What other programs have written may be no UTF-8; it is read all the same.
    """
    return _client(url, timeout_s, Retry(NoBackoff(), 0), {"encoding_errors": "replace"})


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
    return Client.from_url(for_redis_py(url), **options)


def _of_sentinels(url: str, options: dict[str, Any]) -> Redis:  # Any: likewise
    said = sentinels(url)
    found: Any = Sentinel(  # type: ignore[no-untyped-call] # redis-py's
        said.hosts, sentinel_kwargs={**ASKED_ONCE, **said.own, **said.tls}
    )
    server = {"db": said.db, "username": said.username, "password": said.password}
    return cast(Redis, found.master_for(said.primary, Client, **server, **said.tls, **options))
