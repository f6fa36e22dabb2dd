"""What a message may ask for: that its task runs, now or later, and that its result is stored.

Celery does more for a sender: it calls tasks by name on any queue once a task has ended (`link`,
`chain`, `chord`), and takes any header for a part of its own request. So whoever may write to one
queue could write to all, with the rights of a worker. Here a message from outside calls nothing,
and a message of our own tasks only what `app.conf.links` names.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from celery import Celery
from kombu.utils.json import dumps
from structlog.contextvars import clear_contextvars

from core.catalogue import unknown_task
from core.errors import NotExecuted
from core.nesting import is_deeper
from durable_redis import DELIVERY_COUNT, BodyTooLarge, Misshapen, check_call, check_headers
from tasks.worker.request import QuietRequest

MOST_RETRIES = 1000  # of ours: four hours; a sender may claim any number
DEEPEST = 100  # levels of a body
TEXTS = ("root_id", "parent_id")  # those of a trace through tasks; ours go on with them
LONGEST = 255
LONGEST_VALUE = 512  # of any other header that Celery gets; a `tracestate` may have so many
KEPT = frozenset(
    {
        *("task", "id", "eta", "expires", "retries", "ignore_result", *TEXTS),
        *("traceparent", "tracestate", "redelivered", DELIVERY_COUNT),
    }
)
PROPERTIES = ("correlation_id", "priority")
INFO = ("consumer_tag", "delivery_tag", "exchange", "redelivered", "routing_key")
CHORDS = frozenset({"group", "group_index"})
NAMED = ("group", "shadow", "stamped_headers")  # of those that are dropped, in the log
PARTS = frozenset({"callbacks", "errbacks", "chain", "chord"})
SIGNED = frozenset({"task", "args", "kwargs", "options", "subtask_type", "immutable", "chord_size"})
OPTIONS = frozenset({"task_id", "argsrepr", "kwargsrepr", "link_error", "root_id", "parent_id"})

Json = dict[str, Any]  # Any: JSON


class UnknownTask(NotExecuted):
    """A sender calls a task that senders do not have."""

    code = "UNKNOWN_TASK"


log = structlog.get_logger(__name__)
ignored: tuple[list[str], float] | None = None  # further tasks that a message asked for, and when


class Screen:
    """Screens the messages of a worker. On the hot path: 6 µs a message."""

    def __init__(self, app: Celery) -> None:
        self._app, self._tasks = app, app.tasks
        self._own = KEPT | CHORDS | frozenset(app.conf.own_headers)

    def check(self, message: Any) -> None:  # Any: Kombu's message, whose types are wrong
        """Check a message that calls a task, and drop what else it asks for.

        Raises one of MALFORMED, DecodeError, or UnknownTask.
        """
        global ignored  # noqa: PLW0603 - of the process
        is_checked = getattr(message, "is_checked", False)  # by the Redis transport
        if not is_checked or "task" not in message.headers:
            check_headers(message.headers)
        task = message.headers["task"]
        if task not in self._tasks:
            return
        if message.content_type != "application/json":
            raise Misshapen("the content type: must be application/json")
        if not is_checked:
            check_call(message)
        args, kwargs, embed = message.decode()
        if "self" in kwargs:  # Celery calls the task with one of its own: a TypeError, for ever
            raise Misshapen("the body: must have no argument self")
        _check_depth(message)
        outside = task in QuietRequest.upstream
        if not outside and not _is_ours(self._tasks[task], args, kwargs):
            raise UnknownTask(unknown_task(task))
        dropped = _drop_headers(message, KEPT if outside else self._own)
        message.properties = _plain_ones(message.properties, PROPERTIES)
        message.delivery_info = _plain_ones(message.delivery_info, INFO)
        if embed and (any(embed.values()) or not embed.keys() <= PARTS):
            kept = {} if outside else _links(self._app, embed)
            if more := sorted(part for part in PARTS if embed.get(part) and part not in kept):
                ignored = more, time.monotonic()
            dropped += more
            if kept != embed:
                message._decoded_cache = [args, kwargs, kept]
                message.body = dumps(message.payload).encode()
        if dropped:
            clear_contextvars()  # a pool without processes executes tasks here
            log.warning(
                "asks_for_more_than_its_task",
                task=task,
                task_id=message.headers["id"],
                parts=dropped,
            )


def _is_ours(task: Any, args: Any, kwargs: Any) -> bool:  # Any: Celery's task, JSON
    """Say whether workers or beat may have sent this call; they use no task of Celery's own."""
    if task.name.startswith("celery.") or "event" in kwargs:
        return False
    try:
        task.__header__(*args, **kwargs)
    except TypeError:
        return False
    return True


