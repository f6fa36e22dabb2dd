"""A thread that renews the messages which a worker holds, so that they do not become overdue.

A worker may hold a message for hours: until its `eta`, behind others, or in a task that takes long.
The event loop cannot renew it, because `--pool solo` runs tasks in the main thread. So for every
pool a thread with a connection of its own does. A killed or frozen process renews nothing, and its
messages come back after the visibility timeout.

A main loop that hangs must not hold messages for ever. The thread renews only if the loop turned
lately, or runs a task: a long task is no hang.
"""

import logging
import sys
from collections.abc import Callable, Collection
from threading import Event, Thread, get_ident
from time import monotonic

from redis.exceptions import RedisError

HANGS_AFTER_S = 60.0  # no honest turn is as long: every wait in one has a limit of seconds
RENEWED_EVERY_S = 5.0  # at least; and several times in a visibility timeout

log = logging.getLogger(__name__)


class MainLoop:
    """The main loop of a worker, as another thread sees it."""

    def __init__(self) -> None:
        self._thread: int | None = None
        self._turned_at = float("-inf")

    def turned(self) -> None:
        """Note a turn; the loop's own thread calls this."""
        self._thread, self._turned_at = get_ident(), monotonic()

    @property
    def alive(self) -> bool:
        """Whether the loop turned lately, or runs a task."""
        return monotonic() - self._turned_at < HANGS_AFTER_S or self._runs_a_task()

    def _runs_a_task(self) -> bool:
        """Search the stack for the function in which Celery's threads and `solo` run a task."""
        celery = sys.modules.get("celery.concurrency.base")
        frame = sys._current_frames().get(self._thread) if self._thread and celery else None
        while frame is not None:
            if celery is not None and frame.f_code is celery.apply_target.__code__:
                return True
            frame = frame.f_back
        return False


class Renewal(Thread):
    """Calls `renew` with the tags of all held messages, several times in a visibility timeout."""

    def __init__(
        self,
        loop: MainLoop,
        held_tags: Callable[[], Collection[str]],
        renew: Callable[[Collection[str]], object],
        visibility_timeout_s: float,
    ) -> None:
        super().__init__(name="renewal", daemon=True)
        self._loop = loop
        self._held_tags = held_tags
        self._renew = renew
        self._every_s = min(visibility_timeout_s / 4, RENEWED_EVERY_S)
        self._stopped = Event()
        self._failed = False

    def run(self) -> None:
        while not self._stopped.wait(self._every_s):
            if self._loop.alive and (tags := self._held_tags()):
                self._try(tags)

    def stop(self) -> None:
        """Renew no more. Does not wait for a call that is under way."""
        self._stopped.set()

    def _try(self, tags: Collection[str]) -> None:
        try:
            self._renew(tags)
        except (RedisError, OSError) as error:
            if not self._failed:
                log.warning("messages_not_renewed: %d: %s", len(tags), error)
            self._failed = True
        else:
            self._failed = False
