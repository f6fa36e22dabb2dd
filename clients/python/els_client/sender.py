"""A sender that loses nothing while the broker is away."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self
from urllib.parse import urlsplit

from amqp.exceptions import AMQPError
from celery import Celery
from celery.states import PENDING, READY_STATES, SUCCESS
from kombu import Exchange, Queue
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from els_client.errors import BrokerAway, SpoolUnusable, TaskFailed
from els_client.spool import Entry, Spool, Spooled
from els_client.upstream import Message, Outcome, Sent, Upstream, checked

AWAY = (OSError, AMQPError, KombuError, RedisError)  # gone, or it refuses: full, no right, …
ANSWER_S = 5  # for the broker to take a message
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0  # between two tries to drain the spool, doubled each time
POLL_S = 0.05  # for a result: to subscribe costs Redis more, and hangs where it goes away
AT_ONCE = 20  # messages: as many may come twice, with their ids, if the process is killed
GIB = 1024**3
SCHEMES = ("redis://", "rediss://", "sentinel://", "amqp://", "amqps://", "pyamqp://")
ONCE = {"max_retries": 0, "interval_start": 0}  # to connect: whoever drains tries again
REDIS_OPTIONS = {
    **ONCE,
    "socket_timeout": ANSWER_S,
    "socket_connect_timeout": ANSWER_S,
    "socket_keepalive": True,
}
AMQP_OPTIONS = {
    **ONCE,
    "confirm_publish": True,
    "read_timeout": ANSWER_S,
    "write_timeout": ANSWER_S,
}


def _check_port(url: str) -> None:
    try:
        urlsplit(url).port  # noqa: B018 - read for its ValueError
    except ValueError as error:
        raise ValueError(
            "the port of the broker's URL must be a number up to 65535;"
            " in a password write @ / : # ? % as %40 %2F %3A %23 %3F %25"
        ) from error


class Sender(Upstream):
    """Sends events to the service. A context manager; safe in several threads and after a fork.

    With a `spool` every method returns when the broker has the message, or the disk. While the
    broker is away, messages of this process go to the spool in their order, and a thread sends
    them in this order when it is back; so does the next process that opens the spool.
    """

    def __init__(
        self,
        broker: str | Celery,
        *,
        spool: str | Path | None = None,
        queue: str = "els",
        results: str | bool = False,
        spool_messages: int = 100_000,
        spool_bytes: int = GIB,
    ) -> None:
        """Take the URL of the broker, or an app of yours that is set up for it.

        `results`: the URL of the service's Redis, or True for the result backend of your app; each
        message then asks for its result, which `Sent.outcome` waits for. Raises SpoolUnusable,
        and ValueError for a URL of another kind or whose port is none, or True where the app has no
        result backend.
        """
        self._broker, self._queue, self._results = broker, queue, results
        self._spool = Spool(Path(spool).absolute(), spool_messages, spool_bytes) if spool else None
        self._last_error: str | None = None
        self._begin()
        if self._spool and not self._spool.is_empty():
            self._drain_in_background()

    def send(self, task: str, event: Mapping[str, Any]) -> Sent:  # Any: JSON
        """Send an event that is complete.

        Raises InvalidEvent; SpoolFull and SpoolUnusable, or without a spool BrokerAway: the message
        is then not sent.
        """
        message = checked(task, event)
        self._begin_again_after_a_fork()
        if self._spool is None:
            self._publish_or_raise(message)
            return self._sent(message, spooled=False)
        if self._spool.is_empty() and self._publish(message):
            return self._sent(message, spooled=False)
        waiting = self._spool.append(message)
        self._drain_in_background()
        return self._sent(waiting, spooled=True)

    def spooled(self) -> Spooled:
        """Say how much waits on disk, since when, and what the broker said last."""
        if not self._spool:
            return Spooled(0, 0, None, self._last_error)
        size = self._spool.size()
        return Spooled(size.messages, size.bytes, size.oldest_s, self._last_error)

    def flush(self, timeout_s: float = 30) -> Spooled:
        """Wait until nothing waits on disk; after `timeout_s` return what still does.

        Raises SpoolUnusable.
        """
        self._begin_again_after_a_fork()
        deadline = time.monotonic() + timeout_s
        while self._spool and not self._drain() and time.monotonic() < deadline:
            self._stop.wait(FIRST_WAIT_S)
        return self.spooled()

    def close(self) -> None:
        """End the thread and the connections. What waits on disk stays there."""
        if self._pid != os.getpid():
            return
        self._stop.set()
        if self._thread:
            self._thread.join()
        for app in (self._app, self._reader):
            if app is not self._broker:
                app.close()
        if self._spool:
            self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the broker ---------------------------------------------------------------------------

    def _begin(self) -> None:
        """Make what a process must not share with its parent."""
        self._pid, self._stop = os.getpid(), Event()
        self._thread: Thread | None = None
        self._to_remove: list[Entry] = []  # from the spool: the broker has them
        self._app = self._broker if isinstance(self._broker, Celery) else self._own_app()
        self._reader = (
            Celery(backend=self._results, set_as_current=False)
            if isinstance(self._results, str)
            else self._app
        )
        if self._results is True and not self._app.conf.result_backend:
            raise ValueError("there is no result backend: give `results` the service's Redis")
        amqp = str(self._app.conf.broker_url).startswith(("amqp", "pyamqp"))
        self._target = Queue(  # as the workers declare it
            self._queue,
            Exchange(self._queue, type="topic" if amqp else "direct"),
            routing_key=self._queue,
            queue_arguments={"x-queue-type": "quorum"} if amqp else None,
        )

    def _begin_again_after_a_fork(self) -> None:
        if self._pid != os.getpid():
            self._begin()

    def _own_app(self) -> Celery:
        url = str(self._broker)
        if not url.startswith(SCHEMES):
            raise ValueError(
                f"the URL of the broker must begin with one of {', '.join(SCHEMES)}: it has"
                f" {url.partition(':')[0]!r}"
            )
        for each in url.split(";"):
            _check_port(each)
        app = Celery("els-client", broker=url, set_as_current=False)
        app.conf.update(
            broker_connection_timeout=ANSWER_S,
            broker_transport_options=AMQP_OPTIONS if url.startswith("amqp") else REDIS_OPTIONS,
            task_serializer="json",
            result_serializer="json",
            accept_content=["json"],
        )
        return app

    def _publish_or_raise(self, message: Message) -> None:
        try:
            self._app.send_task(
                message.task,
                kwargs={"event": message.event},
                queue=self._target,  # type: ignore[arg-type] # Celery takes a Queue too
                task_id=message.task_id,
                ignore_result=not self._results,
                retry=False,
                argsrepr="()",
                kwargsrepr="{…}",  # monitors show it, and an event may hold names
            )
        except AWAY as error:
            self._last_error = f"{type(error).__name__}: {error}"
            raise BrokerAway(f"the broker does not take messages: {self._last_error}") from error
        self._last_error = None

    def _publish(self, message: Message) -> bool:
        try:
            self._publish_or_raise(message)
        except BrokerAway:
            return False
        return True

    def _sent(self, message: Message, *, spooled: bool) -> Sent:
        return Sent(message, spooled, lambda timeout_s: self._outcome(message, timeout_s))

    def _outcome(self, message: Message, timeout_s: float) -> Outcome:
        if not self._results:
            raise ValueError("no results are asked for: give the Sender `results`")
        deadline = time.monotonic() + timeout_s
        while (meta := self._result(message.task_id))["status"] not in READY_STATES:
            if time.monotonic() > deadline:
                why = f": {meta['why']}" if "why" in meta else ""
                raise TimeoutError(f"{message.task}: no outcome within {timeout_s} s{why}")
            time.sleep(POLL_S)
        if meta["status"] != SUCCESS:
            raise TaskFailed(f"{message.task}: {meta['result']}; the service keeps the message")
        outcome: Outcome = meta["result"]
        return outcome

    def _result(self, task_id: str) -> dict[str, Any]:  # Any: of Celery's
        try:
            found: dict[str, Any] = self._reader.backend.get_task_meta(task_id)
        except AWAY as error:
            return {"status": PENDING, "why": f"the result backend does not answer: {error}"}
        return found

    # --- the spool ----------------------------------------------------------------------------

    def _drain_in_background(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = Thread(target=self._keep_draining, name="els-spool", daemon=True)
            self._thread.start()

    def _keep_draining(self) -> None:
        wait_s = FIRST_WAIT_S
        while not self._drained():
            if self._stop.wait(wait_s):
                return
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _drained(self) -> bool:
        """Do so where nobody hears an error: of a disk that is full, or somebody locks the file."""
        try:
            return self._drain()
        except SpoolUnusable as error:
            self._last_error = str(error)
            return False

    def _drain(self) -> bool:
        """Send what waits, in order, until the broker refuses; tell whether nothing is left."""
        assert self._spool
        with self._spool.draining() as ours:
            if ours:
                self._remove_sent()
            while ours and not self._stop.is_set() and (entries := self._spool.first(AT_ONCE)):
                for entry in entries:
                    if not self._publish(entry.message):
                        break
                    self._to_remove.append(entry)
                all_sent = len(self._to_remove) == len(entries)
                self._remove_sent()
                if not all_sent:
                    return False
        return self._spool.is_empty()

    def _remove_sent(self) -> None:
        """Remove what the broker has. On a disk that is full it stays, and is not sent again."""
        assert self._spool
        if self._to_remove:
            self._spool.remove(self._to_remove)
            self._to_remove = []
