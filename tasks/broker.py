"""A Redis broker that loses nothing: Kombu's, but for how messages are taken and restored.

Kombu pops a message with BRPOP and notes it as unacknowledged in a second call; a worker killed in
between loses it. Here one script pops and notes. Keys, notes and messages are Kombu's own, so
producers and stock workers may share the queues.

A script cannot block. A worker that finds its lists empty has Redis track them (CLIENT TRACKING,
Redis 6 or later) and is told on the same connection when one changes: nothing is lost by waiting,
and an idle worker asks once a second.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from queue import Empty
from time import monotonic
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
from redis.exceptions import NoScriptError

from core.crash import crashpoint

TRANSPORTS = {  # by the scheme of a URL; `redis+socket` is `redis` by then
    "redis": f"{__name__}:Transport",
    "rediss": f"{__name__}:Transport",
    "amqp": "tasks.amqp:Transport",
    "pyamqp": "tasks.amqp:Transport",
    "amqps": "tasks.amqp:SSLTransport",
}
LUA = Path(__file__).parent / "lua"
RESTORE_EVERY_S = 1  # one call; Kombu's default of 100 s would be most of a redelivery
RESTORED_AT_ONCE = 1000  # about 0.3 s of the event loop
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
DELIVERY_COUNT = "x-delivery-count"  # deliveries that led to nothing, as RabbitMQ counts them
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


def install() -> None:
    """Make every Redis and RabbitMQ broker of this process ours.

    Connections that only publish behave as before.
    """
    for scheme, ours in TRANSPORTS.items():
        transport.TRANSPORT_ALIASES[scheme] = ours
        transport._transport_cache.pop(scheme, None)  # type: ignore[attr-defined] # not in its types


def lost_workers(headers: Any) -> int:  # Any: a mapping, or a task's request, which has `get` too
    """Count the workers that died with this message, as far as the broker knows."""
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


class Held(stock.QoS):
    """What this worker holds. The notes are written by the script that takes.

    Messages that were taken together count as one against the prefetch window.
    """

    channel: "Channel"

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as Kombu calls it
        self._done: list[str] = []  # acknowledged, to be forgotten together
        super().__init__(*args, **kwargs)

    def can_consume(self) -> bool:
        """Tell whether there is room for another take."""
        held = cast("dict[str, Any]", self._delivered)
        dirty = cast("set[str]", self._dirty)
        taken = {message.take for tag, message in held.items() if tag not in dirty}
        return not self.prefetch_count or len(taken) < self.prefetch_count

    def hold(self, message: virtual.Message, take: object = None) -> None:
        """Count a message, which is noted, against the prefetch window, once a `take`."""
        message.take = take or message  # type: ignore[attr-defined] # it is noted here
        virtual.QoS.append(self, message, str(message.delivery_tag))

    def drop(self, message: virtual.Message) -> None:
        """Count it no more."""
        virtual.QoS.ack(self, str(message.delivery_tag))

    def ack(self, delivery_tag: str) -> None:
        """Forget the message, by one call for all of a turn of the worker's event loop."""
        virtual.QoS.ack(self, delivery_tag)
        self._done.append(delivery_tag)
        if not cast(Poller, self.channel.connection.cycle).turns:
            self.forget_done()

    def forget_done(self) -> None:
        """Forget what is acknowledged."""
        tags, self._done = self._done, []
        if tags:
            self.channel.unacked.forget(*tags)

    def restore_unacked_once(self, stderr: Any = None) -> None:  # Any: as Kombu has it
        """Give back what is held when a channel is closed."""
        self.forget_done()
        super().restore_unacked_once(stderr)

    def restore_by_tag(self, tag: str, client: object = None, leftmost: bool = False) -> None:
        """Give back a message that this worker holds; `leftmost` makes it the last in turn."""
        note = self.channel.unacked.note(tag)
        if note is not None:
            self.channel.put_back(tag, note, last=leftmost)

    def restore_visible(
        self, start: int = 0, num: int | None = None, interval: int | None = None
    ) -> None:
        """Restore what dead workers held. Every call does: its timer is the only throttle."""
        self.channel.restore_overdue(num or RESTORED_AT_ONCE)
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
    _brpop_sent_at: float
    _closing: bool
    _active_queues: list[str]
    _queue_cycle: Any
    _q_for_pri: Callable[[str, int], str]
    _flush_brpop_reauth: Callable[[], None]
    connection_errors: tuple[type[Exception], ...]

    _waiting = False  # all lists were empty: Redis tells when one changes
    _tracked: object = None  # the socket on which it does
    _junk_offered_at = float("-inf")

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as Kombu calls it
        self._consumed: dict[str, tuple[Callable[[virtual.Message], object], bool]] = {}
        self._asked: list[Source] = []
        super().__init__(*args, **kwargs)
        if not self.ack_emulation:
            raise ValueError("leave ack_emulation on: without it a killed worker loses messages")

    @cached_property
    def unacked(self) -> Unacked:
        """The notes, on a client that takes keys as they are: Kombu's own may add a prefix."""
        keys = self._key(self.unacked_key), self._key(self.unacked_index_key)
        return Unacked(redis.Redis(connection_pool=self.pool), *keys)

    @cached_property
    def _shared_client(self) -> redis.Redis:
        return cast(redis.Redis, stock.Channel._create_client(self))  # type: ignore[attr-defined]

    def _create_client(self, asynchronous: bool = False) -> redis.Redis:
        """Return one client for all calls: Kombu makes a client a call, which takes as long again.

        The one that is read asynchronously has a connection to itself.
        """
        if asynchronous:
            return cast(redis.Redis, stock.Channel._create_client(self, True))  # type: ignore[attr-defined]
        return self._shared_client

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
        for tag, payload in zip(found[::2], found[1::2], strict=True):
            self._deliver(queue, tag, payload, take)
        return True

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
            self.qos.restore_by_tag(str(message.delivery_tag))
            return
        callback, no_ack = self._consumed[queue]
        if no_ack:
            callback(message)
            self.unacked.forget(str(message.delivery_tag))
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
        if self._waiting:
            self._waiting, self._in_poll = False, None  # nothing is owed
        super().close()

    def acknowledge(self, tags: Sequence[str]) -> None:
        """Acknowledge messages."""
        for tag in tags:
            self.qos.ack(tag)

    # --- restoring -----------------------------------------------------------------------------

    def restore_overdue(self, limit: int) -> None:
        """Put back what was taken longer ago than the visibility timeout.

        Each message moves in one script, which moves it once, whoever else restores at the same
        time and wherever one of them dies. There is no lock.
        """
        for tag, note in self.unacked.overdue(self.visibility_timeout, limit):
            if self.put_back(tag, note, age_s=self.visibility_timeout):
                log.warning("message_restored", delivery_tag=tag)
            crashpoint("restoring")

    def put_back(self, tag: str, note: bytes, *, last: bool = False, age_s: float = -1) -> bool:
        """Move a noted message back to its list, marked as redelivered and else unchanged.

        An overdue one (`age_s`) has lost its worker, which is counted in the header that quorum
        queues of RabbitMQ have for it. A note that cannot be read, which no worker writes, becomes
        junk of the queue `unacked`.
        """
        try:
            message, exchange, routing_key = json.loads(bytes_to_str(note))
            if age_s >= 0 and isinstance(headers := message.get("headers"), dict):
                headers[DELIVERY_COUNT] = lost_workers(headers) + 1
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
        """Move what is noted, but no message, to the junk; unless it is done."""
        note = self.unacked.note(bytes_to_str(tag))
        if note is not None:
            junk = [self._junk(queue)]
            self.unacked.put_back(bytes_to_str(tag), note, payload, junk, last=True)
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
        junk = self._junk(queue)
        for _ in range(JUNK_AT_ONCE):
            payload = cast("bytes | None", self.unacked.client.lindex(junk, -1))
            if payload is None:
                return
            try:
                kept = symbol_by_name(cast(str, self.on_junk))(queue, payload, self._why(payload))
            except Exception:  # whatever it is, the worker lives on and the entry stays
                log.exception("junk_waits", queue=queue)
                return
            if kept is False:
                return
            self.unacked.client.lrem(junk, -1, cast(str, payload))

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

    def on_poll_init(self, poller: object) -> None:
        """Get ready for an event loop."""
        super().on_poll_init(poller)
        self.turns = True

    def on_poll_start(self) -> None:
        """Forget what is done, and ask for messages where there is room for one."""
        for channel in self._channels:
            channel.qos.forget_done()
            channel.ask_again()
        super().on_poll_start()

    def on_readable(self, fileno: int) -> None:
        """Read a reply, or a word where nothing was asked. Raises Empty if it is no message."""
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if channel is not None and kind == "BRPOP" and not channel._in_poll:
            channel.heed()
        super().on_readable(fileno)

    def get(self, callback: Callable[..., object], timeout: float | None = None) -> None:
        """Wait for an event; return once a second, for what has no timer without an event loop."""
        super().get(callback, timeout=1 if timeout is None else min(timeout, 1))


class Transport(stock.Transport):
    """Kombu's Redis transport with the channel above."""

    Channel = Channel

    def __init__(self, client: Any, **kwargs: Any) -> None:  # Any: as Kombu calls it
        client.transport_options.setdefault("unacked_restore_interval", RESTORE_EVERY_S)
        super().__init__(client, **kwargs)
        self.cycle = Poller()
