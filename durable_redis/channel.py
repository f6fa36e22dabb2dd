"""Kombu's Redis channel, except that one script both pops a message and writes its unacked entry.

A script cannot block. A worker that finds its lists empty has Redis track them (CLIENT TRACKING,
Redis 6 or later); Redis tells it on the same connection when one changes. So waiting loses nothing,
and an idle worker asks once a second.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from queue import Empty
from time import monotonic
from typing import Any, cast

import redis
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.imports import symbol_by_name
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError

from durable_redis import qos as holding
from durable_redis.client import UNREADABLE, Client, unreadable
from durable_redis.malformed import MalformedMessages, OnMalformed
from durable_redis.messages import MALFORMED, tag_name
from durable_redis.redelivery import redelivered
from durable_redis.refusals import LONGEST_PAUSE_S, REFUSALS
from durable_redis.renewal import Renewal
from durable_redis.unacked import Batching, Source, UnackedStore

SILENCE_S = 5  # of Redis, before a connection counts as dead
REPLICATED_MS = 1000  # for replicas to have a message; one that keeps up has it in 1 ms
ALONE_S = 2  # between two looks whether a replica is there again

log = logging.getLogger(__name__)


class Channel(stock.Channel):
    """Fetches messages in one call while there is room for one. README.md describes the options."""

    QoS = holding.QoS
    qos: holding.QoS
    from_transport_options = (
        *stock.Channel.from_transport_options,
        *(
            "on_malformed",
            "deliver_malformed",
            "batching",
            "urgent_queues",
            "replicas",
            "crashpoint",
        ),
    )
    on_malformed: OnMalformed | str | None = None
    deliver_malformed = False
    batching: Batching | Mapping[str, Any] = Batching()  # Any: as Batching has them
    urgent_queues: Sequence[str] = ()
    replicas = 0  # that have a message before it counts as sent
    crashpoint: Any = staticmethod(lambda _: None)  # Any: a function, or its name at first

    # Kombu's own, absent from its types.
    _in_poll: Any  # the connection on which a reply or an invalidation is due
    _in_listen: Any
    _qos: Any
    _brpop_sent_at: float
    _closing: bool
    _active_queues: list[str]
    _queue_cycle: Any
    _q_for_pri: Callable[[str, int], str]
    _flush_brpop_reauth: Callable[[], None]
    _close_clients: Callable[[], None]
    _get_pool: Callable[[], redis.ConnectionPool]
    connection_errors: tuple[type[Exception], ...]

    _alone_until = 0.0  # of this process, on the monotonic clock: no replica is connected
    _awaits_invalidation = False  # all lists were empty: no reply is due
    _tracking_socket: object = None
    _listens_from = float("-inf")

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as Kombu calls it
        self._callbacks: dict[str, tuple[Callable[[virtual.Message], object], bool]] = {}
        self._polled: list[Source] = []
        try:
            super().__init__(*args, **kwargs)
        except (ResponseError, InvalidResponse) as error:  # Kombu and Celery try neither again
            raise redis.ConnectionError(f"the broker refuses: {error}") from error
        if not self.ack_emulation:
            raise ValueError("leave ack_emulation on: without it a killed worker loses messages")
        if isinstance(self.batching, Mapping):
            self.batching = Batching(**self.batching)
        self.crashpoint = symbol_by_name(self.crashpoint)
        self.malformed = MalformedMessages(self, self.on_malformed)

    # --- putting -------------------------------------------------------------------------------

    def _queue_bind(self, exchange: str, *args: Any) -> None:  # Any: as Kombu calls it
        """Bind a queue. Remote control, which is Pub/Sub, works without the table in Redis."""
        try:
            super()._queue_bind(exchange, *args)  # type: ignore[misc] # not in Kombu's types
        except ResponseError:
            if self.typeof(exchange).type != "fanout":
                raise

    @property
    def supports_batch_publish(self) -> bool:
        """Whether messages may go to Redis together. Each waits for its replicas by itself."""
        return not self.replicas

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:  # Any: as Kombu's
        """Put a message at the end of its queue.

        With `replicas`, return once so many have it. Raises redis.ConnectionError where they do
        not take it: the message may come twice when it is sent again.
        """
        if not self.replicas or self._alone():
            super()._put(queue, message, **kwargs)
            return
        key = self._list(queue, self._get_message_priority(message))
        with self.unacked.client.pipeline(transaction=False) as pipe:
            pipe.lpush(key, json.dumps(message))
            pipe.wait(self.replicas, REPLICATED_MS)
            *_, count = pipe.execute()
        if count < self.replicas and self._replicas() > count:
            raise redis.ConnectionError(
                f"{count} of {self.replicas} replicas have the message for {queue}"
                f" after {REPLICATED_MS} ms"
            )

    def _replicas(self) -> int:
        """Count the replicas that are connected; without enough, wait for none for a while."""
        count = int(self.unacked.client.info("replication").get("connected_slaves", 0))
        alone = count < self.replicas
        if alone != (Channel._alone_until > 0):
            log.warning("replicas_connected: %d of %d", count, self.replicas)
        Channel._alone_until = monotonic() + ALONE_S if alone else 0
        return count

    def _alone(self) -> bool:
        """Whether no replica can have a message: WAIT would take its whole time."""
        if Channel._alone_until and monotonic() > Channel._alone_until:
            self._replicas()
        return Channel._alone_until > 0

    def requeue(self, tag: str, entry: bytes, *, last: bool = False, age_s: float = -1) -> bool:
        """Move an unacked message back to its list, marked as redelivered and else unchanged.

        `age_s` is the age that its entry must have, -1 for any. Returns False if somebody else was
        first. An entry that cannot be read, which no worker writes, is malformed, of the queue
        `unacked`.
        """
        try:
            message, exchange, routing_key = redelivered(entry, overdue=age_s >= 0)
            priority = self._get_message_priority(message)
            # Kombu drops a message if its exchange leads nowhere by now.
            queues = self._lookup(exchange, routing_key) or [routing_key]
            lists = [self._list(queue, priority) for queue in queues]
            payload: str | bytes = json.dumps(message)
        except MALFORMED:
            log.exception("malformed_unacked_entry: %s", tag_name(tag))
            payload, lists, last = entry, [self.malformed_list(self.unacked_key)], True
        return self.unacked.requeue(tag, entry, payload, lists, last=last, age_s=age_s)

    # --- fetching ------------------------------------------------------------------------------

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[..., Any] | None,  # Any: as Kombu has it
        consumer_tag: str | None,
        **kwargs: Any,
    ) -> str:
        """Consume from a queue. Without acknowledgement, delivery deletes a message's entry."""
        assert callback is not None, "a consumer has one"
        self._callbacks[queue] = callback, no_ack
        return cast(str, super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs))

    def basic_get(self, queue: str, no_ack: bool = False, **_: object) -> virtual.Message | None:
        """Fetch the next message of a queue now; None if there is none."""
        while fetched := self.unacked.fetch(self._sources([queue])):
            if not fetched[1:]:
                self.malformed.offer(queue)  # the script has set it aside
                continue
            message = self.malformed.open(queue, *fetched[1:])
            if message is None:
                continue
            if no_ack:
                self.unacked.delete(str(message.delivery_tag))
            else:
                self.qos.track(message, self._fetch_from(queue))
            return message
        return None

    def _sources(self, queues: Sequence[str]) -> list[Source]:
        """List what to fetch from: by priority, then in the order of the queues."""
        return [
            Source(queue, self._list(queue, step), self.malformed_list(queue))
            for step in self.priority_steps
            for queue in queues
        ]

    def queues_with_room(self) -> set[str]:
        """Name the queues to fetch from now; the urgent ones have a prefetch window of their own.

        So a process gets the next of the others at once, however many urgent messages come.
        """
        room = self.qos.windows_with_room()
        return {queue for queue in self._active_queues if (queue in self.urgent_queues) in room}

    def _in_turn(self, queues: Sequence[str]) -> list[str]:
        """Put the urgent queues first, in their order, and leave that of the others."""
        urgent = {queue: place for place, queue in enumerate(self.urgent_queues)}
        return sorted(queues, key=lambda queue: urgent.get(queue, len(urgent)))

    def _fetch_from(self, queue: str) -> holding.Fetch:
        return holding.Fetch(is_urgent=queue in self.urgent_queues)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for messages. `_brpop_read` reads the reply when it has come."""
        room = self.queues_with_room()
        queues = self._in_turn(
            [queue for queue in self._queue_cycle.consume(len(self.active_queues)) if queue in room]
        )
        if not queues:
            return
        connection = self.client.connection
        if self._tracking_socket is not connection._sock:
            connection.send_command("CLIENT", "TRACKING", "ON", "NOLOOP", check_health=False)
            connection.read_response()
            self._tracking_socket = connection._sock
        self._polled = self._sources(queues)
        self._in_poll, self._awaits_invalidation = connection, False
        self._brpop_sent_at = monotonic()
        # A health check may reconnect behind the poller's back. This command is check enough.
        command = self.unacked.fetch_command(self._polled, cast(Batching, self.batching))
        connection.send_command(*command, check_health=False)

    def _brpop_read(self, **_: object) -> bool:
        """Read the reply to `_brpop_start`, or an invalidation. Raises Empty as Kombu's."""
        if self._awaits_invalidation:
            self._awaits_invalidation, self._in_poll = False, None
            self.read_invalidations()
        connection = self.client.connection
        try:
            fetched = connection.read_response()
            source, messages = self._sorted(fetched)
        except NoScriptError:
            self.unacked.load_fetch()
            raise Empty from None
        except UNREADABLE as error:
            raise unreadable(error) from error
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self.end_refusal()
        if fetched is None:
            if connection._sock is self._tracking_socket and not connection.can_read(timeout=0):
                self._awaits_invalidation, self._in_poll = True, connection
            raise Empty
        self.crashpoint("taken")
        self._deliver_all(source.queue, messages)
        return True

    def _sorted(self, fetched: Any) -> Any:  # Any: what `fetch.lua` returns, if it is that
        """Return where messages are from, and them: tags and payloads by turns.

        Raises one of UNREADABLE.
        """
        if fetched is None:
            return None, ()
        number, *messages = fetched
        if not 1 <= number <= len(self._polled) or len(messages) % 2:
            raise ValueError("no reply to a fetch")
        return self._polled[number - 1], messages

    def read_invalidations(self) -> None:
        """Read what Redis sends unasked: that a list has changed. Raises Empty."""
        connection = self.client.connection
        try:
            while connection._sock is not None and connection.can_read(timeout=0):
                connection.read_response(push_request=True)
        except self.connection_errors:
            connection.disconnect()  # the poller reconnects once there is room for a message
        raise Empty

    def poll_again(self) -> None:
        """Ask for what there was no room for; and once a second for all.

        The latter finds a dead connection or a lost invalidation.
        """
        if not (self._awaits_invalidation and self._in_poll):
            return
        room = self.queues_with_room()
        is_old = monotonic() - self._brpop_sent_at > self.brpop_timeout
        if is_old or not room <= {source.queue for source in self._polled}:
            self._brpop_start()

    def end_refusal(self) -> None:
        """Take note that Redis takes commands; after a refusal, restore nothing for a while."""
        if REFUSALS.current and REFUSALS.is_over:
            REFUSALS.end()
            self.qos.restore_later()

    def _deliver_all(self, queue: str, messages: Sequence[bytes]) -> None:
        """Deliver what a fetch gave: tags and payloads by turns."""
        self._queue_cycle.rotate(queue)
        if not messages:
            self.malformed.offer(queue)  # the script has set it aside
        tags, fetch = messages[::2], self._fetch_from(queue)
        self.qos.arriving.update(map(bytes_to_str, tags))
        try:
            for tag, payload in zip(tags, messages[1::2], strict=True):
                self._deliver_one(queue, tag, payload, fetch)
                self.qos.arriving.discard(bytes_to_str(tag))
        finally:
            self.qos.arriving.clear()

    def _deliver_one(self, queue: str, tag: bytes, payload: bytes, fetch: holding.Fetch) -> None:
        message = self.malformed.open(queue, tag, payload)
        if message is None:
            return
        if self._closing or queue not in self._active_queues:
            self.qos.give_back(str(message.delivery_tag), last=False)
            return
        callback, no_ack = self._callbacks[queue]
        if no_ack:
            callback(message)
            self.qos.delete(str(message.delivery_tag))
            return
        self.qos.track(message, fetch)
        try:
            callback(message)
        except MALFORMED:  # Celery may have leaked a process slot, so it ends this one worker
            self.qos.untrack(message)
            self.malformed.set_aside(queue, tag, payload)
            raise

    # --- connections ---------------------------------------------------------------------------

    @property
    def broker(self) -> str:
        """Name the server, the same for each connection to it."""
        return str(cast(Any, self.connection).client.as_uri())

    @property
    def unacked_keys(self) -> tuple[str, str]:
        """The keys of the unacked entries, and of their times."""
        return self._key(self.unacked_key), self._key(self.unacked_index_key)

    @cached_property
    def unacked(self) -> UnackedStore:
        """The unacked entries, on a client that takes keys as they are: Kombu's adds a prefix."""
        return UnackedStore(Client(connection_pool=self.pool), *self.unacked_keys)

    def start_renewal(self) -> Renewal:
        """Have a thread renew what is held, on a connection of its own."""
        client = Client(connection_pool=self._get_pool())
        store = UnackedStore(client, *self.unacked_keys)
        loop = cast(Any, self.connection).cycle.loop
        renewal = Renewal(loop, self.qos.held_tags, store.renew, self.visibility_timeout)
        renewal.start()
        return renewal

    def _get_client(self) -> Any:  # Any: a class, or what makes its objects
        if self.global_keyprefix:
            return super()._get_client()  # type: ignore[misc] # Kombu's own, absent from its types
        return Client

    @cached_property
    def _shared_client(self) -> redis.Redis:
        return cast(redis.Redis, stock.Channel._create_client(self))  # type: ignore[attr-defined]

    def _create_client(self, asynchronous: bool = False) -> redis.Redis:
        """Return one client for all calls: making one, as Kombu does, takes as long as a call.

        The client that is read asynchronously has a connection to itself.
        """
        if asynchronous:
            return cast(redis.Redis, stock.Channel._create_client(self, True))  # type: ignore[attr-defined]
        return self._shared_client

    @cached_property
    def subclient(self) -> Any:  # Any: redis-py's PubSub, maybe Kombu's own
        """Subscribe, and wait for a second at most when reading: redis-py waits for ever."""
        client: Any = self._create_client(asynchronous=True)
        pubsub = client.pubsub()
        pubsub.parse_response = partial(pubsub.parse_response, block=False, timeout=holding.SLOW_S)
        return pubsub

    def close(self) -> None:
        """Close; a message that arrived in the meantime goes back.

        Kombu stops halfway where the connection is lost; then this does the rest. Celery would go
        on with half a channel, and the error would end the worker.
        """
        if self._qos is not None:
            self.qos.stop_renewal()
        if self._awaits_invalidation:
            self._awaits_invalidation, self._in_poll = False, None  # no reply is due
        try:
            super().close()
        except self.connection_errors:
            if self.connection is not None:
                cast(Any, self.connection).cycle.discard(self)
            self._disconnect_pools()
            self._close_clients()
            virtual.Channel.close(self)

    def drop_silent_connection(self) -> None:
        """Drop the connection if a reply is due for too long; the poller reconnects."""
        connection = self._in_poll
        if not connection or self._awaits_invalidation:
            return
        silent_s = monotonic() - self._brpop_sent_at
        readable = stock._socket_readable  # type: ignore[attr-defined] # absent from its types
        if silent_s > SILENCE_S and not readable(connection._sock):
            log.warning("broker_silent: for %d s", round(silent_s))
            connection.disconnect()

    def stop_listening(self, error: ResponseError) -> None:
        """Go without remote control for a while: Redis refuses to subscribe."""
        if self._listens_from < 0:
            log.error("remote_control_refused: %s", error)
        self._listens_from = monotonic() + LONGEST_PAUSE_S
        self._in_listen = None
        self.subclient.connection.disconnect()

    @property
    def listens(self) -> bool:
        """Whether to subscribe now."""
        return monotonic() > self._listens_from

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Speak RESP3, in which Redis can send something unasked.

        Raises redis.ConnectionError where the channel is closed, or its connection: somebody may
        close it while this thread publishes.
        """
        if getattr(self.connection, "client", None) is None:
            raise redis.ConnectionError("the connection is closed")
        return {**super()._connparams(asynchronous), "protocol": 3}  # type: ignore[misc] # untyped

    def _disconnect_pools(self) -> None:
        for name in ("unacked", "_shared_client"):
            self.__dict__.pop(name, None)
        super()._disconnect_pools()  # type: ignore[misc] # not in Kombu's types

    # --- keys ----------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return self.global_keyprefix + name

    def _list(self, queue: str, priority: int) -> str:
        return self._key(self._q_for_pri(queue, priority))

    def malformed_list(self, queue: str) -> str:
        """Return the key of the list for the malformed messages of a queue."""
        return self._key(f"{queue}.malformed")
