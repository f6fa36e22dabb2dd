"""Dead letters: messages that no worker could carry out."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from uuid import UUID

from core.db import outbox
from core.db.connection import Conn, Row
from core.events import message_refused
from core.named_batch import ids_of


@dataclass(frozen=True)
class DeadLetter:
    """A message with its error, and with all that is needed to send it again."""

    task: str
    task_id: str
    batch_id: str | None
    body: str  # JSON text
    code: str
    message: str
    sqlstate: str | None = None
    deliveries: int = 1


def add(conn: Conn, letter: DeadLetter, *, announced: bool = False) -> int:
    """Write a dead letter; return its id. A redelivery counts up the first one.

    A sender may give one id to several messages: another body is another letter, with an id of its
    own that is always the same.

    `announced`: with its event `MessageRefused`, once, in the same transaction.
    """
    with conn.transaction():
        ids = _ids_of(letter)
        number, is_new = _add(conn, letter, ids.get("event_id"))
        if announced and is_new:
            event = message_refused(number, letter.task, letter.code, letter.message, ids)
            outbox.post_refusal(conn, event)
    return number


def _ids_of(letter: DeadLetter) -> Row:
    try:
        body = json.loads(letter.body)
    except (ValueError, RecursionError):  # a number of a million digits, a thousand levels
        body = None
    return ids_of(body, letter.batch_id)


def _add(conn: Conn, letter: DeadLetter, event_id: str | None) -> tuple[int, bool]:
    row = conn.execute(
        """
        INSERT INTO dead_letters
            (task, task_id, batch_id, body, code, message, sqlstate, deliveries, event_id)
        VALUES (%(task)s, %(task_id)s, %(batch_id)s, %(body)s::json, %(code)s, %(message)s,
                %(sqlstate)s, %(deliveries)s, %(event_id)s)
        ON CONFLICT (task_id) DO UPDATE SET deliveries = dead_letters.deliveries + 1
        WHERE (dead_letters.task, dead_letters.body::text) = (EXCLUDED.task, EXCLUDED.body::text)
        RETURNING id, xmax = 0 AS is_new
        """,
        {**asdict(letter), "event_id": event_id and UUID(event_id)},
    ).fetchone()
    if row is None:
        parts = "\n".join((letter.task_id, letter.task, letter.body))
        other_id = hashlib.sha256(parts.encode()).hexdigest()
        return _add(conn, replace(letter, task_id=other_id), event_id)
    return row["id"], row["is_new"]
