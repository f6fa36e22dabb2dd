"""What the pages show: the board, one batch, dead letters, the outbox."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from core.db.connection import Conn
from core.retention import kept_until
from core.rules import RULES
from core.settings import Settings
from ops import queries
from ops.explain.explanation import explain
from ops.web.connections import Connections
from ops.web.rendering import NOT_REGISTERED, STATES
from ops.web.summary import Summary

PAGE = 50  # batches of a page
GRID = 1_000  # slots of a page
LISTED = 100  # dead letters or events of a page
BODY_SHOWN = 64 * 1024  # characters of a dead letter's body
STUCK = "in_trouble"  # in addresses, among the states
COUNTERS = ("dead_letters", "outbox")
MAX_LENGTH = 1_024  # characters: the longest text that people search by is a file name
STUDENTS = {"student_id", "confidence_score", "validation_method", "validated_by", "validated_at"}
Context = dict[str, Any]  # Any: what a template shows


class BadAddress(ValueError):
    """The address has a parameter that no page of ours links to."""


def text_of(params: Mapping[str, str], name: str) -> str:
    """Read a parameter of an address, without surrounding blanks. Raises BadAddress."""
    return as_given(params, name).strip()


def as_given(params: Mapping[str, str], name: str) -> str:
    """Read a parameter unchanged. Raises BadAddress for text that Postgres cannot hold."""
    text = params.get(name, "")
    if "\0" in text or len(text) > MAX_LENGTH:
        raise BadAddress(f"{name} holds a NUL, or more than {MAX_LENGTH} characters")
    return text


@dataclass(frozen=True)
class Query:
    """Which batches a page lists: of a state, found by a search, after a cursor.

    `after` is a number while the pages list stuck batches: how many of them come before. Past
    these it is the cursor `moment~batch_id` of the last batch.
    """

    state: str = ""
    search: str = ""
    after: str = ""

    @classmethod
    def of(cls, params: Mapping[str, str]) -> "Query":
        """Read a query from an address. Raises BadAddress."""
        query = cls(text_of(params, "state"), as_given(params, "q"), text_of(params, "after"))
        if query.state not in {"", STUCK, *STATES}:
            raise BadAddress(f"there is no state {query.state}")
        if query.after and not query.skip and query.cursor is None:
            raise BadAddress("after is not a cursor of the list of batches")
        if query.search and (query.skip or query.state == STUCK):
            raise BadAddress("a search covers all batches, or those of a state, not the stuck ones")
        return query

    @property
    def skip(self) -> int:
        """How many stuck batches come before this page."""
        return int(self.after) if self.after.isascii() and self.after.isdigit() else 0

    @property
    def cursor(self) -> queries.Cursor | None:
        """The last batch before this page; None among the stuck ones."""
        since, separator, batch_id = self.after.partition("~")
        if not separator:
            return None
        try:
            moment = since if since == "infinity" else datetime.fromisoformat(since).isoformat()
        except ValueError:
            return None
        return moment, batch_id

    def address(self, path: str = "/") -> str:
        params = _given({"state": self.state, "q": self.search, "after": self.after})
        return path + ("?" + urlencode(params) if params else "")

    def first_page(self) -> str:
        return replace(self, after="").address()

    def only(self, state: str) -> str:
        """Return the address of the same search among the batches of a state."""
        return replace(self, state=state, after="").address()


def page_of(conn: Conn, summary: Summary, query: Query) -> tuple[list[str], Query | None]:
    """Return the batch ids of a page, stuck ones first, and the query of the next page."""
    if query.search:
        status = query.state or None
        return _cut(queries.search(conn, query.search, status, query.cursor, PAGE + 1), query, [])
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


def _not_stuck(conn: Conn, query: Query, stuck: list[str], limit: int) -> list[queries.Cursor]:
    if query.state == NOT_REGISTERED:
        after = query.cursor[1] if query.cursor else ""
        found = queries.waited_for(conn, after, limit + len(stuck))
        return [("infinity", batch_id) for batch_id in found if batch_id not in stuck][:limit]
    return queries.newest(conn, query.state or None, stuck, query.cursor, limit)


def _cut(
    found: list[queries.Cursor], query: Query, first: list[str]
) -> tuple[list[str], Query | None]:
    """Fill a page; a batch more than it holds means that there is a next one."""
    room = PAGE - len(first)
    ids = [*first, *(batch_id for _, batch_id in found[:room])]
    if len(found) <= room:
        return ids, None
    after = "~".join(found[room - 1]) if room else str(query.skip + PAGE)
    return ids, replace(query, after=after)


def rows_of(conn: Conn, summary: Summary, ids: list[str]) -> list[Context]:
    """Read the rows of a page, each with the rules that it violates."""
    return [
        {**row, "violations": summary.stuck.violations.get(row["batch_id"], [])}
        for row in queries.board(conn, ids)
    ]


def board(connections: Connections, summary: Summary, query: Query) -> Context:
    with connections.postgres() as conn:
        ids, next_page = page_of(conn, summary, query)
        rows = rows_of(conn, summary, ids)
    return {"rows": rows, "query": query, "next_page": next_page, "stuck": STUCK}


def batch(
    connections: Connections, summary: Summary, batch_id: str, params: Mapping[str, str]
) -> Context:
    """Read everything about one batch in one snapshot."""
    after, chosen = text_of(params, "after"), text_of(params, "slot")
    with connections.postgres() as conn, conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        receivers = connections.event_queues.receivers()
        explanation = explain(conn, connections.slots, batch_id, connections.heartbeat(), receivers)
        slots = queries.slots_page(conn, batch_id, after, GRID + 1)
        (row,) = rows_of(conn, summary, [batch_id])
        return {
            "explanation": explanation,
            "row": row,
            "slots": slots[:GRID],
            "slots_after": slots[GRID - 1]["essay_id"] if len(slots) > GRID else None,
            "grid": {"after": after, "slot": chosen},
            "slot": _without_students(queries.slot(conn, batch_id, chosen)) if chosen else None,
            "without_slot": queries.without_slot(conn, batch_id, LISTED),
            "events": queries.events(conn, batch_id, LISTED),
            "letters": queries.letters(
                conn, batch_id=batch_id, task=None, every=True, limit=LISTED
            ),
            "rules": {rule.code for rule in RULES},
            "kept_until": kept_until(
                explanation.sides["postgres"], connections.settings.retention_days
            ),
            "flower": flower_url(connections.settings),
        }


def _without_students(slot: Mapping[str, Any] | None) -> Context | None:
    return {k: v for k, v in slot.items() if k not in STUDENTS} if slot else None


def dead_letters(connections: Connections, params: Mapping[str, str]) -> Context:
    chosen = {name: text_of(params, name) for name in ("batch", "task", "code", "before", "all")}
    before = _number(chosen["before"])
    with connections.postgres() as conn:
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
        "next_page": _address(chosen, before=found[LISTED - 1]["id"])
        if len(found) > LISTED
        else None,
        "flower": flower_url(connections.settings),
    }


def dead_letter(connections: Connections, number: str) -> Context | None:
    """Read one dead letter with its body; None: there is none of this number."""
    with connections.postgres() as conn:
        found = queries.letter(conn, _number(number) or 0)
    if found is None:
        return None
    written = json.dumps(found["body"], indent=2, ensure_ascii=False)
    body = written.encode(errors="backslashreplace").decode()  # it may hold half of a pair
    return {
        "letter": found,
        "body": body[:BODY_SHOWN],
        "left_out": max(0, len(body) - BODY_SHOWN),
        "flower": flower_url(connections.settings),
    }


def outbox(connections: Connections, params: Mapping[str, str]) -> Context:
    """Read the events that wait for delivery, the oldest first."""
    chosen = {name: text_of(params, name) for name in ("batch", "type", "failing")}
    with connections.postgres() as conn:
        found = queries.undelivered(
            conn,
            LISTED + 1,
            batch_id=chosen["batch"] or None,
            event_type=chosen["type"] or None,
            failing=bool(chosen["failing"]),
        )
    return {"events": found[:LISTED], "more": len(found) > LISTED, "chosen": chosen}


def flower_url(settings: Settings) -> str:
    """Return the address of Flower; on every interface includes this host."""
    host = settings.flower_host
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{settings.flower_port}"  # noqa: S104


def _number(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadAddress(f"{text} is no number")
    return int(text)


def _address(chosen: Mapping[str, str], **more: object) -> str:
    return "?" + urlencode(_given({**chosen, **more}))


def _given(params: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in params.items() if value}
