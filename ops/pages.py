"""What the read API lists, page by page, a function a statement.

A page begins after a key, and an index has the rows in the order of that key. So a page costs the
same however much there is before and after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg.rows import DictRow

from core.db.connection import Conn
from ops.queries import FIRST, sql

Key = tuple[str, str]  # of a batch: when it was registered, as Postgres writes it, and its id
WINDOW = 5_000  # batches that a page looks at, at most
INDEXED: dict[str, LiteralString] = {  # filters with an index, the one that finds least first
    "user_id": "user_id = %(user_id)s",
    "org_id": "org_id = %(org_id)s",
    "state": "status = %(state)s",
}
PAGE_OF_BATCHES = sql("page_of_batches")
PAGE_AMONG_BATCHES = sql("page_among_batches")


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
        "SELECT batch_id, essay_id, current_status AS state, text_storage_id, file_upload_id,"
        " original_file_name, validation_error_code, student_id, assigned_at"
        " FROM essay_states WHERE batch_id = %(batch_id)s AND essay_id > %(after)s"
        " AND (%(state)s::text IS NULL OR current_status = %(state)s)"
        " ORDER BY essay_id LIMIT %(limit)s",
        {"batch_id": batch_id, "state": state, "after": after or "", "limit": limit},
    ).fetchall()
