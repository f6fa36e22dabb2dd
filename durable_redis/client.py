"""redis-py's client, which blames the server, or a proxy before it, for a reply it cannot read."""

from typing import Any

import redis
from redis.client import Pipeline
from redis.exceptions import InvalidResponse

# What redis-py raises where a reply is none that Redis gives to this command.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError)
AnyValue = Any  # Any: as redis-py types arguments and answers


class Client(redis.Redis):
    """Raises InvalidResponse for such a reply: then a worker connects again.

    Another reply may follow, so no connection is used again.
    """

    def execute_command(self, *args: AnyValue, **options: AnyValue) -> AnyValue:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except UNREADABLE as error:
            raise _dropping_connections(self, error) from error

    def pipeline(self, transaction: bool = True, shard_hint: AnyValue = None) -> Pipeline:
        """Return a pipeline that does the same."""
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _Pipeline(Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[AnyValue]:
        try:
            return super().execute(raise_on_error)
        except UNREADABLE as error:
            raise _dropping_connections(self, error) from error


def unreadable(error: Exception) -> InvalidResponse:
    """Return what is raised in place of such an error."""
    return InvalidResponse(f"a reply of the broker cannot be read: {type(error).__name__}")


def _dropping_connections(client: redis.Redis, error: Exception) -> InvalidResponse:
    client.connection_pool.disconnect(inuse_connections=False)
    return unreadable(error)
