"""Dead letters: messages that the service cannot execute, kept whole with the reason.

A message leaves the broker only when Postgres holds its outcome or its dead letter. So a process of
the pool writes letters, and waits while Postgres refuses. If it cannot write one at all, the
message goes back to the broker.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import structlog
from kombu import Message
from structlog.contextvars import bound_contextvars, clear_contextvars

from core import db
from core.catalogue import MESSAGE_REFUSED
from core.db.dead_letters import DeadLetter
from core.errors import NotExecuted
from core.faults import describe, safe_message, sqlstate
from core.messages import WIRE_LIMIT
from core.named_batch import batch_of, ids_of
from core.parsing import canonical
from durable_redis import MALFORMED, Misshapen
from tasks.app import app, settings
from tasks.attempts import attempts
from tasks.resources import resources

LONGEST_NAME = 255  # characters of a task's name or id that are kept
BEGINNING = 64 * 1024  # bytes of a body that is too large to be kept
UNKNOWN = "unknown"  # the task of a malformed message: nobody can replay it
log = structlog.get_logger(__name__)


def letter_of(
    task: str, task_id: str, body: object, error: Exception, code: str, deliveries: int = 1
) -> DeadLetter:
    """Make the dead letter of a message with any body."""
    return DeadLetter(
        task=_printable(task)[:LONGEST_NAME],
        task_id=_known_by(task_id),
        batch_id=batch_of(body),
        body=as_json(body),
        code=code,
        message=safe_message(error),
        sqlstate=sqlstate(error),
        deliveries=deliveries,
    )


def letter_of_message(message: Message, error: Exception, code: str) -> DeadLetter:
    """Make the dead letter of a message that never became a task."""
    headers: Mapping[str, Any] = message.headers if isinstance(message.headers, Mapping) else {}
    ids = (headers.get("id"), message.properties.get("correlation_id"), message.delivery_tag)
    task_id = next(filter(None, map(_name, ids)), UNKNOWN)
    task = _name(headers.get("task")) or UNKNOWN
    return letter_of(task, task_id, _body(message), error, code)


def _name(given: object) -> str:
    """Return a name or number as text; empty for anything else."""
    return str(given) if isinstance(given, str) or type(given) is int else ""


def keep(letter: DeadLetter) -> int:
    """Write a dead letter; return its number. Waits while Postgres refuses.

    Raises the error of Postgres if its cause is the letter, and Reject if the worker stops.
    """
    for attempt in attempts(raised_at_once=()):
        with attempt, resources().pool.connection() as conn:
            number = db.dead_letters.add(conn, letter, announced=_announced())
    log.error(
        "dead_letter",
        code=letter.code,
        dead_letter=number,
        task=_shown_task(letter),
        task_id=letter.task_id,
        sqlstate=letter.sqlstate,
    )
    return number


def keep_if_possible(letter: DeadLetter, *, answers: str | None = None) -> int | None:
    """Write a dead letter for Celery's pool, which takes no exception; None: it is not written.

    `answers`: the id of a message whose sender asked for a result, which is then stored.
    """
    with _speaking_of(letter):
        try:
            number = keep(letter)
        except Exception:
            log.exception("message_goes_back")
            return None
        if answers:
            _answer(answers, letter, number)
        return number


def value_of(letter: DeadLetter, number: int) -> dict[str, Any]:  # Any: JSON
    """Return the value of a task whose message became a dead letter."""
    value = {"outcome": "dead_letter", "batch_id": letter.batch_id, "code": letter.code}
    return {**value, "dead_letter": number, "message": letter.message}


def keep_malformed(queue: str, payload: bytes, why: str) -> bool:
    """Keep a malformed message; False if that is not possible now.

    It runs in the worker's event loop, so it does not wait. The transport offers the bytes again.
    """
    letter = _letter_of_payload(queue, payload, why)
    assert settings.database_url is not None, "a worker has taken this message"
    with _speaking_of(letter):
        try:
            with db.connect_once(settings.database_url) as conn:
                number = db.dead_letters.add(conn, letter, announced=_announced())
        except psycopg.Error as error:
            log.warning("dead_letter_not_kept_yet", sqlstate=sqlstate(error))
            return False
        log.error("dead_letter", code=letter.code, dead_letter=number)
        return True


def asks_for_result(headers: object) -> str | None:
    """Return the id of a message whose sender asked for a result; None: he asked for none."""
    if not isinstance(headers, Mapping) or headers.get("ignore_result") is not False:
        return None
    given = headers.get("id")
    return given if isinstance(given, str) and _known_by(given) == given else None


def _answer(task_id: str, letter: DeadLetter, number: int) -> None:
    """Store the result of a message that never became a task, if Redis takes it."""
    try:
        app.backend.mark_as_done(task_id, value_of(letter, number), store_result=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, the message is kept
        log.warning("result_not_stored", error=describe(error))


@contextmanager
def _speaking_of(letter: DeadLetter) -> Iterator[None]:
    """Let log lines name this message, and not the one that this process executed before."""
    clear_contextvars()
    ids = {"batch_id": letter.batch_id} if letter.batch_id else {}
    with bound_contextvars(task=_shown_task(letter), task_id=letter.task_id, **ids):
        yield


def _letter_of_payload(queue: str, payload: bytes, why: str) -> DeadLetter:
    """Make the dead letter of bytes from Redis, with whatever of them can be read."""
    error, code = NotExecuted(why), "MALFORMED_MESSAGE"
    try:
        return letter_of_message(_message(payload), error, code)
    except MALFORMED:
        body = {"queue": queue, "base64": base64.b64encode(payload).decode()}
        return letter_of(UNKNOWN, hashlib.sha256(payload).hexdigest(), body, error, code)


def _message(payload: bytes) -> Message:
    """Make a message of bytes from Redis that lack parts of one. Raises one of MALFORMED."""
    raw = json.loads(payload)
    parts = (raw.get(name) for name in ("headers", "properties"))
    headers, properties = (part if isinstance(part, dict) else {} for part in parts)
    body = raw.get("body")
    try:
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body, validate=True)
    except MALFORMED:
        body = None
    return Message(
        body=body if isinstance(body, str | bytes) else payload,  # type: ignore[arg-type] # is right
        delivery_tag=_name(properties.get("delivery_tag")) or hashlib.sha256(payload).hexdigest(),
        content_type=raw.get("content-type"),
        properties=properties,
        headers=headers,
    )


def _announced() -> bool:
    """Tell whether a route asks for the event of a dead letter."""
    return MESSAGE_REFUSED.name in settings.opt_in_events()


def names_event(args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Tell whether the only argument of a call is `event`."""
    return not args and kwargs.keys() == {"event"}


