"""Batches: listed, sorted, searched, and what one of them holds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import product
from typing import LiteralString
from uuid import UUID

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from core.db.connection import Conn, Row
from core.messages import NAME_LENGTH
from core.states import BatchStatus
from ops.queries.statements import sql
from ops.sorting import Sort, Sortable

Cursor = tuple[str, str]  # the end of a page: a moment, as text, and a batch id
FIRST: Cursor = ("infinity", "~")  # after every moment, and after every identifier
LAST_CHARACTER = "\U0010ffff"  # in the order of code points, which is that of UTF-8
SEARCH = sql("search")
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


def statuses(conn: Conn, wanted: Wanted, limit: int) -> list[DictRow]:
    """Read batches as `board` does, newest first, with those that contents only wait for."""
    query = sql("statuses").replace("WHERE true", "WHERE " + WANTED)
    rows = conn.execute(query, {**vars(wanted), "limit": limit})
    return board(conn, [row["batch_id"] for row in rows])


def count_batches(conn: Conn, wanted: Wanted) -> int:
    """Count the registered ones of these batches. Reads every batch: 25 ms for 100 000."""
    query: LiteralString = "SELECT count(*) AS n FROM batch_essay_trackers WHERE "
    row = conn.execute(query + WANTED, vars(wanted)).fetchone()
    return int((row or {})["n"])


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


def find(conn: Conn, wanted: str, limit: int) -> list[DictRow]:
    """Find everything that has this id or name, the oldest first, open slots last."""
    quoted = {json.dumps(wanted), json.dumps(wanted, ensure_ascii=False)}  # in a dead letter
    parameters = {"id": wanted, "quoted": [*quoted], "limit": limit}
    return conn.execute(sql("find"), parameters).fetchall()


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


def facts(conn: Conn, batch_id: str) -> Row:
    """Read all counts and moments of one batch; empty: it is not registered."""
    return conn.execute(sql("facts"), {"batch_id": batch_id}).fetchone() or {}


def timeline(conn: Conn, batch_id: str, titles: Mapping[str, str]) -> list[DictRow]:
    """Read the history of a batch, in order: `at`, `what`, and the `place` of its files, if any.

    `titles` are those of the rules, by code.
    """
    given = {"batch_id": batch_id, "titles": Jsonb(dict(titles))}
    return conn.execute(sql("timeline"), given).fetchall()
