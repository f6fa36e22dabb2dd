"""The same transport where Sentinels name the primary, before each new connection.

Kombu's own Sentinel transport loses messages as its Redis transport does.
"""

from typing import Any, cast

from kombu.transport import redis as stock
from redis.backoff import NoBackoff
from redis.retry import Retry

from durable_redis.channel import Channel
from durable_redis.transport import Transport

ANSWER_S = 1.0  # of a Sentinel; then the next one is asked


class SentinelChannel(Channel, stock.SentinelChannel):
    """The channel, on the primary."""

    from_transport_options = (
        *stock.SentinelChannel.from_transport_options,
        *Channel.from_transport_options,
    )
    master_name: str | None = None
    sentinel_kwargs: dict[str, Any] | None = None  # Any: options of redis-py

    @property
    def broker(self) -> str:
        """Name the primary by its service: its address changes, and so does the Sentinel's."""
        return f"sentinel {self.master_name} {cast(Any, self.connection).client.virtual_host}"

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:  # Any: redis-py's pool
        if self.master_name is None:
            raise ValueError("give the transport option master_name: the primary's name")
        asked_once = {
            "socket_timeout": ANSWER_S,
            "socket_connect_timeout": ANSWER_S,
            "retry": Retry(NoBackoff(), 0),
        }
        self.sentinel_kwargs = {**asked_once, **(self.sentinel_kwargs or {})}
        return super()._sentinel_managed_pool(asynchronous)  # type: ignore[misc] # not in its types


class SentinelTransport(Transport):
    """The transport for `sentinel://` URLs. The option `master_name` says which primary."""

    Channel = SentinelChannel
    default_port = stock.SentinelTransport.default_port
