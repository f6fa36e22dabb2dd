"""What the read API lists, page by page, a function a statement.

A page begins after a key, and an index has the rows in the order of that key. So a page costs the
same however much there is before and after it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import LiteralString
from uuid import UUID

from psycopg.rows import DictRow

from core.db.connection import Conn
from ops.queries.batches import FIRST
from ops.queries.statements import sql

Key = tuple[str, str]  # of a batch: when it was registered, as Postgres writes it, and its id
WINDOW = 5_000  # batches that a page looks at, at most
INDEXED: dict[str, LiteralString] = {  # filters with an index, the one that finds least first
    "user_id": "user_id = %(user_id)s",
    "org_id": "org_id = %(org_id)s",
    "state": "status = %(state)s",
}
EVENT_BYTES = 4 * 1024 * 1024  # of the events of a page: one is up to 512 KiB
HORIZON = (
    "SELECT pg_snapshot_xmin(now)::text::bigint AS all_ended,"
    " pg_snapshot_xmax(now)::text::bigint AS none_begun FROM pg_current_snapshot() AS now"
)
EVENTS_AT_ONCE = 20  # read: few large ones for nothing
EVENT_KEY = ("xact_id", "created_at", "sequence", "id")
EventKey = tuple[int, str, int, str]  # transaction, moment, sequence, id
BEFORE_ALL: EventKey = (-1, "-infinity", 0, "00000000-0000-0000-0000-000000000000")
LAST_XACT = 2**63 - 1
PAGE_OF_BATCHES = sql("page_of_batches")
PAGE_AMONG_BATCHES = sql("page_among_batches")
PAGE_OF_EVENTS = sql("page_of_events")
ESSAY: LiteralString = (
    "SELECT batch_id, essay_id, current_status AS state, text_storage_id, file_upload_id,"
    " original_file_name, validation_error_code, student_id, assigned_at FROM essay_states"
)
ESSAYS_OF_BATCH: LiteralString = (
    ESSAY + " WHERE batch_id = %(batch_id)s AND essay_id > %(after)s"
    " AND (%(state)s::text IS NULL OR current_status = %(state)s)"
    " ORDER BY essay_id LIMIT %(limit)s"
)
ESSAYS_BY_ID: LiteralString = (
    ESSAY + " WHERE essay_id = %(essay_id)s AND batch_id > %(after)s"
    " ORDER BY batch_id LIMIT %(limit)s"
)
LETTERS_OF: LiteralString = (
    "SELECT id, task, task_id, batch_id, code, sqlstate, message, deliveries, parked_at,"
    " replayed_at, discarded_at FROM dead_letters WHERE event_id = %(event_id)s"
    " ORDER BY id DESC LIMIT %(limit)s"
)


@dataclass(frozen=True)
class Wanted:
    """Which batches are wanted; None: whatever they are. `but` lists those that are not."""

    state: str | None = None
    user_id: str | None = None
    org_id: str | None = None
    regular: bool | None = None
    but: Sequence[str] = ()

    @property
    def index(self) -> str | None:
        """The filter that an index answers."""
        return next((name for name in INDEXED if getattr(self, name) is not None), None)

    @property
    def leaves_out(self) -> bool:
        """Other filters leave out some of what the index finds."""
        others = (getattr(self, name) for name in INDEXED if name != self.index)
        return any(each is not None for each in (*others, self.regular)) or bool(self.but)

    @property
    def parameters(self) -> dict[str, object]:
        return {**vars(self), "but": list(self.but)}


def batches(
    conn: Conn, wanted: Wanted, after: Key | None, limit: int
) -> tuple[list[str], Key | None]:
    """Page through batches, newest first; return their ids and the key of the next page.

    An index answers one filter. The others leave out some of the next `WINDOW` batches, so a page
    may have few, or none, and still a next one.
    """
    looked = WINDOW if wanted.leaves_out else limit + 1
    since, batch_id = after or FIRST
    rows = conn.execute(
        page_of_batches(wanted.index),
        {**wanted.parameters, "since": since, "batch_id": batch_id, "looked": looked},
        prepare=False,  # the values decide which index is the best
    ).fetchall()
    return _cut(rows, limit, more=len(rows) == WINDOW)


def page_of_batches(index: str | None) -> LiteralString:
    """Return the statement that lets an index answer this filter."""
    return PAGE_OF_BATCHES.replace("true", INDEXED[index]) if index else PAGE_OF_BATCHES


def batches_among(
    conn: Conn, among: Sequence[str], wanted: Wanted, after: Key | None, limit: int
) -> tuple[list[str], Key | None]:
    """Page through some batches, newest first, those that nobody has registered before them."""
    since, batch_id = after or FIRST
    rows = conn.execute(
        PAGE_AMONG_BATCHES,
        {**wanted.parameters, "among": list(among), "since": since, "batch_id": batch_id},
    ).fetchall()
    return _cut(rows, limit, more=False)


def _cut(rows: Sequence[DictRow], limit: int, *, more: bool) -> tuple[list[str], Key | None]:
    """Cut a page from what was looked at; `more`: there may be rows past these."""
    found = [row for row in rows if row["wanted"]]
    last = found[limit - 1] if len(found) > limit else rows[-1] if more else None
    key = (last["since"], last["batch_id"]) if last else None
    return [row["batch_id"] for row in found[:limit]], key


def is_registered(conn: Conn, batch_id: str) -> bool:
    found = conn.execute("SELECT FROM batch_essay_trackers WHERE batch_id = %s", [batch_id])
    return found.fetchone() is not None


def batch_essays(
    conn: Conn, batch_id: str, state: str | None, after: str | None, limit: int
) -> list[DictRow]:
    """Page through the essays of a batch, by id."""
    return conn.execute(
        ESSAYS_OF_BATCH,
        {"batch_id": batch_id, "state": state, "after": after or "", "limit": limit},
    ).fetchall()


def events(
    conn: Conn, after: EventKey | None, limit: int
) -> tuple[list[DictRow], EventKey | None, bool]:
    """Page through all events; return them, where to go on, and whether there are more already.

    They come in the order of the transactions that wrote them, and only those of transactions that
    began before every one that is still open. So no event ever appears behind a reader.

    A database that was restored from a dump has events of another server, whose transactions have
    numbers that have not come up here. They come before all others.
    """
    with conn.transaction():
        horizon = conn.execute(HORIZON).fetchone()
        assert horizon is not None
        restored = after is None or after[0] >= horizon["none_begun"]
        first = after or (horizon["none_begun"], *BEFORE_ALL[1:])
        ranges = [(first, LAST_XACT)] if restored else []
        ranges.append((BEFORE_ALL if restored else first, horizon["all_ended"]))
        page, more = _fill(_read(conn, ranges), limit)
    return page, _key(page[-1]) if page else after, more


def _fill(rows: Iterator[DictRow], limit: int) -> tuple[list[DictRow], bool]:
    """Fill a page, with one event at least; tell whether there are more."""
    page: list[DictRow] = []
    size = 0
    for row in rows:
        size += row["bytes"]
        if len(page) == limit or (page and size > EVENT_BYTES):
            return page, True
        page.append(row)
    return page, False


def _read(conn: Conn, ranges: Sequence[tuple[EventKey, int]]) -> Iterator[DictRow]:
    """Read events, a few at a time: in each range, those after a key and up to a transaction."""
    for after, until in ranges:
        key: EventKey | None = after
        while key is not None:
            given = dict(zip(EVENT_KEY, key, strict=True))
            parameters = {**given, "until": until, "limit": EVENTS_AT_ONCE}
            rows = conn.execute(PAGE_OF_EVENTS, parameters).fetchall()
            yield from rows
            key = _key(rows[-1]) if len(rows) == EVENTS_AT_ONCE else None


def _key(event: DictRow) -> EventKey:
    return event["xact_id"], event["since"], event["sequence"], str(event["id"])


def essays(conn: Conn, essay_id: str, after: str | None, limit: int) -> list[DictRow]:
    """Page through the slots with an essay id, by batch."""
    parameters = {"essay_id": essay_id, "after": after or "", "limit": limit}
    return conn.execute(ESSAYS_BY_ID, parameters).fetchall()


def outcome(conn: Conn, event_id: UUID) -> DictRow | None:
    """Read what a message led to; None: it has not been executed."""
    return conn.execute(
        "SELECT task, batch_id, outcome, created_at FROM idempotency_keys WHERE key = %s",
        [event_id],
    ).fetchone()


def letters_of(conn: Conn, event_id: UUID, limit: int) -> list[DictRow]:
    """List the dead letters of a message, without their bodies, newest first."""
    return conn.execute(LETTERS_OF, {"event_id": event_id, "limit": limit}).fetchall()
