"""Dead letters: messages that the service cannot execute, kept whole with the reason.

A message leaves the broker only when Postgres holds its outcome or its dead letter. So a process of
the pool writes letters, and waits while Postgres refuses. If it cannot write one at all, the
message goes back to the broker.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
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
from core.named_batch import batch_of
from durable_redis import MALFORMED
from tasks.app import app, settings
from tasks.attempts import attempts
from tasks.bodies import LONGEST_NAME, as_json, body_of, body_of_message, message_of, name_of
from tasks.resources import resources

UNKNOWN = "unknown"  # the task of a malformed message: nobody can replay it
log = structlog.get_logger(__name__)


def letter_of_call(
    task: str, request: Any, error: Exception, code: str, deliveries: int = 1
) -> DeadLetter:
    """Make the dead letter of a call; `request` is Celery's, of a task or of a worker's parent."""
    body = body_of(request.args or (), request.kwargs or {})
    return _letter(task, str(request.id), body, error, code, deliveries)


def letter_of_message(message: Message, error: Exception, code: str) -> DeadLetter:
    """Make the dead letter of a message that never became a task."""
    headers: Mapping[str, Any] = message.headers if isinstance(message.headers, Mapping) else {}
    ids = (headers.get("id"), message.properties.get("correlation_id"), message.delivery_tag)
    task_id = next(filter(None, map(name_of, ids)), UNKNOWN)
    task = name_of(headers.get("task")) or UNKNOWN
    return _letter(task, task_id, body_of_message(message), error, code)


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
    database_url, _ = settings.server_urls()
    with _speaking_of(letter):
        try:
            with db.connect_once(database_url) as conn:
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


def _letter(
    task: str, task_id: str, body: object, error: Exception, code: str, deliveries: int = 1
) -> DeadLetter:
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


def _letter_of_payload(queue: str, payload: bytes, why: str) -> DeadLetter:
    """Make the dead letter of bytes from Redis, with whatever of them can be read."""
    error, code = NotExecuted(why), "MALFORMED_MESSAGE"
    try:
        return letter_of_message(message_of(payload), error, code)
    except MALFORMED:
        body = {"queue": queue, "base64": base64.b64encode(payload).decode()}
        return _letter(UNKNOWN, hashlib.sha256(payload).hexdigest(), body, error, code)


def _announced() -> bool:
    return MESSAGE_REFUSED.name in settings.opt_in_events()


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


def _shown_task(letter: DeadLetter) -> str:
    """Name the task of a letter if there is such a task: its sender may have written anything."""
    return letter.task if letter.task in app.tasks else UNKNOWN
