"""What a worker holds, acknowledges and gives back."""

import logging
import sys
from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from kombu.transport import redis as stock
from kombu.transport import virtual
from redis.exceptions import RedisError, ResponseError

from durable_redis.messages import tag_name
from durable_redis.refusals import REFUSALS
from durable_redis.renewal import Renewal

if TYPE_CHECKING:
    from durable_redis.channel import Channel

RESTORED_AT_ONCE = 1000  # about 0.3 s of the event loop
NOTHING_RESTORED_S = 6  # after an outage, while living workers renew: each does in 5 s
SLOW_S = 1  # a reply that took longer: Redis stood still
# Fetches from urgent queues for each of the others. A job of contents may lead to three urgent
# ones; with fewer places they would pile up behind the contents.
URGENT = 4
DELETED_AT_ONCE = 1000  # Lua unpacks some 8 000 values at most

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Fetch:
    """The messages of one call; they count as one against the prefetch window."""

    is_urgent: bool


@dataclass
class Outstanding:
    """What a worker still has to tell a broker, on whichever connection it has by then."""

    acknowledged: list[str] = field(default_factory=list)  # tags, to be deleted together
    returned: deque[tuple[str, bool]] = field(default_factory=deque)  # tags; whether as the last
    in_work: set[str] = field(default_factory=set)  # tags, since before the connection was lost
    was_connected: bool = False
    restores_from: float = float("-inf")  # on the monotonic clock

    def restore_later(self) -> None:
        """Restore nothing for a while: in an outage, nobody could renew what he held."""
        self.restores_from = monotonic() + NOTHING_RESTORED_S


_outstanding: defaultdict[str, Outstanding] = defaultdict(Outstanding)  # by a broker's URL and key


def _tags_in_work() -> set[str]:
    """List the messages that this worker's pool carries out; none if the worker stops."""
    worker = sys.modules.get("celery.worker.state")
    if worker is None or worker.should_stop is not None or worker.should_terminate is not None:
        return set()
    return {str(request.message.delivery_tag) for request in tuple(worker.active_requests)}


