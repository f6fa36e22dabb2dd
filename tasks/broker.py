"""A Redis broker that loses nothing: Kombu's, but for how messages are taken and restored.

Kombu pops a message with BRPOP and notes it as unacknowledged in a second call; a worker killed in
between loses it. Here one script pops and notes. Keys, notes and messages are Kombu's own, so
producers and stock workers may share the queues.

A script cannot block. A worker that finds its lists empty has Redis track them (CLIENT TRACKING,
Redis 6 or later) and is told on the same connection when one changes: nothing is lost by waiting,
and an idle worker asks once a second.

A worker renews what it holds (`tasks.renewal`), pauses while Redis refuses (`tasks.refusals`), and
connects again when Redis is silent for some seconds.
"""

import json
import socket
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from queue import Empty
from time import monotonic, sleep
from types import UnionType
from typing import Any, NamedTuple, cast

import redis
import structlog
from kombu import transport
from kombu.exceptions import DecodeError
from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.imports import symbol_by_name
from redis.exceptions import NoScriptError, RedisError, ResponseError

from core.crash import crashpoint
from tasks.refusals import AT_CONNECT, LONGEST_PAUSE_S, Refusal, Refusals
from tasks.renewal import Loop, Renewal

TRANSPORTS = {  # by the scheme of a URL; `redis+socket` is `redis` by then
    "redis": f"{__name__}:Transport",
    "rediss": f"{__name__}:Transport",
    "amqp": "tasks.worker.amqp:Transport",
    "pyamqp": "tasks.worker.amqp:Transport",
    "amqps": "tasks.worker.amqp:SSLTransport",
}
LUA = Path(__file__).parent / "lua"
RESTORE_EVERY_S = 1  # one call; Kombu's default of 100 s would be most of a redelivery
RESTORED_AT_ONCE = 1000  # about 0.3 s of the event loop
NOTHING_RESTORED_S = 6  # after an outage, while the living renew what they hold: each does in 5 s
SLOW_S = 1  # a reply that took longer is one of a Redis that stood still
SILENCE_S = 5  # of Redis, before a connection counts as dead
FORGOTTEN_AT_ONCE = 1000  # Lua unpacks some 8 000 values at most
JUNK_EVERY_S = 5  # before junk that could not be kept is offered again
JUNK_AT_ONCE = 10  # callbacks into a database, in the event loop
BAD_SHAPE = (ValueError, TypeError, AttributeError, LookupError, RecursionError)  # of parsed junk

