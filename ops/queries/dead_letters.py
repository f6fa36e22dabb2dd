"""Dead letters: listed, counted, locked, and noted as replayed or discarded."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from psycopg.rows import DictRow

from core.db.connection import Conn
from core.messages import BIGINT_MAX
from ops.queries.statements import sql
from ops.sorting import Sort, Sortable

NEEDED = sql("needed_letters")
LETTERS = Sortable(
    source="dead_letters",
    row="id",
    keys={
        "number": ["id"],
        "code": ["code", "id"],
        "batch": ["coalesce(batch_id, '')", "id"],
        "parked": ["parked_at", "id"],
        "task": ["task", "id"],
    },
)
NEWEST = Sort("number", down=True)
LETTERS_FIT: LiteralString = (  # a filter
    " AND (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)"
    " AND (%(task)s::text IS NULL OR task = %(task)s)"
    " AND (%(code)s::text IS NULL OR code = %(code)s)"
    " AND (%(since)s::timestamptz IS NULL OR parked_at >= %(since)s)"
    " AND (%(until)s::timestamptz IS NULL OR parked_at < %(until)s)"
)


def among_needed(query: LiteralString) -> LiteralString:
    """Let a query read the letters that their batches still need, as `needed`."""
    return f"WITH needed AS ({NEEDED}) {query}"


def letters(  # noqa: PLR0913 - a filter each
    conn: Conn,
    *,
    batch_id: str | None,
    task: str | None,
    every: bool,
    limit: int,
    code: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    sort: Sort = NEWEST,
    after: int | None = None,
) -> list[DictRow]:
    """List dead letters without their bodies; `every` includes handled ones.

    They were parked at `since` or later, before `until`, and come behind the letter `after`.
    `state` is waiting, replayed, failed_again or discarded; `replay_of` and `failed_again_as` are
    the letters before and after a replay.
    """
    part = LETTERS.part(conn, sort, after)
    query: LiteralString = (
        "SELECT id, task, task_id, batch_id, code, sqlstate, message, deliveries, parked_at,"
        " replayed_at, discarded_at, replay_task_id FROM dead_letters"
        " WHERE (%(every)s OR replayed_at IS NULL AND discarded_at IS NULL)"
    )
    rows = conn.execute(
        query
        + LETTERS_FIT
        + " AND "
        + part.condition
        + " ORDER BY "
        + part.order
        + " LIMIT %(limit)s",
        {
            **part.parameters,
            "batch_id": batch_id,
            "task": task,
            "code": code,
            "since": since,
            "until": until,
            "every": every,
            "limit": limit,
        },
    ).fetchall()
    return _with_replays(conn, rows)


def letter(conn: Conn, number: int) -> DictRow | None:
    rows = conn.execute("SELECT * FROM dead_letters WHERE id = %s", [number]).fetchall()
    return next(iter(_with_replays(conn, rows)), None)


def _with_replays(conn: Conn, letters: list[DictRow]) -> list[DictRow]:
    """Add to each letter its state, and the letters before and after a replay of it."""
    later = [each["replay_task_id"] for each in letters if each["replay_task_id"]]
    earlier = [each["task_id"] for each in letters]
    rows = conn.execute(
        "SELECT id, task_id, replay_task_id FROM dead_letters"
        " WHERE task_id = ANY(%(later)s) OR replay_task_id = ANY(%(earlier)s)",
        {"later": later, "earlier": earlier},
    ).fetchall()
    failed = {row["task_id"]: row["id"] for row in rows}
    origin = {row["replay_task_id"]: row["id"] for row in rows}
    for each in letters:
        replay = each.pop("replay_task_id")
        each["replay_of"] = origin.get(each["task_id"])
        each["failed_again_as"] = failed.get(replay) if replay else None
        each["state"] = _letter_state(each)
    return letters


def _letter_state(letter: DictRow) -> str:
    replayed, discarded = letter["replayed_at"], letter["discarded_at"]
    if discarded and not (replayed and replayed > discarded):
        return "discarded"
    if replayed:
        return "failed_again" if letter["failed_again_as"] else "replayed"
    return "waiting"


@dataclass(frozen=True)
class Letters:
    """Which dead letters an operator means: some by number, else those that wait and fit.

    They were parked at `since` or later, before `until`. `up_to`: none that came after the letter
    with this number.
    """

    numbers: Sequence[int] | None = None
    batch_id: str | None = None
    task: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    up_to: int | None = None


LETTERS_MEANT: LiteralString = (
    " FROM dead_letters WHERE id > %(after)s AND id <= %(last)s"
    " AND CASE WHEN %(numbers)s::bigint[] IS NOT NULL THEN id = ANY(%(numbers)s)"
    " ELSE replayed_at IS NULL AND discarded_at IS NULL END"
    + LETTERS_FIT
    + " AND (%(up_to)s::bigint IS NULL OR id <= %(up_to)s)"
)


def count_letters(conn: Conn, meant: Letters) -> list[DictRow]:
    """Count letters by `task` and `code`, the most first; `last` is the newest of each kind."""
    query: LiteralString = "SELECT task, code, count(*) AS n, max(id) AS last" + LETTERS_MEANT
    return conn.execute(
        query + " GROUP BY task, code ORDER BY n DESC, task, code",
        {**vars(meant), "after": 0, "last": BIGINT_MAX},
    ).fetchall()


def lock_letters(conn: Conn, meant: Letters, after: int, last: int, limit: int) -> list[DictRow]:
    """Lock and read the next letters, the oldest first, without those that others hold."""
    query: LiteralString = "SELECT id, task, batch_id, code, body" + LETTERS_MEANT
    return conn.execute(
        query + " ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED",
        {**vars(meant), "after": after, "last": last, "limit": limit},
    ).fetchall()


def mark_replayed(conn: Conn, number: int, task_id: str | None = None) -> None:
    """Note that a letter was sent again, and as which message."""
    conn.execute(
        "UPDATE dead_letters SET replayed_at = now(), replay_task_id = %s WHERE id = %s",
        [task_id, number],
    )


def mark_discarded(conn: Conn, *numbers: int) -> None:
    """Note that nobody needs these dead letters any more; they stay until they are purged."""
    conn.execute("UPDATE dead_letters SET discarded_at = now() WHERE id = ANY(%s)", [[*numbers]])
