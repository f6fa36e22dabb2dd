"""Replay and discard dead letters: those of some numbers, or all that fit a filter."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from psycopg.rows import DictRow

from core.db.connection import Conn, Row
from core.errors import StackError
from ops.client import Sender
from ops.queries import actions, dead_letters
from ops.queries.actions import By
from ops.queries.dead_letters import Letters

CHUNK = 20  # letters of one transaction: a body may have 8 MiB
DISCARDED_AT_ONCE = 500
PER = {"s": 1, "min": 60, "m": 60, "h": 3_600}
RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/(s|min|m|h))?")
Progress = Callable[[int], object]  # gets how many letters are done


@dataclass
class Done:
    """What became of the letters; `skipped` has those that cannot be sent again, with why."""

    numbers: list[int] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)


class Pace:
    """Lets no more through than so many a second; None: as fast as it goes."""

    def __init__(self, per_second: float | None) -> None:
        self.interval_s = 1 / per_second if per_second else 0.0
        self.next_at = time.monotonic()

    @property
    def chunk(self) -> int:
        """How many letters a transaction may hold locked: those of about a second."""
        return max(1, min(CHUNK, int(1 / self.interval_s))) if self.interval_s else CHUNK

    def wait(self) -> None:
        time.sleep(max(0.0, self.next_at - time.monotonic()))
        self.next_at = max(self.next_at, time.monotonic() - self.interval_s) + self.interval_s


def read_rate(text: str) -> float:
    """Read `10/s`, `90/min` or `10` (a second) as a number a second. Raises ValueError."""
    found = RATE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise ValueError(f"{text} is no rate; write it as 10/s, 90/min or 500/h")
    return float(found[1]) / PER[found[2] or "s"]


def why_not(letter: Row) -> str | None:
    """Say why a letter cannot be sent again; None: it can."""
    number, body = letter["id"], letter["body"]
    if letter["task"] == "unknown" or _as_it_came(body):
        return (
            f"nobody could read dead letter {number}, so it cannot be replayed:"
            " correct it at its sender and send it again"
        )
    if letter["code"] == "UNKNOWN_VERSION":
        return (
            f"dead letter {number} is a step of a completion, which the sweep has completed:"
            " discard it"
        )
    return None


def _as_it_came(body: object) -> bool:
    """Tell whether this is the body of a message that nobody could decode."""
    return isinstance(body, Mapping) and bool(body.keys() & {"base64", "beginning_base64"})


def replay(
    conn: Conn, sender: Sender, meant: Letters, by: By, pace: Pace, progress: Progress
) -> Done:
    """Send letters again, the oldest first; those that fail again meanwhile are not meant.

    Raises StackError where the broker takes no more; what was sent by then stays noted.
    """
    done = Done()

    def send(rows: list[DictRow]) -> StackError | None:
        for row in rows:
            if problem := why_not(row):
                done.skipped[row["id"]] = problem
                continue
            pace.wait()
            try:
                sent = sender.send(row["task"], row["body"])
            except StackError as error:
                return error
            dead_letters.mark_replayed(conn, row["id"], sent.task_id)
            _record(conn, by, "replay", [row], task_id=sent.task_id)
            done.numbers.append(row["id"])
        progress(len(done.numbers))
        return None

    if refused := _in_chunks(conn, meant, pace.chunk, send):
        raise refused
    return done


def discard(conn: Conn, meant: Letters, by: By, progress: Progress) -> Done:
    """Mark letters as settled."""
    done = Done()

    def settle(rows: list[DictRow]) -> None:
        numbers = [row["id"] for row in rows]
        dead_letters.mark_discarded(conn, *numbers)
        _record(conn, by, "discard", rows)
        done.numbers += numbers
        progress(len(done.numbers))

    _in_chunks(conn, meant, DISCARDED_AT_ONCE, settle)
    return done


def target(number: int) -> str:
    """Name a letter as the target of an action."""
    return f"dead letter {number}"


def _record(conn: Conn, by: By, name: str, rows: Sequence[Row], **more: str) -> None:
    """Write an action for each letter."""
    actions.record(
        conn,
        *(
            by.action(
                name, target(row["id"]), row["batch_id"], task=row["task"], code=row["code"], **more
            )
            for row in rows
        ),
    )


def _in_chunks(
    conn: Conn, meant: Letters, size: int, act: Callable[[list[DictRow]], StackError | None]
) -> StackError | None:
    """Act on the letters, a chunk a transaction, until one meets an error; return that."""
    last = max((row["last"] for row in dead_letters.count_letters(conn, meant)), default=0)
    after, refused = 0, None
    while after < last and refused is None:
        with conn.transaction():
            rows = dead_letters.lock_letters(conn, meant, after, last, size)
            if not rows:
                break
            refused = act(rows)
        after = rows[-1]["id"]
    return refused