Shape = Mapping[str, type | UnionType]
MESSAGE: Shape = {
    "properties": dict,
    "headers": dict | None,
    "body": str,
    "content-type": str | None,
    "content-encoding": str | None,
}
DELIVERY_COUNT = "x-delivery-count"  # 1 once a worker was lost that may have begun the message
TIME_LIMITS = {  # of each connection, unless a transport option says otherwise
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
PROPERTIES: Shape = {"delivery_tag": str | int | float, "delivery_info": dict | None}
HEADERS: Shape = {  # those with which another type ends a worker
    "task": str,
    "id": str,
    "eta": str | None,
    "expires": str | int | float | None,
    "timelimit": list | None,
    "stamped_headers": list | None,
}
BODY: Shape = {"args": list, "kwargs": dict, "embed": dict | None}

OnJunk = Callable[[str, bytes, str], bool | None]
# Tasks; how many of their messages are taken at once, and of how many bytes in all.
Together = tuple[Sequence[str], int, int]
ALONE: Together = ((), 1, 0)
log = structlog.get_logger(__name__)
_refusals = Refusals()


def refusal() -> Refusal | None:
    """Return what Redis refuses this worker with at present; None if it takes commands."""
    return _refusals.current


def install() -> None:
    """Make every Redis and RabbitMQ broker of this process ours.

    Connections that only publish behave as before.
    """
    for scheme, ours in TRANSPORTS.items():
        transport.TRANSPORT_ALIASES[scheme] = ours
        transport._transport_cache.pop(scheme, None)  # type: ignore[attr-defined] # not in its types


def lost_workers(headers: Any) -> int:  # Any: a mapping, or a task's request, which has `get` too
    """Tell whether a worker was lost that may have begun this message: 1, or 0.

    The Redis broker knows no more; RabbitMQ counts every delivery here.
    """
    count = headers.get(DELIVERY_COUNT)
    return count if isinstance(count, int) else 0


def _check(thing: object, shape: Shape) -> None:
    """Raise TypeError unless this is an object with such members."""
    if not isinstance(thing, dict):
        raise TypeError(f"{type(thing).__name__} where an object is due")
    for name, due in shape.items():
        if not isinstance(thing.get(name), due):
            raise TypeError(f"{name} is {type(thing.get(name)).__name__}, not {due}")


def _check_task(message: virtual.Message) -> None:
    """Raise one of BAD_SHAPE if this calls a task with what is no call: it would end a worker.

    The parsed body stays in the message, so Celery does not parse it again. What cannot be parsed
    is left to Celery, which says so and goes on.
    """
    if message.errors or "task" not in (message.headers or {}):
        return
    if message.content_type == "application/json":
        with suppress(DecodeError):
            args, kwargs, embed = message.payload
            _check({"args": args, "kwargs": kwargs, "embed": embed}, BODY)


def await_writes(connection: Any, every_second: Callable[[], object]) -> None:  # Any: Kombu's
    """Wait until Redis takes writes on this new connection; another broker is not asked.

    A worker that cannot declare its queues, as on a replica, would end. Raises RedisError where
    the connection is lost meanwhile.
    """
    while isinstance(connection.transport, Transport):
        while _refusals.paused:
            every_second()
            sleep(1)
        try:
            connection.default_channel.unacked.probe()
        except ResponseError as error:
            _refusals.note(error, while_connecting=True)
        else:
            _refusals.connected()
            return


def note_refusal(error: BaseException, *, while_connecting: bool = False) -> bool:
    """Note that Redis refuses what a worker needs to begin; False if this is another error."""
    refused = error if isinstance(error, AT_CONNECT) else error.__cause__
    if not isinstance(refused, AT_CONNECT):
        return False
    _refusals.note(refused, while_connecting=while_connecting)
    return True


def _counts_as_lost(message: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:  # Any: JSON
    """Tell whether nobody knows if this overdue message was begun by the worker that held it.

    One that was redelivered before is counted by those who begin it. One whose `eta` lies ahead
    was not begun.
    """
    info = message["properties"].get("delivery_info")
    before = (headers, info) if isinstance(info, dict) else (headers,)
    return not any(place.get("redelivered") for place in before) and not _lies_ahead(
        headers.get("eta")
    )


def _lies_ahead(eta: object) -> bool:
    try:
        at = datetime.fromisoformat(cast(str, eta))
    except (TypeError, ValueError):
        return False  # none, or one that Celery refuses
    return (at if at.tzinfo else at.replace(tzinfo=UTC)) > datetime.now(UTC)


class Source(NamedTuple):
    """A list to take from; a queue has one for each priority."""

    queue: str
    key: str
    junk: str  # the list that keeps what is no message


class Unacked:
    """The messages of one Redis that are in work, and the scripts that move them."""

    def __init__(self, client: redis.Redis, unacked: str, index: str) -> None:
        self.client = client
        self._keys = [unacked, index]
        self._take = client.register_script((LUA / "take.lua").read_text())
        self._forget = client.register_script((LUA / "forget.lua").read_text())
        self._overdue = client.register_script((LUA / "overdue.lua").read_text())
        self._put_back = client.register_script((LUA / "put_back.lua").read_text())
        self._renew = client.register_script((LUA / "renew.lua").read_text())
        self._probe = client.register_script((LUA / "probe.lua").read_text())

    def take(self, sources: Sequence[Source]) -> list[Any] | None:
        """Take a message and note it. Returns what `take.lua` says."""
        return cast("list[Any] | None", self._take(*self._names(sources, ALONE)))

    def taking(self, sources: Sequence[Source], together: Together) -> list[str | int]:
        """Write the command of `take`, for a connection that reads the reply later."""
        keys, arguments = self._names(sources, together)
        return ["EVALSHA", self._take.sha, len(keys), *keys, *arguments]

    def load(self) -> None:
        """Give Redis the script that `taking` names."""
        self.client.script_load(self._take.script)

    def forget(self, *tags: str) -> None:
        """Strike notes out: their messages are done with."""
        self._forget(self._keys, tags)

    def renew(self, tags: Collection[str]) -> None:
        """Note that these messages, so far as they are noted, are held by a worker that lives."""
        self._renew(self._keys[1:], list(tags))

    def probe(self) -> None:
        """Write nothing, as a script's write. Raises what Redis refuses with."""
        self._probe(self._keys[1:])

    def note(self, tag: str) -> bytes | None:
        """Read one note; None if it is gone."""
        return cast("bytes | None", self.client.hget(self._keys[0], tag))

    def overdue(self, age_s: float, limit: int) -> list[tuple[str, bytes]]:
        """Read the notes, each with its tag, that are older than this by Redis' clock."""
        flat = self._overdue(self._keys, [age_s, limit])
        return [(bytes_to_str(tag), note) for tag, note in zip(flat[::2], flat[1::2], strict=True)]

    def put_back(
        self,
        tag: str,
        note: bytes,
        payload: str | bytes,
        lists: Sequence[str],
        *,
        last: bool = False,
        age_s: float = -1,
    ) -> bool:
        """Move a noted message to these lists; False if the note, as read, is there no more."""
        side = "LPUSH" if last else "RPUSH"
        return bool(self._put_back([*self._keys, *lists], [tag, note, payload, side, age_s]))

    def _names(
        self, sources: Sequence[Source], together: Together
    ) -> tuple[list[str], list[str | int]]:
        keys = [*self._keys, *(source.key for source in sources), *(s.junk for s in sources)]
        tasks, *limits = together
        return keys, [f" {' '.join(tasks)} ", *limits, *(source.queue for source in sources)]


@dataclass
class Kept:
    """What a worker owes a broker, whichever connection it has to it by now."""

    done: list[str] = field(default_factory=list)  # acknowledged, to be forgotten together
    returned: deque[tuple[str, bool]] = field(default_factory=deque)  # to be put back; as last?
    begun: set[str] = field(default_factory=set)  # in work since before the connection was lost
    connected: bool = False  # once at least
    restores_from: float = float("-inf")  # on the monotonic clock

    def restore_later(self) -> None:
        """Leave what is overdue to those who hold it, who could not renew it in an outage."""
        self.restores_from = monotonic() + NOTHING_RESTORED_S


_kept: defaultdict[str, Kept] = defaultdict(Kept)  # by a broker's URL and key


def _in_work() -> set[str]:
    """List the messages that this worker's pool carries out; none if the worker stops."""
    worker = sys.modules.get("celery.worker.state")
    if worker is None or worker.should_stop is not None or worker.should_terminate is not None:
        return set()
    return {str(request.message.delivery_tag) for request in tuple(worker.active_requests)}


class Held(stock.QoS):
    """What this worker holds. The notes are written by the script that takes.

    Messages that were taken together count as one against the prefetch window.
    """

    channel: "Channel"
    _delivered: Any  # Kombu's own: tag to message; None in its types until it is set
    _dirty: set[str]

    def __init__(self, channel: "Channel", prefetch_count: int = 0) -> None:
        broker = cast(Any, channel.connection).client  # Kombu's connection, untyped here
        self._kept = _kept[f"{broker.as_uri()} {channel._key(channel.unacked_key)}"]
        self._renewal: Renewal | None = None
        self.arriving: set[str] = set()  # taken, not delivered yet
        super().__init__(channel, prefetch_count)

    def can_consume(self) -> bool:
        """Tell whether there is room for another take."""
        dirty = self._dirty
        taken = {message.take for tag, message in self._delivered.items() if tag not in dirty}
        return not self.prefetch_count or len(taken) < self.prefetch_count

    def hold(self, message: virtual.Message, take: object = None) -> None:
        """Count a message, which is noted, against the prefetch window, once a `take`."""
        message.take = take or message  # type: ignore[attr-defined] # it is noted here
        virtual.QoS.append(self, message, str(message.delivery_tag))
        if self._renewal is None:
            self._renewal = self.channel.start_renewal()

    def tags(self) -> set[str]:
        """List what is held, from whatever thread: what is done counts until it is forgotten."""
        held = set(self._delivered) - set(self._dirty)  # each a single step of the interpreter
        returned = [tag for tag, _ in tuple(self._kept.returned)]
        return held.union(self.arriving, self._kept.done, returned, self._kept.begun)

    def drop(self, message: virtual.Message) -> None:
        """Count it no more."""
        virtual.QoS.ack(self, str(message.delivery_tag))

    def ack(self, delivery_tag: str) -> None:
        """Forget the message, by one call for all of a turn of the worker's event loop."""
        self._end(delivery_tag)
        self.forget(delivery_tag)

    def forget(self, delivery_tag: str) -> None:
        """Forget a message that may not be held."""
        self._kept.done.append(delivery_tag)
        self._settle_without_loop()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put the message back as the last in turn, or forget it."""
        if not requeue:
            self.ack(delivery_tag)
            return
        self._end(delivery_tag)
        self.give_back(delivery_tag, last=True)
        self._settle_without_loop()

    def give_back(self, delivery_tag: str, *, last: bool) -> None:
        """Put a message back, with what else is to be settled."""
        self._kept.returned.append((delivery_tag, last))

    def _end(self, delivery_tag: str) -> None:
        virtual.QoS.ack(self, delivery_tag)
        self._kept.begun.discard(delivery_tag)

    def _settle_without_loop(self) -> None:
        """Settle at once where no event loop will; not on a lost connection: the next one does."""
        connection = self.channel.connection
        if connection is not None and not cast(Poller, connection.cycle).turns:
            self.settle()

    def settle(self) -> None:
        """Forget what is acknowledged, put back what is rejected. Redis' refusal loses neither."""
        while tags := self._kept.done[:FORGOTTEN_AT_ONCE]:
            self.channel.unacked.forget(*tags)
            del self._kept.done[: len(tags)]
        while self._kept.returned:
            tag, last = self._kept.returned[0]
            try:
                self.restore_by_tag(tag, leftmost=last)
            except ResponseError:
                self.channel.unacked.probe()  # if this raises too, it is not about this message
                log.exception("message_not_put_back", delivery_tag=tag)
            self._kept.returned.popleft()

    def restore_unacked_once(self, stderr: Any = None) -> None:  # Any: as Kombu has it
        """Give back what is held when a channel is closed, but what is in work: that goes on.

        This worker's next connection gives back what this one cannot; if there is none, the
        messages come again after the visibility timeout.
        """
        self.stop_renewal()
        if self.channel.do_restore:
            for tag in _in_work().intersection(self._delivered):
                self._delivered.pop(tag)
                self._kept.begun.add(tag)
        try:
            self.settle()
            super().restore_unacked_once(stderr)
        except (RedisError, OSError) as error:
            for tag in set(self._delivered) - self._dirty:
                self.give_back(tag, last=False)
            log.warning("messages_not_given_back", messages=len(self.tags()), error=str(error))

    def connected(self) -> None:
        """Take over from the connection before, if this is not the first of this process."""
        if self._kept.connected:
            self.restore_later()
            self._renewal = self.channel.start_renewal()
        self._kept.connected = True

    def restore_later(self) -> None:
        """Restore nothing for a while."""
        self._kept.restore_later()

    def stop_renewal(self) -> None:
        """Renew nothing any more."""
        if self._renewal is not None:
            self._renewal.stop()

    def restore_by_tag(self, tag: str, client: object = None, leftmost: bool = False) -> None:
        """Give back a message that this worker holds; `leftmost` makes it the last in turn."""
        note = self.channel.unacked.note(tag)
        if note is not None:
            self.channel.put_back(tag, note, last=leftmost)

    def restore_visible(
        self, start: int = 0, num: int | None = None, interval: int | None = None
    ) -> None:
        """Restore what dead workers held. Every call does: its timer is the only throttle."""
        if _refusals.current or monotonic() < self._kept.restores_from:
            return
        asked_at = monotonic()
        overdue = self.channel.unacked.overdue(
            self.channel.visibility_timeout, num or RESTORED_AT_ONCE
        )
        if monotonic() - asked_at > SLOW_S:
            self._kept.restore_later()
            return
        self.channel.restore(overdue)
        self.channel.offer_old_junk()


class Channel(stock.Channel):
    """Takes a message in one call, while there is room for one; keeps junk for `on_junk`.

    `on_junk(queue, payload, why)` is a transport option: a function, or "module:function". It gets
    list entries that are no Celery messages, in the worker's event loop. Until it has returned, and
    not False, the entry stays in the list `<queue>.junk` and is offered again. The same entry may
    be offered more than once.

    `take_together` is another: tasks, how many of their messages are taken at once where they wait
    one behind the other, and of how many bytes in all. One is taken whatever its size.

    `go_first` is a third: tasks whose messages are put in front of all that wait.
    """

    QoS = Held
    qos: Held
    from_transport_options = (
        *stock.Channel.from_transport_options,
        *("on_junk", "take_together", "go_first"),
    )
    on_junk: OnJunk | str | None = None
    take_together: Together = ALONE
    go_first: Sequence[str] = ()

    # Kombu's own, absent from its types.
    _in_poll: Any  # the connection that owes us a reply or a word
    _in_listen: Any
    _qos: Any
    _brpop_sent_at: float
    _closing: bool
    _active_queues: list[str]
    _queue_cycle: Any
    _q_for_pri: Callable[[str, int], str]
    _flush_brpop_reauth: Callable[[], None]
    connection_errors: tuple[type[Exception], ...]

    _waiting = False  # all lists were empty: Redis says when one changes, and owes no reply
    _tracked: object = None  # the socket on which it does
    _junk_offered_at = float("-inf")
    _listens_from = float("-inf")

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as Kombu calls it
        self._consumed: dict[str, tuple[Callable[[virtual.Message], object], bool]] = {}
        self._asked: list[Source] = []
        try:
            super().__init__(*args, **kwargs)
        except ResponseError as error:  # which Kombu and Celery do not try again
            raise redis.ConnectionError(f"the broker refuses: {error}") from error
        if not self.ack_emulation:
            raise ValueError("leave ack_emulation on: without it a killed worker loses messages")

    @cached_property
    def unacked(self) -> Unacked:
        """The notes, on a client that takes keys as they are: Kombu's own may add a prefix."""
        keys = self._key(self.unacked_key), self._key(self.unacked_index_key)
        return Unacked(redis.Redis(connection_pool=self.pool), *keys)

    @cached_property
    def _shared_client(self) -> redis.Redis:
        if self.connection is None:  # closed under who publishes: Kombu opens another one then
            raise redis.ConnectionError("the channel is closed")
        return cast(redis.Redis, stock.Channel._create_client(self))  # type: ignore[attr-defined]

    def _create_client(self, asynchronous: bool = False) -> redis.Redis:
        """Return one client for all calls: Kombu makes a client a call, which takes as long again.

        The one that is read asynchronously has a connection to itself.
        """
        if asynchronous:
            return cast(redis.Redis, stock.Channel._create_client(self, True))  # type: ignore[attr-defined]
        return self._shared_client

    @cached_property
    def subclient(self) -> Any:  # Any: redis-py's PubSub, maybe Kombu's own
        """Subscribe, and wait for a second at most when reading: redis-py waits for ever."""
        client: Any = self._create_client(asynchronous=True)
        pubsub = client.pubsub()
        pubsub.parse_response = partial(pubsub.parse_response, block=False, timeout=SLOW_S)
        return pubsub

    def start_renewal(self) -> Renewal:
        """Have a thread renew what is held, on a connection of its own."""
        keys = self._key(self.unacked_key), self._key(self.unacked_index_key)
        client = redis.Redis(connection_pool=redis.ConnectionPool(**self._connparams()))
        loop = cast(Poller, self.connection.cycle).loop
        renewal = Renewal(
            loop, self.qos.tags, Unacked(client, *keys).renew, self.visibility_timeout
        )
        renewal.start()
        return renewal

    def _queue_bind(self, exchange: str, *args: Any) -> None:  # Any: as Kombu calls it
        """Bind a queue. Remote control, which is Pub/Sub, works without the table in Redis."""
        try:
            super()._queue_bind(exchange, *args)  # type: ignore[misc] # not in Kombu's types
        except ResponseError:
            if self.typeof(exchange).type != "fanout":
                raise

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:  # Any: as Kombu's
        """Put a message at the end of its queue; in front of all if its task is to go first."""
        if (message["headers"] or {}).get("task") not in self.go_first:
            super()._put(queue, message, **kwargs)
            return
        key = self._list(queue, self._get_message_priority(message))
        self.unacked.client.rpush(key, json.dumps(message))

    # --- taking --------------------------------------------------------------------------------

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[..., Any] | None,  # Any: as Kombu has it
        consumer_tag: str | None,
        **kwargs: Any,
    ) -> str:
        """Consume from a queue. Without acknowledgement, a message is forgotten once delivered."""
        assert callback is not None, "a consumer has one"
        self._consumed[queue] = callback, no_ack
        return cast(str, super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs))

    def basic_get(self, queue: str, no_ack: bool = False, **_: object) -> virtual.Message | None:
        """Take the next message of a queue now; None if there is none."""
        while taken := self.unacked.take(self._sources([queue])):
            if not taken[1:]:
                self.offer_junk(queue)  # the script has set it aside
                continue
            message = self._open(queue, *taken[1:])
            if message is None:
                continue
            if no_ack:
                self.unacked.forget(str(message.delivery_tag))
            else:
                self.qos.hold(message)
            return message
        return None

    def _sources(self, queues: Sequence[str]) -> list[Source]:
        """List what to take from: by priority, then in the order of the queues."""
        return [
            Source(queue, self._list(queue, step), self._junk(queue))
            for step in self.priority_steps
            for queue in queues
        ]

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for a message. The reply is read when it has come, by `_brpop_read`."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        connection = self.client.connection
        if self._tracked is not connection._sock:
            connection.send_command("CLIENT", "TRACKING", "ON", "NOLOOP", check_health=False)
            connection.read_response()
            self._tracked = connection._sock
        self._asked = self._sources(queues)
        self._in_poll, self._waiting = connection, False
        self._brpop_sent_at = monotonic()
        # A health check may connect anew, behind the poller's back. Asking is check enough.
        command = self.unacked.taking(self._asked, self.take_together)
        connection.send_command(*command, check_health=False)

    def _brpop_read(self, **_: object) -> bool:
        """Read the reply to `_brpop_start`, or that a list has changed. Raises Empty as Kombu's."""
        if self._waiting:
            self._waiting, self._in_poll = False, None
            self.heed()
        connection = self.client.connection
        try:
            taken = connection.read_response()
        except NoScriptError:
            self.unacked.load()
            raise Empty from None
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self.end_refusal()
        if taken is None:
            if connection._sock is self._tracked and not connection.can_read(timeout=0):
                self._waiting, self._in_poll = True, connection
            raise Empty
        crashpoint("taken")
        number, *found = taken
        queue, take = self._asked[number - 1].queue, object()
        self._queue_cycle.rotate(queue)
        if not found:
            self.offer_junk(queue)  # the script has set it aside
        self.qos.arriving.update(map(bytes_to_str, found[::2]))
        try:
            for tag, payload in zip(found[::2], found[1::2], strict=True):
                self._deliver(queue, tag, payload, take)
                self.qos.arriving.discard(bytes_to_str(tag))
        finally:
            self.qos.arriving.clear()
        return True

    def end_refusal(self) -> None:
        """Note that Redis takes commands; restore nothing for a while if it refused before."""
        if _refusals.current:
            _refusals.end()
            self.qos.restore_later()

    def heed(self) -> None:
        """Read what Redis tells without being asked, which is that a list changed. Raises Empty."""
        connection = self.client.connection
        try:
            while connection._sock is not None and connection.can_read(timeout=0):
                connection.read_response(push_request=True)
        except self.connection_errors:
            connection.disconnect()  # the poller connects again once there is room for a message
        raise Empty

    def ask_again(self) -> None:
        """Ask once a second even so: a dead connection shows, and a missed word costs no more."""
        if (
            self._waiting
            and self._in_poll
            and monotonic() - self._brpop_sent_at > self.brpop_timeout
            and self.qos.can_consume()
        ):
            self._brpop_start()

    def _deliver(self, queue: str, tag: bytes, payload: bytes, take: object) -> None:
        message = self._open(queue, tag, payload)
        if message is None:
            return
        if self._closing or queue not in self._active_queues:
            self.qos.give_back(str(message.delivery_tag), last=False)
            return
        callback, no_ack = self._consumed[queue]
        if no_ack:
            callback(message)
            self.qos.forget(str(message.delivery_tag))
            return
        try:
            _check_task(message)
        except BAD_SHAPE:
            self._set_aside(queue, tag, payload)
            return
        self.qos.hold(message, take)
        try:
            callback(message)
        except BAD_SHAPE:  # it may have cost Celery a process slot, so it ends this worker, but one
            self.qos.drop(message)
            self._set_aside(queue, tag, payload)
            raise

    def close(self) -> None:
        """Close; a message that was asked for and has come meanwhile goes back."""
        if self._qos is not None:
            self.qos.stop_renewal()
        if self._waiting:
            self._waiting, self._in_poll = False, None  # nothing is owed
        super().close()

    def drop_silent_connection(self) -> None:
        """Drop the connection that owes a reply for too long; the poller connects again."""
        connection = self._in_poll
        if not connection or self._waiting:
            return
        silent_s = monotonic() - self._brpop_sent_at
        readable = stock._socket_readable  # type: ignore[attr-defined] # absent from its types
        if silent_s > SILENCE_S and not readable(connection._sock):
            log.warning("broker_silent", seconds=round(silent_s))
            connection.disconnect()

    def stop_listening(self, error: ResponseError) -> None:
        """Go without remote control for a while: Redis refuses to subscribe."""
        if self._listens_from < 0:
            log.error("remote_control_refused", error=str(error))
        self._listens_from = monotonic() + LONGEST_PAUSE_S
        self._in_listen = None
        self.subclient.connection.disconnect()

    @property
    def listens(self) -> bool:
        """Whether to subscribe now."""
        return monotonic() > self._listens_from

    def acknowledge(self, tags: Sequence[str]) -> None:
        """Acknowledge messages."""
        for tag in tags:
            self.qos.ack(tag)

    # --- restoring -----------------------------------------------------------------------------

    def restore(self, overdue: Sequence[tuple[str, bytes]]) -> None:
        """Put back what was held longer than the visibility timeout and not renewed.

        Each message moves in one script, which moves it once, whoever else restores at the same
        time and wherever one of them dies. There is no lock.
        """
        for tag, note in overdue:
            try:
                if self.put_back(tag, note, age_s=self.visibility_timeout):
                    log.warning("message_restored", delivery_tag=tag)
            except ResponseError:
                self.unacked.probe()  # if this raises too, it is not about this message
                log.exception("message_not_restored", delivery_tag=tag)
            crashpoint("restoring")

    def put_back(self, tag: str, note: bytes, *, last: bool = False, age_s: float = -1) -> bool:
        """Move a noted message back to its list, marked as redelivered and else unchanged.

        An overdue one (`age_s`) has lost its worker, which a header says once. A note that cannot
        be read, which no worker writes, becomes junk of the queue `unacked`.
        """
        try:
            message, exchange, routing_key = json.loads(bytes_to_str(note))
            headers = message.get("headers")
            if age_s >= 0 and isinstance(headers, dict) and _counts_as_lost(message, headers):
                headers[DELIVERY_COUNT] = 1
            for place in (message.get("headers"), message["properties"].get("delivery_info")):
                if isinstance(place, dict):
                    place["redelivered"] = True
            priority = self._get_message_priority(message)
            # Kombu drops a message whose exchange leads nowhere by now.
            queues = self._lookup(exchange, routing_key) or [routing_key]
            lists = [self._list(queue, priority) for queue in queues]
            payload = json.dumps(message)
        except BAD_SHAPE:
            log.exception("note_is_junk", delivery_tag=tag)
            junk = [self._junk(self.unacked_key)]
            return self.unacked.put_back(tag, note, note, junk, last=True, age_s=age_s)
        return self.unacked.put_back(tag, note, payload, lists, last=last, age_s=age_s)

    # --- junk ----------------------------------------------------------------------------------

    def _open(self, queue: str, tag: bytes, payload: bytes) -> virtual.Message | None:
        """Make a message of the tag and bytes that were taken; None if it is junk, now seen to."""
        try:
            return self._read(payload, bytes_to_str(tag))
        except BAD_SHAPE:
            self._set_aside(queue, tag, payload)
        return None

    def _set_aside(self, queue: str, tag: bytes, payload: bytes) -> None:
        """Move what is noted, but no message, to the junk; unless it is done.

        Where Redis refuses that, the note becomes overdue, and is taken and set aside then.
        """
        try:
            note = self.unacked.note(bytes_to_str(tag))
            if note is None:
                return
            junk = [self._junk(queue)]
            self.unacked.put_back(bytes_to_str(tag), note, payload, junk, last=True)
        except ResponseError as error:
            log.warning("junk_waits", queue=queue, error=str(error))
            return
        self.offer_junk(queue)

    def _read(self, payload: bytes, tag: str) -> virtual.Message:
        """Parse a message as far as Celery trusts it. Raises one of BAD_SHAPE, which says why."""
        raw = json.loads(bytes_to_str(payload))
        _check(raw, MESSAGE)
        properties, headers = raw["properties"], raw.get("headers") or {}
        _check(properties, PROPERTIES)
        if "task" in headers:
            _check(headers, HEADERS)
            if len(headers.get("timelimit") or "12") != 2:
                raise ValueError("timelimit is no pair")
        properties["delivery_tag"] = tag  # another one if a copy of the message is in work
        return self.Message(raw, channel=self)

    def _why(self, payload: bytes) -> str:
        try:
            _check_task(self._read(payload, ""))
        except BAD_SHAPE as error:
            return f"{type(error).__name__}: {error}"
        return "Redis or Celery cannot read it; the worker's log may say more"

    def offer_junk(self, queue: str) -> None:
        """Hand junk to `on_junk`, oldest first, and remove what it kept."""
        if self.on_junk is None:
            log.error("junk_waits", queue=queue, reason="there is no on_junk")
            return
        try:
            for _ in range(JUNK_AT_ONCE):
                if not self._offer_oldest_junk(queue, self._junk(queue)):
                    return
        except ResponseError as error:
            log.warning("junk_waits", queue=queue, error=str(error))

    def _offer_oldest_junk(self, queue: str, junk: str) -> bool:
        """Return whether there was any and it was kept."""
        payload = cast("bytes | None", self.unacked.client.lindex(junk, -1))
        if payload is None:
            return False
        try:
            kept = symbol_by_name(cast(str, self.on_junk))(queue, payload, self._why(payload))
        except Exception:  # whatever it is, the worker lives on and the entry stays
            log.exception("junk_waits", queue=queue)
            return False
        if kept is False:
            return False
        self.unacked.client.lrem(junk, -1, cast(str, payload))
        return True

    def offer_old_junk(self) -> None:
        """Offer junk again that could not be kept when it came, or whose worker died."""
        if self.on_junk is not None and monotonic() - self._junk_offered_at > JUNK_EVERY_S:
            self._junk_offered_at = monotonic()
            for queue in (*self.active_queues, self.unacked_key):
                self.offer_junk(queue)

    # --- keys and connections ------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return self.global_keyprefix + name

    def _list(self, queue: str, priority: int) -> str:
        return self._key(self._q_for_pri(queue, priority))

    def _junk(self, queue: str) -> str:
        return self._key(f"{queue}.junk")

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Speak RESP3, in which Redis can tell something without being asked."""
        return {**super()._connparams(asynchronous), "protocol": 3}  # type: ignore[misc] # untyped

    def _disconnect_pools(self) -> None:
        for name in ("unacked", "_shared_client"):
            self.__dict__.pop(name, None)
        super()._disconnect_pools()  # type: ignore[misc] # not in Kombu's types


class Poller(stock.MultiChannelPoller):
    """Kombu's poller, for connections on which Redis may speak first."""

    # Kombu's own, absent from its types.
    _channels: set[Channel]
    _fd_to_chan: dict[int, tuple[Channel, str]]

    turns = False  # whether an event loop calls `on_poll_start` each time round

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()

    def on_poll_init(self, poller: object) -> None:
        """Get ready for an event loop."""
        for channel in self._channels:
            channel.qos.connected()
        with suppress(ResponseError):  # taking will say so
            super().on_poll_init(poller)
        self.turns = True

    def on_poll_start(self) -> None:
        """Settle what is done, and ask for messages where there is room; not while Redis refuses.

        What Redis refuses is no reason to end a worker, nor to connect again.
        """
        self.loop.turns()
        if _refusals.paused:
            return
        try:
            for channel in self._channels:
                channel.qos.settle()
                channel.ask_again()
            super().on_poll_start()
            self._probe_where_nothing_is_taken()
        except ResponseError as error:
            _refusals.note(error)

    def _probe_where_nothing_is_taken(self) -> None:
        """Find out whether Redis still refuses, where no reply to a take can say so."""
        if not _refusals.current:
            return
        taking = [channel for channel in self._channels if channel.active_queues]
        if taking and not any(each.qos.can_consume() or each._in_poll for each in taking):
            taking[0].unacked.probe()
            taking[0].end_refusal()

    def _register_LISTEN(self, channel: Channel) -> None:  # noqa: N802 - Kombu's
        if channel.listens:
            super()._register_LISTEN(channel)  # type: ignore[misc] # not in Kombu's types

    def on_readable(self, fileno: int) -> None:
        """Read a reply, or a word where nothing was asked. Raises Empty if it is no message."""
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if channel is not None and kind == "BRPOP" and not channel._in_poll:
            channel.heed()
        try:
            super().on_readable(fileno)
        except ResponseError as error:
            if channel is not None and kind == "LISTEN":
                channel.stop_listening(error)
            else:
                _refusals.note(error)

    def maybe_restore_messages(self) -> None:
        """Restore what dead workers held."""
        try:
            super().maybe_restore_messages()
        except ResponseError as error:
            _refusals.note(error)

    def maybe_refresh_binding_expiry(self) -> None:
        """Refresh bindings, which last for an hour, when Redis takes writes."""
        if not _refusals.current:
            super().maybe_refresh_binding_expiry()  # type: ignore[misc] # not in Kombu's types

    def maybe_check_brpop_health(self) -> None:
        """Drop connections on which a reply is owed for too long: nobody else looks."""
        for channel in self._channels:
            channel.drop_silent_connection()

    def get(self, callback: Callable[..., object], timeout: float | None = None) -> None:
        """Wait for an event; return once a second, for what has no timer without an event loop."""
        super().get(callback, timeout=1 if timeout is None else min(timeout, 1))


class Transport(stock.Transport):
    """Kombu's Redis transport with the channel above."""

    Channel = Channel

    def __init__(self, client: Any, **kwargs: Any) -> None:  # Any: as Kombu calls it
        for option, value in {"unacked_restore_interval": RESTORE_EVERY_S, **TIME_LIMITS}.items():
            client.transport_options.setdefault(option, value)
        super().__init__(client, **kwargs)
        self.cycle = Poller()