def body_of(args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """Return the event of a call, or all of its arguments if it has others."""
    return kwargs["event"] if names_event(args, kwargs) else {"args": args, "kwargs": kwargs}


def as_json(body: object) -> str:
    """Write a body as JSON: exactly where JSON can hold it, else its `repr`."""
    try:
        return json.dumps(json.loads(canonical(body)), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return json.dumps({**ids_of(body, batch_of(body)), "not_json": _repr(body)})


def _printable(text: str) -> str:
    """Write what a terminal or Postgres could not take as an escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _known_by(task_id: str) -> str:
    """Return the id of a message; of one that no index or terminal takes, its hash."""
    if task_id.isprintable() and len(task_id) <= LONGEST_NAME:
        return task_id
    return hashlib.sha256(task_id.encode(errors="surrogatepass")).hexdigest()


def _body(message: Message) -> object:
    """Return the event of a message, else its body. Does not parse what is too large for that."""
    if any(not isinstance(error, Misshapen) for _, error, _ in message.errors or ()):
        return _raw(message)
    try:
        call = json.loads(message.body or "")
    except (ValueError, TypeError, RecursionError):
        return _raw(message)
    if not isinstance(call, list) or len(call) != 3:
        return _raw(message)
    args, kwargs, _ = call
    return body_of(args, kwargs) if isinstance(kwargs, dict) else {"args": args, "kwargs": kwargs}


def _shown_task(letter: DeadLetter) -> str:
    """Name the task of a letter if there is such a task: its sender may have written anything."""
    return letter.task if letter.task in app.tasks else UNKNOWN


def _raw(message: Message) -> dict[str, object]:
    """Return a body as it came, in base64; of a very large one the beginning."""
    body = message.body or b""
    raw = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    about = {"content_type": _name(message.content_type)[:LONGEST_NAME]}
    if compression := _name(message.headers.get("compression")):
        about["compression"] = compression[:LONGEST_NAME]
    if len(raw) <= WIRE_LIMIT:
        return {**about, "base64": base64.b64encode(raw).decode()}
    beginning = base64.b64encode(raw[:BEGINNING]).decode()
    return {**about, "bytes": len(raw), "beginning_base64": beginning}


def _repr(body: object) -> str:
    try:
        return repr(body)
    except RecursionError:
        return f"{type(body).__name__}, nested too deeply to be written"