class QoS(stock.QoS):
    """What this worker holds. The script that fetches a message writes its unacked entry.

    The messages of one fetch count as one against the prefetch window.
    """

    channel: "Channel"
    _delivered: Any  # Kombu's own: tag to message; None in its types until it is set
    _dirty: set[str]

    def __init__(self, channel: "Channel", prefetch_count: int = 0) -> None:
        self._outstanding = _outstanding[f"{channel.broker} {channel.unacked_keys[0]}"]
        self._renewal: Renewal | None = None
        self.arriving: set[str] = set()  # fetched, not delivered yet
        self._changes = count()  # of what is held; a thread may end a message
        self._changed = next(self._changes)
        self._room: tuple[object, set[bool]] = (None, set())  # as of when, and which windows
        super().__init__(channel, prefetch_count)

    def can_consume(self) -> bool:
        """Tell whether there is room for another fetch."""
        return bool(self.channel.queues_with_room())

    def windows_with_room(self) -> set[bool]:
        """Tell which prefetch windows have room: that of urgent queues (True), that of others.

        Kombu asks several times a turn of the event loop, so this counts only what has changed.
        """
        now = self._changed, self.prefetch_count
        if self._room[0] != now:
            self._room = now, self._windows_with_room(self.prefetch_count)
        return self._room[1]

    def _windows_with_room(self, limit: int) -> set[bool]:
        dirty = self._dirty
        held = {message.fetch for tag, message in self._delivered.items() if tag not in dirty}
        urgent = sum(fetch.is_urgent for fetch in held)
        counts = {True: urgent / URGENT, False: len(held) - urgent}
        return {window for window, number in counts.items() if not limit or number < limit}

    def track(self, message: virtual.Message, fetch: Fetch) -> None:
        """Count a message against the prefetch window, once for each `fetch`."""
        message.fetch = fetch  # type: ignore[attr-defined] # set here
        virtual.QoS.append(self, message, str(message.delivery_tag))
        self._changed = next(self._changes)
        if self._renewal is None:
            self._renewal = self.channel.start_renewal()

    def untrack(self, message: virtual.Message) -> None:
        """Count it no more."""
        self._end(str(message.delivery_tag))

    def held_tags(self) -> set[str]:
        """List what is held, from any thread. An acknowledged message counts until Redis knows."""
        held = set(self._delivered) - set(self._dirty)  # each a single step of the interpreter
        returned = [tag for tag, _ in tuple(self._outstanding.returned)]
        kept = self._outstanding
        return held.union(self.arriving, kept.acknowledged, returned, kept.in_work)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, in one call with all others of a turn of the event loop."""
        self._end(delivery_tag)
        self.delete(delivery_tag)

    def delete(self, delivery_tag: str) -> None:
        """Acknowledge a message that may not be tracked."""
        self._outstanding.acknowledged.append(delivery_tag)
        self._flush_without_loop()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put the message back as the last in turn, or acknowledge it."""
        if not requeue:
            self.ack(delivery_tag)
            return
        self._end(delivery_tag)
        self.give_back(delivery_tag, last=True)
        self._flush_without_loop()

    def give_back(self, delivery_tag: str, *, last: bool) -> None:
        """Put a message back at the next flush."""
        self._outstanding.returned.append((delivery_tag, last))

    def _end(self, delivery_tag: str) -> None:
        virtual.QoS.ack(self, delivery_tag)
        self._changed = next(self._changes)
        self._outstanding.in_work.discard(delivery_tag)

    def _flush_without_loop(self) -> None:
        """Flush at once where no event loop will; but leave a lost connection to the next one."""
        connection = self.channel.connection
        if connection is not None and not cast(Any, connection).cycle.in_event_loop:
            self.flush()

    def flush(self) -> None:
        """Delete what is acknowledged, put back what is returned. A refusal loses neither."""
        kept = self._outstanding
        while tags := kept.acknowledged[:DELETED_AT_ONCE]:
            self.channel.unacked.delete(*tags)
            del kept.acknowledged[: len(tags)]
        while kept.returned:
            tag, last = kept.returned[0]
            try:
                self.restore_by_tag(tag, leftmost=last)
            except ResponseError:
                self.channel.unacked.probe()  # if this raises too, it is not about this message
                log.exception("message_not_put_back: %s", tag_name(tag))
            kept.returned.popleft()

    def connected(self) -> None:
        """Take over from the connection before, if this is not the first of this process."""
        if self._outstanding.was_connected:
            self.restore_later()
            self._renewal = self.channel.start_renewal()
        self._outstanding.was_connected = True

    def stop_renewal(self) -> None:
        """Renew nothing any more."""
        if self._renewal is not None:
            self._renewal.stop()

    # --- restoring -----------------------------------------------------------------------------

    def restore_unacked_once(self, stderr: Any = None) -> None:  # Any: as Kombu has it
        """Give back what is held when a channel closes, except what is in work: that goes on.

        This worker's next connection gives back what this one cannot. If there is none, the
        messages come back after the visibility timeout.
        """
        self.stop_renewal()
        if self.channel.do_restore:
            for tag in _tags_in_work().intersection(self._delivered):
                self._delivered.pop(tag)
                self._outstanding.in_work.add(tag)
        try:
            self.flush()
            super().restore_unacked_once(stderr)
        except (RedisError, OSError) as error:
            for tag in set(self._delivered) - self._dirty:
                self.give_back(tag, last=False)
            log.warning("messages_not_given_back: %d: %s", len(self.held_tags()), error)

    def restore_unacked(self) -> Any:  # type: ignore[override] # Any: a list; types say None
        """Give back what is held. Kombu would write what it cannot give back to a file in /tmp."""
        failed = super().restore_unacked()
        if failed:
            log.warning("messages_not_given_back: %d: %s", len(failed), failed[0][0])
        return []

    def restore_by_tag(self, tag: str, client: object = None, leftmost: bool = False) -> None:
        """Give back a message that this worker holds; `leftmost` makes it the last in turn."""
        entry = self.channel.unacked.entry(tag)
        if entry is not None:
            self.channel.requeue(tag, entry, last=leftmost)

    def restore_later(self) -> None:
        """Restore nothing for a while."""
        self._outstanding.restore_later()

    def restore_visible(
        self, start: int = 0, num: int | None = None, interval: int | None = None
    ) -> None:
        """Restore what dead workers held. Each call does: its timer is the only throttle."""
        if REFUSALS.current or monotonic() < self._outstanding.restores_from:
            return
        timeout_s = self.channel.visibility_timeout
        asked_at = monotonic()
        overdue = self.channel.unacked.overdue(timeout_s, num or RESTORED_AT_ONCE)
        if monotonic() - asked_at > SLOW_S:
            self.restore_later()
            return
        for tag, entry in overdue:
            self._restore(tag, entry, timeout_s)
        self.channel.malformed.offer_again((*self.channel.active_queues, self.channel.unacked_key))

    def _restore(self, tag: str, entry: bytes, timeout_s: float) -> None:
        """Put back an overdue message, in one script, which moves it once.

        So there is no lock: others may restore at the same time, and each may die anywhere.
        """
        try:
            if self.channel.requeue(tag, entry, age_s=timeout_s):
                log.warning("message_restored: %s", tag_name(tag))
        except ResponseError:
            self.channel.unacked.probe()  # if this raises too, it is not about this message
            log.exception("message_not_restored: %s", tag_name(tag))
        self.channel.crashpoint("restoring")
