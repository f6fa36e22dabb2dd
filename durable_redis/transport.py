"""Kombu's Redis transport with our channel, and a poller for connections that get invalidations."""

import socket
from collections.abc import Callable
from contextlib import suppress
from time import sleep
from typing import Any

from kombu import transport
from kombu.transport import redis as stock
from redis.exceptions import ResponseError

from durable_redis.channel import SILENCE_S, Channel
from durable_redis.refusals import REFUSALS
from durable_redis.renewal import MainLoop
from durable_redis.schemes import asked_tls, keep_transport, remember_tls

RESTORE_EVERY_S = 1  # one call; Kombu's default of 100 s would be most of a redelivery
OPTIONS = {  # where a transport option says nothing else
    "unacked_restore_interval": RESTORE_EVERY_S,
    "socket_timeout": SILENCE_S,
    "socket_connect_timeout": SILENCE_S,
    "health_check_interval": SILENCE_S,
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): value
        for name, value in {
            "TCP_KEEPIDLE": 5,
            "TCP_KEEPINTVL": 5,
            "TCP_KEEPCNT": 3,
            "TCP_USER_TIMEOUT": 15_000,  # ms
        }.items()
        if hasattr(socket, name)
    },
}

remember_tls()


class Poller(stock.MultiChannelPoller):
    """Kombu's poller, for connections on which Redis may speak first."""

    # Kombu's own, absent from its types.
    _channels: set[Channel]
    _fd_to_chan: dict[int, tuple[Channel, str]]

    in_event_loop = False  # whether an event loop calls `on_poll_start` at each turn

    def __init__(self) -> None:
        super().__init__()
        self.loop = MainLoop()

    def on_poll_init(self, poller: object) -> None:
        """Get ready for an event loop."""
        for channel in self._channels:
            channel.qos.connected()
        with suppress(ResponseError):  # the first fetch will say so
            super().on_poll_init(poller)
        self.in_event_loop = True

    def on_poll_start(self) -> None:
        """Flush, and ask for messages where there is room; not while Redis refuses.

        A refusal is no reason to end a worker, nor to reconnect.
        """
        self.loop.turned()
        if REFUSALS.paused:
            return
        try:
            for channel in self._channels:
                channel.qos.flush()
                channel.poll_again()
            super().on_poll_start()
            self._probe_where_nothing_is_fetched()
        except ResponseError as error:
            REFUSALS.begin(error)

    def _probe_where_nothing_is_fetched(self) -> None:
        """Find out whether Redis still refuses, where no reply to a fetch can say so."""
        if not REFUSALS.current:
            return
        consuming = [channel for channel in self._channels if channel.active_queues]
        if consuming and not any(each.qos.can_consume() or each._in_poll for each in consuming):
            consuming[0].unacked.probe()
            consuming[0].end_refusal()

    def _register_LISTEN(self, channel: Channel) -> None:  # noqa: N802 - Kombu's
        if channel.listens:
            super()._register_LISTEN(channel)  # type: ignore[misc] # not in Kombu's types

    def on_readable(self, fileno: int) -> None:
        """Read a reply or an invalidation. Raises Empty if it is no message."""
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if channel is not None and kind == "BRPOP" and not channel._in_poll:
            channel.read_invalidations()
        try:
            super().on_readable(fileno)
        except ResponseError as error:
            if channel is not None and kind == "LISTEN":
                channel.stop_listening(error)
            else:
                REFUSALS.begin(error)

    def maybe_restore_messages(self) -> None:
        """Restore what dead workers held."""
        try:
            super().maybe_restore_messages()
        except ResponseError as error:
            REFUSALS.begin(error)

    def maybe_refresh_binding_expiry(self) -> None:
        """Refresh bindings, which last for an hour, when Redis takes writes."""
        if not REFUSALS.current:
            super().maybe_refresh_binding_expiry()  # type: ignore[misc] # not in Kombu's types

    def maybe_check_brpop_health(self) -> None:
        """Drop connections on which a reply is due for too long: nothing else finds them."""
        for channel in self._channels:
            channel.drop_silent_connection()

    def get(self, callback: Callable[..., object], timeout: float | None = None) -> None:
        """Wait for an event; return once a second, for what has no timer without an event loop."""
        super().get(callback, timeout=1 if timeout is None else min(timeout, 1))


class Transport(stock.Transport):
    """Kombu's Redis transport with the channel and the poller of this package."""

    Channel = Channel

    def __init__(self, client: Any, **kwargs: Any) -> None:  # Any: as Kombu calls it
        for option, value in OPTIONS.items():
            client.transport_options.setdefault(option, value)
        client.ssl = asked_tls(client)
        keep_transport(client)
        super().__init__(client, **kwargs)
        self.cycle = Poller()


def install() -> None:
    """Make every Redis broker of this process use this transport.

    Connections that only publish behave as before.
    """
    # `redis+socket` is `redis` when Kombu looks it up.
    ours = dict.fromkeys(("redis", "rediss"), "Transport") | {"sentinel": "SentinelTransport"}
    for scheme, name in ours.items():
        transport.TRANSPORT_ALIASES[scheme] = f"durable_redis:{name}"
        transport._transport_cache.pop(scheme, None)  # type: ignore[attr-defined] # not in its types


def await_writes(connection: Any, every_second: Callable[[], object]) -> None:  # Any: Kombu's
    """Wait until Redis takes writes on this new connection; return at once on another broker.

    A worker that cannot declare its queues, as on a replica, would end. Raises RedisError where
    the connection is lost meanwhile.
    """
    while isinstance(connection.transport, Transport):
        while REFUSALS.paused:
            every_second()
            sleep(1)
        try:
            connection.default_channel.unacked.probe()
        except ResponseError as error:
            REFUSALS.begin(error, while_connecting=True)
        else:
            REFUSALS.connected()
            return
