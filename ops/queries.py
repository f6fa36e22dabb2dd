"""What people read and change in Postgres: for the pages and the commands, a function a statement.

The statements of the service itself stand in `core/db/`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import LiteralString
from uuid import UUID

from psycopg.rows import DictRow

from core.db.connection import Conn
from core.messages import BIGINT_MAX, NAME_LENGTH
from core.states import BatchStatus, ClassType
from ops.sorting import Sort, Sortable

Cursor = tuple[str, str]  # the end of a page: a moment, as text, and a batch id
FIRST: Cursor = ("infinity", "~")  # after every moment, and after every identifier
LAST_CHARACTER = "\U0010ffff"  # in the order of code points, which is that of UTF-8


def sql(name: str) -> LiteralString:
    return (Path(__file__).parent / "sql" / f"{name}.sql").read_text()


SEARCH = sql("search")
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
LETTERS_FIT: LiteralString = (  # a filter
    " AND (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)"
    " AND (%(task)s::text IS NULL OR task = %(task)s)"
    " AND (%(code)s::text IS NULL OR code = %(code)s)"
    " AND (%(since)s::timestamptz IS NULL OR parked_at >= %(since)s)"
    " AND (%(until)s::timestamptz IS NULL OR parked_at < %(until)s)"
)
OF_BATCH: LiteralString = "coalesce(batch_id, data ->> 'batch_id', 'unknown')"  # of an event
EVENTS = Sortable(
    source="event_outbox",
    row="id",
    keys={
        "written": ["created_at", OF_BATCH, "sequence", "id"],
        "type": ["type", "created_at", "id"],
        "batch": [OF_BATCH, "sequence", "id"],
        "number": ["sequence", "created_at", "id"],
        "attempts": ["attempts", "created_at", "id"],
    },
)
BATCHES = Sortable(
    source="batch_essay_trackers",
    row="batch_id",
    keys={
        "batch": ["batch_id"],
        "state": ["status", "registered_at", "batch_id"],
        "age": ["registered_at", "batch_id"],
        "deadline": ["deadline_at", "batch_id"],
    },
)
SOME_BATCHES = replace(BATCHES, source="(" + sql("some_batches") + ") AS batch")
NEWEST, OLDEST = Sort("number", down=True), Sort("written")


@dataclass(frozen=True)
class Wanted:
    """Which batches are wanted; None: whatever they are. `among` lists the ids to choose from."""

    batch_id: str | None = None
    state: str | None = None
    user: str | None = None
    among: Sequence[str] | None = None


WANTED: LiteralString = (
    "(%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)"
    " AND (%(state)s::text IS NULL OR status = %(state)s)"
    " AND (%(user)s::text IS NULL OR user_id = %(user)s)"
    " AND (%(among)s::text[] IS NULL OR batch_id = ANY(%(among)s))"
)


@dataclass(frozen=True)
class Pending:
    """Contents and rejected files that wait for batches that nobody has registered."""

    contents: int
    batches: int
    oldest_seconds: float | None


def pending(conn: Conn) -> Pending:
    """Count what waits for a registration, from its first second on."""
    row = conn.execute(
        "SELECT count(*) AS contents, count(DISTINCT batch_id) AS batches,"
        " extract(epoch FROM now() - greatest(least(min(received_at), now()), '0001-01-01Z'))"
        "  ::float8 AS oldest_seconds"
        " FROM batch_pending_content p WHERE NOT EXISTS"
        " (SELECT FROM batch_essay_trackers t WHERE t.batch_id = p.batch_id)"
    ).fetchone()
    assert row is not None, "it counts"
    return Pending(**row)


def statuses(conn: Conn, wanted: Wanted, limit: int) -> list[DictRow]:
    """Read batches as `board` does, newest first, with those that contents only wait for."""
    query = sql("statuses").replace("true", WANTED)
    rows = conn.execute(query, {**vars(wanted), "limit": limit})
    return board(conn, [row["batch_id"] for row in rows])


def count_batches(conn: Conn, wanted: Wanted) -> int:
    """Count the registered ones of these batches. Reads every batch: 25 ms for 100 000."""
    query: LiteralString = "SELECT count(*) AS n FROM batch_essay_trackers WHERE "
    row = conn.execute(query + WANTED, vars(wanted)).fetchone()
    return int((row or {})["n"])


def find(conn: Conn, wanted: str, limit: int) -> list[DictRow]:
    """Find everything that has this id or name, the oldest first, open slots last."""
    quoted = {json.dumps(wanted), json.dumps(wanted, ensure_ascii=False)}  # in a dead letter
    parameters = {"id": wanted, "quoted": [*quoted], "limit": limit}
    return conn.execute(sql("find"), parameters).fetchall()


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


def undelivered(  # noqa: PLR0913 - a filter each
    conn: Conn,
    limit: int,
    *,
    batch_id: str | None = None,
    event_type: str | None = None,
    failing: bool = False,
    since: datetime | None = None,
    until: datetime | None = None,
    sort: Sort = OLDEST,
    after: UUID | None = None,
) -> list[DictRow]:
    """List undelivered events; `failing`: only those with an error.

    They were written at `since` or later, before `until`, and come behind the event `after`.
    """
    part = EVENTS.part(conn, sort, after)
    query: LiteralString = "SELECT id, " + OF_BATCH + " AS batch_id, type, sequence,"
    query += (
        " created_at, attempts, last_error FROM event_outbox"
        " WHERE published_at IS NULL"
        " AND (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)"
        " AND (%(type)s::text IS NULL OR type = %(type)s)"
        " AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)"
        " AND (%(until)s::timestamptz IS NULL OR created_at < %(until)s)"
        " AND (NOT %(failing)s OR last_error IS NOT NULL) AND "
    )
    return conn.execute(
        query + part.condition + " ORDER BY " + part.order + " LIMIT %(limit)s",
        {
            **part.parameters,
            "batch_id": batch_id,
            "type": event_type,
            "failing": failing,
            "since": since,
            "until": until,
            "limit": limit,
        },
    ).fetchall()


@dataclass(frozen=True)
class Events:
    """Which delivered events an operator means: written since then, delivered before `until`."""

    since: datetime
    until: datetime
    batch_id: str | None = None
    event_type: str | None = None


def count_delivered(conn: Conn, meant: Events) -> int:
    row = conn.execute(
        "SELECT count(*) AS n FROM event_outbox"
        " WHERE published_at < %(until)s AND created_at >= %(since)s"
        " AND (%(batch_id)s::text IS NULL OR batch_id = %(batch_id)s)"
        " AND (%(event_type)s::text IS NULL OR type = %(event_type)s)",
        vars(meant),
    ).fetchone()
    return int((row or {})["n"])


def republish(conn: Conn, meant: Events, limit: int) -> dict[str | None, int]:
    """Let the relay deliver the next events again; return their numbers by batch.

    The first delivery of each stays noted.
    """
    rows = conn.execute(sql("republish"), {**vars(meant), "limit": limit})
    return {row["batch_id"]: row["n"] for row in rows}


def counts(conn: Conn) -> dict[tuple[BatchStatus, ClassType], int]:
    """Count batches by status and class type. Reads every batch: 25 ms for 100 000."""
    rows = conn.execute(
        "SELECT status, class_id IS NOT NULL AS regular, count(*) AS n FROM batch_essay_trackers"
        " GROUP BY status, regular"
    )
    class_type = {False: ClassType.GUEST, True: ClassType.REGULAR}
    return {(BatchStatus(r["status"]), class_type[r["regular"]]): r["n"] for r in rows}


def gauges(conn: Conn) -> dict[str, float]:
    """Measure what waits, by the names of the metrics."""
    row = conn.execute(sql("gauges")).fetchone()
    assert row is not None, "it has no WHERE"
    return row


def letters_by_code(conn: Conn) -> dict[str, int]:
    """Count the dead letters that wait, by code."""
    rows = conn.execute(
        "SELECT code, count(*) AS n FROM dead_letters"
        " WHERE replayed_at IS NULL AND discarded_at IS NULL GROUP BY code"
    )
    return {row["code"]: row["n"] for row in rows}


def newest(
    conn: Conn, status: str | None, but: Sequence[str], after: Cursor | None, limit: int
) -> list[Cursor]:
    """Page through batches, newest first: those in a status, without `but`."""
    since, batch_id = after or FIRST
    rows = conn.execute(
        "SELECT registered_at, batch_id FROM batch_essay_trackers"
        " WHERE (registered_at, batch_id) < (%(since)s::timestamptz, %(batch_id)s)"
        " AND (%(status)s::text IS NULL OR status = %(status)s)"
        " AND batch_id <> ALL(%(but)s)"
        " ORDER BY registered_at DESC, batch_id DESC LIMIT %(limit)s",
        {"since": since, "batch_id": batch_id, "status": status, "but": list(but), "limit": limit},
    )
    return [(row["registered_at"].isoformat(), row["batch_id"]) for row in rows]


def waited_for(conn: Conn, after: str, limit: int) -> list[str]:
    """Page by id through batches that contents wait for and nobody has registered."""
    rows = conn.execute(
        "SELECT DISTINCT batch_id FROM batch_pending_content p WHERE batch_id > %s AND NOT EXISTS"
        " (SELECT FROM batch_essay_trackers t WHERE t.batch_id = p.batch_id)"
        " ORDER BY batch_id LIMIT %s",
        [after, limit],
    )
    return [row["batch_id"] for row in rows]


def sorted_batches(  # noqa: PLR0913 - a filter each
    conn: Conn,
    sort: Sort,
    *,
    among: Sequence[str] | None,
    status: str | None,
    since: datetime | None,
    until: datetime | None,
    after: str | None,
    limit: int,
) -> list[str]:
    """Page through batches in an order that a person chose; None: all that are registered.

    They were registered at `since` or later, before `until`. Only open batches have a deadline: by
    it, all that are registered are these. Of these an index gives each order; `among` are sorted.
    """
    if among is None and sort.column == "state":
        return _by_state(conn, sort, status, since, until, after, limit)
    listed = BATCHES if among is None else SOME_BATCHES
    by_key = replace(sort, down=not sort.down) if sort.column == "age" else sort  # the oldest first
    named = {"among": None if among is None else list(among)}
    part = listed.part(conn, by_key, after, named)
    conditions: list[LiteralString] = [part.condition]
    if among is None and sort.column == "deadline":
        conditions.append(
            "status IN ('awaiting_content_validation', 'awaiting_student_validation')"
        )
    if status:
        conditions.append("status = %(status)s")
    if since:
        conditions.append("registered_at >= %(since)s")
    if until:
        conditions.append("registered_at < %(until)s")
    where: LiteralString = " FROM " + listed.source + " WHERE " + " AND ".join(conditions)
    query: LiteralString = "SELECT batch_id" + where + " ORDER BY " + part.order
    rows = conn.execute(
        query + " LIMIT %(limit)s",
        {
            **named,
            **part.parameters,
            "status": status,
            "since": since,
            "until": until,
            "limit": limit,
        },
    )
    return [row["batch_id"] for row in rows]


def _by_state(
    conn: Conn,
    sort: Sort,
    status: str | None,
    since: datetime | None,
    until: datetime | None,
    after: str | None,
    limit: int,
) -> list[str]:
    """Page through one state after the other, from that of the batch `after` on."""
    begun = (status or states(conn, [after]).get(after)) if after else None
    found: list[str] = []
    for each in sorted(BatchStatus, reverse=sort.down):
        before = begun is not None and (each > begun if sort.down else each < begun)
        if before or (status and each != status) or len(found) == limit:
            continue
        found += sorted_batches(
            conn,
            Sort("age", down=not sort.down),  # the newest first if the states go down
            among=None,
            status=each,
            since=since,
            until=until,
            after=after if each == begun else None,
            limit=limit - len(found),
        )
    return found


def search(
    conn: Conn, words: str, status: str | None, after: Cursor | None, limit: int
) -> list[Cursor]:
    """Find batches by the id of batch, user, file or correlation, newest first.

    Only when nothing else has this name it searches the files, which reads all essays. The words
    must match exactly, or without the blanks that a person copied with them.
    """
    since, batch_id = after or FIRST
    try:
        uuid = UUID(words)
    except ValueError:
        uuid = None
    common = {"uuid": uuid, "status": status, "since": since, "batch_id": batch_id, "limit": limit}
    spelt = dict.fromkeys(filter(None, (words, words.strip())))
    for files, each in product((False, True), spelt):
        # After every id and name that begins with these words, bytewise.
        beyond = each + LAST_CHARACTER * (NAME_LENGTH + 1)
        parameters = {**common, "words": each, "beyond": beyond, "files": files}
        rows = conn.execute(SEARCH, parameters).fetchall()
        if rows:
            break
    return [(row["since"], row["batch_id"]) for row in rows]


def board(conn: Conn, batches: Sequence[str]) -> list[DictRow]:
    """Read batches for the board, in this order; also those that nobody has registered."""
    return conn.execute(sql("board"), {"batches": list(batches)}).fetchall()


def states(conn: Conn, batches: Sequence[str]) -> dict[str, str]:
    """Read the statuses of the registered ones among these batches."""
    rows = conn.execute(
        "SELECT batch_id, status FROM batch_essay_trackers WHERE batch_id = ANY(%s)",
        [list(batches)],
    )
    return {row["batch_id"]: row["status"] for row in rows}


def counters(conn: Conn) -> DictRow:
    """Count for the head of the board: open, ready today (UTC), and what waits."""
    row = conn.execute(
        "SELECT (SELECT count(*) FROM batch_essay_trackers WHERE status IN"
        " ('awaiting_content_validation', 'awaiting_student_validation')) AS open,"
        " (SELECT count(*) FROM batch_essay_trackers WHERE ready_at >="
        " date_trunc('day', now(), 'UTC')) AS ready_today,"
        " (SELECT count(*) FROM event_outbox WHERE published_at IS NULL) AS outbox,"
        " (SELECT count(*) FROM dead_letters"
        "  WHERE replayed_at IS NULL AND discarded_at IS NULL) AS dead_letters,"
        " (SELECT count(*) FROM batch_pending_content p WHERE NOT EXISTS"
        "  (SELECT FROM batch_essay_trackers t WHERE t.batch_id = p.batch_id)) AS pending"
    ).fetchone()
    assert row is not None
    return row


def slots_page(conn: Conn, batch_id: str, after: str, limit: int) -> list[DictRow]:
    """Page through the slots of a batch, by essay id."""
    return conn.execute(
        "SELECT essay_id, current_status, text_storage_id, file_upload_id, original_file_name,"
        " file_size_bytes, validation_error_code, assigned_at FROM essay_states"
        " WHERE batch_id = %s AND essay_id > %s ORDER BY essay_id LIMIT %s",
        [batch_id, after, limit],
    ).fetchall()


def slot(conn: Conn, batch_id: str, essay_id: str) -> DictRow | None:
    return conn.execute(
        "SELECT * FROM essay_states WHERE batch_id = %s AND essay_id = %s", [batch_id, essay_id]
    ).fetchone()


def activity(conn: Conn, parts: int, part_s: int) -> list[DictRow]:
    """Count what happened in each part of a span that ends now. Reads the rows of the span."""
    return conn.execute(sql("activity"), {"parts": parts, "part_s": part_s}).fetchall()


def without_slot(conn: Conn, batch_id: str, limit: int) -> list[DictRow]:
    """List contents and rejected files of a batch that are pending or excess, the oldest first."""
    return conn.execute(
        "(SELECT 'pending' AS place, text_storage_id, essay_file_id AS file_upload_id,"
        " original_file_name, validation_error_code, received_at, NULL AS reason"
        " FROM batch_pending_content WHERE batch_id = %(batch_id)s LIMIT %(limit)s)"
        " UNION ALL (SELECT 'excess', text_storage_id, file_upload_id, original_file_name,"
        " validation_error_code, received_at, reason"
        " FROM excess_content WHERE batch_id = %(batch_id)s LIMIT %(limit)s)"
        " ORDER BY received_at, file_upload_id LIMIT %(limit)s",
        {"batch_id": batch_id, "limit": limit},
    ).fetchall()


def events(conn: Conn, batch_id: str, limit: int) -> list[DictRow]:
    """List the events of a batch with their delivery, the newest first."""
    return conn.execute(
        "SELECT id, type, sequence, created_at, published_at, attempts, last_error"
        " FROM event_outbox WHERE batch_id = %s ORDER BY sequence DESC LIMIT %s",
        [batch_id, limit],
    ).fetchall()
