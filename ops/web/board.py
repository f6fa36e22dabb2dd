"""What the pages show: the board and its pages, one batch, dead letters, the outbox."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from core.db.connection import Conn
from core.explain import explain
from core.rules import RULES
from core.settings import Settings
from ops import queries
from ops.web.formatting import NOT_REGISTERED, STATES
from ops.web.overview import Overview, Sources

PAGE = 50  # batches of a page
GRID = 1_000  # slots of a page
LISTED = 100  # rows of a list beside a batch, and of the lists of letters and events
TROUBLE = "in_trouble"
COUNTERS = ("dead_letters", "outbox")
LONGEST_WORDS = 1_024  # characters: the longest that people have in hand is the name of a file
STUDENTS = {"student_id", "confidence_score", "validation_method", "validated_by", "validated_at"}
Told = dict[str, Any]  # Any: what a template shows


class BadAddress(ValueError):
    """An address that no page of ours links to. The message says what is wrong with it."""


def text_of(params: Mapping[str, str], name: str) -> str:
    """Read a parameter of an address, without the blanks around it. Raises BadAddress."""
    return as_given(params, name).strip()


def as_given(params: Mapping[str, str], name: str) -> str:
    """Read a parameter to the letter. Raises BadAddress for what Postgres cannot hold."""
    text = params.get(name, "")
    if "\0" in text or len(text) > LONGEST_WORDS:
        raise BadAddress(f"{name} holds what is in no id, or more than {LONGEST_WORDS} characters")
    return text


@dataclass(frozen=True)
class Query:
    """Which batches: of a state, found by words, from a place on.

    `after` is either how many batches in trouble the pages before have shown, or, past these, the
    moment and the id of the last batch.
    """

    state: str = ""
    words: str = ""
    after: str = ""

    @classmethod
    def of(cls, params: Mapping[str, str]) -> "Query":
        """Read a query from an address. Raises BadAddress."""
        query = cls(text_of(params, "state"), as_given(params, "q"), text_of(params, "after"))
        if query.state not in {"", TROUBLE, *STATES}:
            raise BadAddress(f"there is no state {query.state}")
        if query.after and not query.skip and query.place is None:
            raise BadAddress("after is no place in the list of batches")
        if query.words and (query.skip or query.state == TROUBLE):
            raise BadAddress("a search is among all batches, or those of a state")
        return query

    @property
    def skip(self) -> int:
        """How many batches in trouble come before this page."""
        return int(self.after) if self.after.isascii() and self.after.isdigit() else 0

    @property
    def place(self) -> queries.Cursor | None:
        """The last batch before this page; None among those in trouble."""
        since, parted, batch_id = self.after.partition("~")
        if not parted:
            return None
        try:
            moment = since if since == "infinity" else datetime.fromisoformat(since).isoformat()
        except ValueError:
            return None
        return moment, batch_id

    def address(self, path: str = "/") -> str:
        """Write the address of this page."""
        told = {"state": self.state, "q": self.words, "after": self.after}
        given = {name: value for name, value in told.items() if value}
        return path + ("?" + urlencode(given) if given else "")

    def first(self) -> str:
        """Write the address of the first page."""
        return replace(self, after="").address()

    def only(self, state: str) -> str:
        """Write the address of the same search among the batches of a state."""
        return replace(self, state=state, after="").address()


def pick(conn: Conn, seen: Overview, query: Query) -> tuple[list[str], Query | None]:
    """Choose the batches of a page, those in trouble first; and the next page, if there is one."""
    if query.words:
        status = query.state or None
        return _cut(queries.search(conn, query.words, status, query.place, PAGE + 1), query, [])
    worst = [
        batch_id
        for batch_id in seen.troubles.by_batch
        if query.state in ("", TROUBLE, seen.troubles.states.get(batch_id, NOT_REGISTERED))
    ]
    first = worst[query.skip : query.skip + PAGE] if query.place is None else []
    if len(worst) > query.skip + PAGE and query.place is None:
        return first, replace(query, after=str(query.skip + PAGE))
    if query.state == TROUBLE:
        return first, None
    return _cut(_healthy(conn, query, worst, PAGE + 1 - len(first)), query, first)


def _healthy(conn: Conn, query: Query, worst: list[str], limit: int) -> list[queries.Cursor]:
    """Choose batches that are not in trouble, one more than there is room for."""
    if query.state == NOT_REGISTERED:
        after = query.place[1] if query.place else ""
        found = queries.waited_for(conn, after, limit + len(worst))
        return [("infinity", batch_id) for batch_id in found if batch_id not in worst][:limit]
    return queries.newest(conn, query.state or None, worst, query.place, limit)


def _cut(
    found: list[queries.Cursor], query: Query, first: list[str]
) -> tuple[list[str], Query | None]:
    """Put a page together; what is over says that there is a next one."""
    room = PAGE - len(first)
    ids = [*first, *(batch_id for _, batch_id in found[:room])]
    if len(found) <= room:
        return ids, None
    after = "~".join(found[room - 1]) if room else str(query.skip + PAGE)
    return ids, replace(query, after=after)


def rows_of(conn: Conn, seen: Overview, ids: list[str]) -> list[Told]:
    """Read the rows of a page, each with what it is in trouble for."""
    return [
        {**row, "troubles": seen.troubles.by_batch.get(row["batch_id"], [])}
        for row in queries.board(conn, ids)
    ]


def board(sources: Sources, seen: Overview, query: Query) -> Told:
    """Tell the board."""
    with sources.connection() as conn:
        ids, following = pick(conn, seen, query)
        rows = rows_of(conn, seen, ids)
    return {"rows": rows, "query": query, "following": following, "trouble": TROUBLE}


def batch(sources: Sources, seen: Overview, batch_id: str, params: Mapping[str, str]) -> Told:
    """Tell all of one batch, as it was at one moment."""
    after, chosen = text_of(params, "after"), text_of(params, "slot")
    with sources.connection() as conn, conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        told = explain(conn, sources.slots, batch_id, sources.pulse())
        slots = queries.slots_page(conn, batch_id, after, GRID + 1)
        (row,) = rows_of(conn, seen, [batch_id])
        return {
            "told": told,
            "row": row,
            "slots": slots[:GRID],
            "slots_after": slots[GRID - 1]["essay_id"] if len(slots) > GRID else None,
            "grid": {"after": after, "slot": chosen},
            "slot": _without_students(queries.slot(conn, batch_id, chosen)) if chosen else None,
            "events": queries.events(conn, batch_id, LISTED),
            "letters": queries.letters(
                conn, batch_id=batch_id, task=None, every=True, limit=LISTED
            ),
            "broken": {rule.code for rule in RULES},
            "flower": flower_url(sources.settings),
        }


def _without_students(slot: Mapping[str, Any] | None) -> Told | None:
    return {k: v for k, v in slot.items() if k not in STUDENTS} if slot else None


def letters(sources: Sources, params: Mapping[str, str]) -> Told:
    """Tell the dead letters; `every` those that were replayed or discarded, too."""
    chosen = {name: text_of(params, name) for name in ("batch", "task", "code", "before", "all")}
    before = _number(chosen["before"])
    with sources.connection() as conn:
        found = queries.letters(
            conn,
            batch_id=chosen["batch"] or None,
            task=chosen["task"] or None,
            code=chosen["code"] or None,
            every=bool(chosen["all"]),
            before=before,
            limit=LISTED + 1,
        )
    return {
        "letters": found[:LISTED],
        "chosen": chosen,
        "following": _address(chosen, before=found[LISTED - 1]["id"])
        if len(found) > LISTED
        else None,
        "flower": flower_url(sources.settings),
    }


def outbox(sources: Sources, params: Mapping[str, str]) -> Told:
    """Tell the events that wait for delivery, the oldest first."""
    chosen = {name: text_of(params, name) for name in ("batch", "type", "failing")}
    with sources.connection() as conn:
        found = queries.undelivered(
            conn,
            LISTED + 1,
            batch_id=chosen["batch"] or None,
            event_type=chosen["type"] or None,
            failing=bool(chosen["failing"]),
        )
    return {"events": found[:LISTED], "more": len(found) > LISTED, "chosen": chosen}


def flower_url(settings: Settings) -> str:
    """Tell where Flower is; on every interface means: here."""
    host = settings.flower_host
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{settings.flower_port}"  # noqa: S104


def _number(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadAddress(f"{text} is no number")
    return int(text)


def _address(chosen: Mapping[str, str], **more: object) -> str:
    given = {name: str(value) for name, value in {**chosen, **more}.items() if value}
    return "?" + urlencode(given)
