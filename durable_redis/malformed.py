"""Malformed messages: each moves to a list of its own, until the option `on_malformed` keeps it."""

import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, cast

from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.imports import symbol_by_name
from redis.exceptions import ResponseError

from durable_redis.limits import largest_message, mark, refuse_large
from durable_redis.messages import MALFORMED, check, parse, why

if TYPE_CHECKING:
    from durable_redis.channel import Channel

OFFERED_EVERY_S = 5  # again, where `on_malformed` did not keep it
OFFERED_AT_ONCE = 10  # each call may write to a database, in the event loop

UNREAD_BY_REDIS = "Redis cannot read it: it is nested too deeply, or Celery cannot take it"

OnMalformed = Callable[[str, bytes, str], bool | None]
log = logging.getLogger(__name__)


class MalformedMessages:
    """The malformed messages of a channel's queues."""

    def __init__(self, channel: "Channel", keep: OnMalformed | str | None) -> None:
        """`keep` is the option `on_malformed`."""
        self._channel = channel
        self._keep = keep
        self._offered_at = float("-inf")

    def open(self, queue: str, tag: bytes, payload: bytes) -> virtual.Message | None:
        """Make a message of what was fetched; None if it is malformed, and set aside now."""
        try:
            message = self._parse(payload, bytes_to_str(tag))
            self._check(message)
        except MALFORMED:
            self.set_aside(queue, tag, payload)
            return None
        return message

    def _check(self, message: virtual.Message) -> None:
        """Check a message, and mark it. Raises one of MALFORMED, unless its consumer gets it."""
        try:
            check(message)
        except MALFORMED as error:
            if not self._channel.deliver_malformed:
                raise
            mark(message, error)
        message.is_checked = True  # type: ignore[attr-defined] # set here

    def set_aside(self, queue: str, tag: bytes, payload: bytes) -> None:
        """Move an unacked message to the list for malformed ones, and offer it.

        Where Redis refuses that, the entry becomes overdue, and the message is fetched once more.
        """
        store, name = self._channel.unacked, bytes_to_str(tag)
        try:
            entry = store.entry(name)
            if entry is None:
                return
            store.requeue(name, entry, payload, [self._channel.malformed_list(queue)], last=True)
        except ResponseError as error:
            log.warning("malformed_message_waits: queue %s: %s", queue, error)
            return
        self.offer(queue)

    def offer(self, queue: str) -> None:
        """Hand malformed messages to `on_malformed`, oldest first; remove those that it kept."""
        if self._keep is None:
            log.error("malformed_message_waits: queue %s: there is no on_malformed", queue)
            return
        try:
            for _ in range(OFFERED_AT_ONCE):
                if not self._offer_oldest(queue, self._channel.malformed_list(queue)):
                    return
        except ResponseError as error:
            log.warning("malformed_message_waits: queue %s: %s", queue, error)

    def offer_again(self, queues: Sequence[str]) -> None:
        """Offer, every few seconds, what nobody kept before, or what a dead worker set aside."""
        if self._keep is not None and monotonic() - self._offered_at > OFFERED_EVERY_S:
            self._offered_at = monotonic()
            for queue in queues:
                self.offer(queue)

    def _offer_oldest(self, queue: str, key: str) -> bool:
        """Return whether there was one and it was kept."""
        oldest = self._channel.unacked.oldest(key)
        if oldest is None:
            return False
        size, payload = oldest
        try:
            keep = cast(OnMalformed, symbol_by_name(cast(str, self._keep)))
            kept = keep(queue, payload, self._reason(size, payload))
        except Exception:  # whatever it is, the worker lives on and the message stays
            log.exception("malformed_message_waits: queue %s", queue)
            return False
        if kept is False:
            return False
        self._channel.unacked.remove(key, size, payload)
        return True

    def _parse(self, payload: bytes, tag: str) -> virtual.Message:
        raw = parse(payload)
        raw["properties"]["delivery_tag"] = tag  # another one if a copy of the message is in work
        message = self._channel.Message(raw, channel=self._channel)
        refuse_large(message)
        return message

    def _reason(self, size: int, payload: bytes) -> str:
        if size > len(payload):
            return f"the beginning of {size} bytes; at most {largest_message()} are read"
        try:
            check(self._parse(payload, ""))
        except MALFORMED as error:
            return why(error)
        return UNREAD_BY_REDIS