def _check_depth(message: Any) -> None:  # Any: as above
    """Refuse a body that Python can parse, but not hand to a process: Celery would lose one."""
    body = message.body  # text where py-amqp has decoded it
    brackets = "[{" if isinstance(body, str) else (b"[", b"{")
    if sum(map(body.count, brackets)) <= DEEPEST:
        return
    if is_deeper(message.payload, DEEPEST):
        raise BodyTooLarge(f"the body has more than {DEEPEST} levels, one in the other")


def _drop_headers(message: Any, kept: frozenset[str]) -> list[str]:  # Any: as above
    given = message.headers
    headers = message.headers = _plain_ones(given, kept)
    for name in TEXTS:
        if not _is_short(headers.get(name)):
            headers[name] = None
    retries = headers.get("retries") or 0
    if not 0 <= retries <= MOST_RETRIES:
        retries = MOST_RETRIES if retries > 0 else 0
    headers["retries"] = retries
    if type(headers.get("ignore_result")) is not bool:
        headers["ignore_result"] = None
    return [name for name in NAMED if given.get(name) and name not in kept]


def _plain_ones(given: Mapping[str, Any], names: Iterable[str]) -> Json:
    """Keep what Celery and a pipe to a process can take, whatever a sender wrote."""
    return {name: given[name] for name in names if name in given and _is_plain(given[name])}


def _is_plain(value: object) -> bool:
    if type(value) is str:
        return len(value) <= LONGEST_VALUE
    return value is None or type(value) in (bool, int)


def _is_short(text: object) -> bool:
    return text is None or (type(text) is str and len(text) <= LONGEST and text.isprintable())


def _links(app: Celery, embed: Json) -> Json:
    """Return the links of one of our own messages, as far as we write such."""
    links: Mapping[str, str] = app.conf.links
    kept: Json = {}
    if chord := _signature(app, embed.get("chord"), links["chord"]):
        kept["chord"] = chord
    errbacks = embed.get("errbacks")
    if isinstance(errbacks, list):
        signed = [_signature(app, each, links["errbacks"]) for each in errbacks]
        kept["errbacks"] = [each for each in signed if each]
    return kept


def _signature(app: Celery, given: object, task: str) -> Json | None:
    """Return a signature with its task, arguments and ids alone; None if it calls another task."""
    if not isinstance(given, dict) or given.get("task") != task:
        return None
    signature = {name: given[name] for name in given if name in SIGNED}
    options = given.get("options")
    options = options if isinstance(options, dict) else {}
    signature["options"] = {name: options[name] for name in options if name in OPTIONS}
    if isinstance(headers := options.get("headers"), dict):
        own = app.conf.own_headers
        signature["options"]["headers"] = {name: headers[name] for name in own if name in headers}
    errbacks = options.get("link_error")
    if errbacks is not None:
        errback = app.conf.links["errbacks"]
        errbacks = errbacks if isinstance(errbacks, list) else [errbacks]
        signed = [_signature(app, each, errback) for each in errbacks] if task != errback else []
        signature["options"]["link_error"] = [each for each in signed if each]
    return signature
