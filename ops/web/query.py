"""Which batches the board lists, page after page."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from core.db.connection import Conn
from core.states import OPEN
from ops.queries import batches
from ops.sorting import Sort
from ops.web.addresses import BadAddress, Headings, Span, address, as_given, sort_of, text_of
from ops.web.rendering import NOT_REGISTERED, STATES
from ops.web.summary import Summary

PAGE = 50  # batches of a page
SORTED = 10_000  # at most so many that a search finds, or that nobody registered, are sorted
STUCK = "in_trouble"  # in addresses, among the states
WITH_DEADLINE = {"", STUCK, *OPEN}  # of other states no batch has a deadline


@dataclass(frozen=True)
class Query:
    """Which batches a page lists: of a state, found by a search, registered in a range of time.

    Unless somebody chose an order or a time, stuck batches come first: `after` is a number while
    the pages list these (how many come before), then the cursor `moment~batch_id` of the last
    batch. In a chosen order it is the id of the last batch. An age stays as written: it moves on.
    """

    state: str = ""
    search: str = ""
    after: str = ""
    sort: Sort | None = None
    since: str = ""
    until: str = ""

    @classmethod
    def of(cls, params: Mapping[str, str]) -> "Query":
        """Read a query from an address. Raises BadAddress."""
        query = cls(
            text_of(params, "state"),
            as_given(params, "q"),
            text_of(params, "after"),
            sort_of(params, batches.BATCHES.keys),
            text_of(params, "from"),
            text_of(params, "to"),
        )
        if query.state not in {"", STUCK, *STATES}:
            raise BadAddress(f"there is no state {query.state}")
        query.span.checked()
        if query.search and query.state == STUCK:
            raise BadAddress("a search covers all batches, or those of a state, not the stuck ones")
        if query.after and not query.order and not query.follows_on():
            raise BadAddress("after is not a cursor of the list of batches")
        return query

    def follows_on(self) -> bool:
        """Tell whether `after` is a cursor of the order of the page's own."""
        return self.cursor is not None or (self.skip > 0 and not self.search)

    @property
    def skip(self) -> int:
        """How many stuck batches come before this page."""
        return int(self.after) if self.after.isascii() and self.after.isdigit() else 0

    @property
    def cursor(self) -> batches.Cursor | None:
        """The last batch before this page; None among the stuck ones."""
        since, separator, batch_id = self.after.partition("~")
        if not separator:
            return None
        try:
            moment = since if since == "infinity" else datetime.fromisoformat(since).isoformat()
        except ValueError:
            return None
        return moment, batch_id

    @property
    def span(self) -> Span:
        """The range of time as of now; it may have become empty meanwhile."""
        return Span.of({"from": self.since, "to": self.until})

    @property
    def order(self) -> Sort | None:
        """By what the batches are sorted, those of a time by their age; None: stuck ones first."""
        return self.sort or (Sort("age") if self.since or self.until else None)

    @property
    def params(self) -> dict[str, str]:
        """The parameters of its address, without the order and the page."""
        return {"state": self.state, "q": self.search, "from": self.since, "to": self.until}

    def headings(self) -> Headings:
        hidden = set() if self.state in WITH_DEADLINE else {"deadline"}
        return Headings(self.order, "/", self.params, batches.BATCHES.keys.keys() - hidden)

    def address(self, path: str = "/") -> str:
        return address(path, {**self.params, "sort": self.sort, "after": self.after})

    def stuck_first(self) -> str:
        """Return the address of the same batches of all times, in the order of the page's own."""
        return replace(self, sort=None, since="", until="", after="").address()

    def first_page(self) -> str:
        return replace(self, after="").address()

    def only(self, state: str) -> str:
        """Return the address of the same search among the batches of a state."""
        by_deadline = self.sort is not None and self.sort.column == "deadline"
        sort = None if by_deadline and state not in WITH_DEADLINE else self.sort
        return replace(self, state=state, sort=sort, after="").address()


def page_of(conn: Conn, summary: Summary, query: Query) -> tuple[list[str], Query | None]:
    """Return the batch ids of a page, and the query of the next page."""
    if query.order:
        return _sorted(conn, summary, query, query.order)
    if query.search:
        status = query.state or None
        return _cut(batches.search(conn, query.search, status, query.cursor, PAGE + 1), query, [])
    stuck = [
        batch_id
        for batch_id in summary.stuck.violations
        if query.state in ("", STUCK, summary.stuck.states.get(batch_id, NOT_REGISTERED))
    ]
    first = stuck[query.skip : query.skip + PAGE] if query.cursor is None else []
    if len(stuck) > query.skip + PAGE and query.cursor is None:
        return first, replace(query, after=str(query.skip + PAGE))
    if query.state == STUCK:
        return first, None
    return _cut(_not_stuck(conn, query, stuck, PAGE + 1 - len(first)), query, first)


def _not_stuck(conn: Conn, query: Query, stuck: list[str], limit: int) -> list[batches.Cursor]:
    if query.state == NOT_REGISTERED:
        after = query.cursor[1] if query.cursor else ""
        found = batches.waited_for(conn, after, limit + len(stuck))
        return [("infinity", batch_id) for batch_id in found if batch_id not in stuck][:limit]
    return batches.newest(conn, query.state or None, stuck, query.cursor, limit)


def _cut(
    found: list[batches.Cursor], query: Query, first: list[str]
) -> tuple[list[str], Query | None]:
    """Fill a page; a batch more than it holds means that there is a next one."""
    room = PAGE - len(first)
    ids = [*first, *(batch_id for _, batch_id in found[:room])]
    if len(found) <= room:
        return ids, None
    after = "~".join(found[room - 1]) if room else str(query.skip + PAGE)
    return ids, replace(query, after=after)


def _sorted(
    conn: Conn, summary: Summary, query: Query, order: Sort
) -> tuple[list[str], Query | None]:
    span, known = query.span, query.state not in ("", STUCK)
    ids = batches.sorted_batches(
        conn,
        order,
        among=_among(conn, summary, query),
        status=query.state if known else None,
        since=span.since,
        until=span.until,
        after=query.after or None,
        limit=PAGE + 1,
    )
    return ids[:PAGE], replace(query, after=ids[PAGE - 1]) if len(ids) > PAGE else None


def _among(conn: Conn, summary: Summary, query: Query) -> list[str] | None:
    """List the batches that a page chooses from; None: all that are registered."""
    if query.search:
        found = batches.search(conn, query.search, query.state or None, None, SORTED)
        return [batch_id for _, batch_id in found]
    if query.state == STUCK:
        return list(summary.stuck.violations)
    if query.state == NOT_REGISTERED:
        return batches.waited_for(conn, "", SORTED)
    return None
