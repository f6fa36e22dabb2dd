"""Dead letters: messages that no worker could carry out."""

from dataclasses import asdict, dataclass
from typing import cast

from core.db.connection import Conn


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


def add(conn: Conn, letter: DeadLetter) -> int:
    """Write a dead letter; return its id. A redelivery counts up the first one."""
    row = conn.execute(
        """
        INSERT INTO dead_letters
            (task, task_id, batch_id, body, code, message, sqlstate, deliveries)
        VALUES (%(task)s, %(task_id)s, %(batch_id)s, %(body)s::json, %(code)s, %(message)s,
                %(sqlstate)s, %(deliveries)s)
        ON CONFLICT (task_id) DO UPDATE SET deliveries = dead_letters.deliveries + 1
        RETURNING id
        """,
        asdict(letter),
    ).fetchone()
    assert row is not None
    return cast(int, row["id"])
