"""What the pages show: the board, one batch, dead letters, the outbox."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from core.db.connection import Conn
from core.settings import Settings
from ops.alarms import all_rules
from ops.explain.asking import with_broker
from ops.explain.causes import TITLES
from ops.explain.explanation import explain
from ops.queries import batches
from ops.queries.dead_letters import LETTERS, NEWEST, letter, letters
from ops.queries.outbox import EVENTS, OLDEST, events, undelivered
from ops.queries.retention import kept_until
from ops.sorting import Sort
from ops.web.addresses import BadAddress, Headings, Span, address, sort_of, text_of
from ops.web.connections import Connections
from ops.web.query import STUCK, Query, page_of
from ops.web.summary import Summary
from ops.web.timeline import with_files

GRID = 1_000  # slots of a page
LISTED = 100  # dead letters or events of a page
BODY_SHOWN = 64 * 1024  # characters of a dead letter's body
COUNTERS = ("dead_letters", "outbox")
STUDENTS = {"student_id", "confidence_score", "validation_method", "validated_by", "validated_at"}
Context = dict[str, Any]  # Any: what a template shows


def rows_of(conn: Conn, summary: Summary, ids: list[str]) -> list[Context]:
    """Read the rows of a page, each with the rules that it violates."""
    return [
        {**row, "violations": summary.stuck.violations.get(row["batch_id"], [])}
        for row in batches.board(conn, ids)
    ]


def board(connections: Connections, summary: Summary, query: Query) -> Context:
    with connections.postgres() as conn:
        ids, next_page = page_of(conn, summary, query)
        rows = rows_of(conn, summary, ids)
    return {
        "rows": rows,
        "query": query,
        "headings": query.headings(),
        "chosen": query.params,
        "span": query.span,
        "next_page": next_page,
        "stuck": STUCK,
    }


def batch(
    connections: Connections, summary: Summary, batch_id: str, params: Mapping[str, str]
) -> Context:
    """Read everything about one batch in one snapshot, and what the broker has of it."""
    after, chosen = text_of(params, "after"), text_of(params, "slot")
    with connections.postgres() as conn, conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        receivers = connections.event_queues.receivers()
        heartbeat, timeline = connections.heartbeat(), batches.timeline(conn, batch_id, TITLES)
        explanation = explain(conn, connections.slots, batch_id, heartbeat, receivers, timeline)
        slots = batches.slots_page(conn, batch_id, after, GRID + 1)
        without_slot = batches.without_slot(conn, batch_id, LISTED)
        (row,) = rows_of(conn, summary, [batch_id])
        shown = {
            "row": row,
            "slots": slots[:GRID],
            "slots_after": slots[GRID - 1]["essay_id"] if len(slots) > GRID else None,
            "grid": {"after": after, "slot": chosen},
            "slot": _without_students(batches.slot(conn, batch_id, chosen)) if chosen else None,
            "without_slot": without_slot,
            "timeline": with_files(timeline, slots, without_slot),
            "events": events(conn, batch_id, LISTED),
            "letters": letters(conn, batch_id=batch_id, task=None, every=True, limit=LISTED),
            "rules": {rule.code for rule in all_rules()},
            "kept_until": kept_until(
                explanation.sides["postgres"], connections.settings.retention_days
            ),
            "flower": flower_url(connections.settings),
        }
    explanation = with_broker(explanation, connections.settings)
    return {**shown, "explanation": explanation}


def _without_students(slot: Mapping[str, Any] | None) -> Context | None:
    return {k: v for k, v in slot.items() if k not in STUDENTS} if slot else None


def dead_letters(connections: Connections, params: Mapping[str, str]) -> Context:
    """Read a page of dead letters, the newest first unless somebody sorts them."""
    chosen, span = _chosen(params, "batch", "task", "code", "all"), Span.of(params).checked()
    sort, after = sort_of(params, LETTERS.keys), _number(text_of(params, "after"))
    with connections.postgres() as conn:
        found = letters(
            conn,
            batch_id=chosen["batch"] or None,
            task=chosen["task"] or None,
            code=chosen["code"] or None,
            every=bool(chosen["all"]),
            since=span.since,
            until=span.until,
            sort=sort or NEWEST,
            after=after,
            limit=LISTED + 1,
        )
    headings = Headings(sort or NEWEST, "/dead-letters", chosen, LETTERS.keys)
    return {
        "letters": found[:LISTED],
        "flower": flower_url(connections.settings),
        **_listing(headings, sort, chosen, span, found, after),
    }


def dead_letter(connections: Connections, number: str) -> Context | None:
    """Read one dead letter with its body; None: there is none of this number."""
    with connections.postgres() as conn:
        found = letter(conn, _number(number) or 0)
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
    """Read a page of the events that wait, the oldest first unless somebody sorts them."""
    chosen, span = _chosen(params, "batch", "type", "failing"), Span.of(params).checked()
    sort, after = sort_of(params, EVENTS.keys), _uuid(text_of(params, "after"))
    with connections.postgres() as conn:
        found = undelivered(
            conn,
            LISTED + 1,
            batch_id=chosen["batch"] or None,
            event_type=chosen["type"] or None,
            failing=bool(chosen["failing"]),
            since=span.since,
            until=span.until,
            sort=sort or OLDEST,
            after=after,
        )
    headings = Headings(sort or OLDEST, "/outbox", chosen, EVENTS.keys)
    return {"events": found[:LISTED], **_listing(headings, sort, chosen, span, found, after)}


def _chosen(params: Mapping[str, str], *names: str) -> dict[str, str]:
    """Read the filters of a list, those of the time too."""
    return {name: text_of(params, name) for name in (*names, "from", "to")}


def _listing(
    headings: Headings,
    sort: Sort | None,
    chosen: Mapping[str, str],
    span: Span,
    found: Sequence[Mapping[str, Any]],
    after: object,
) -> Context:
    """Describe a page of a list: its headings, its filters, and the pages beside it."""
    here = {**chosen, "sort": sort}
    more = len(found) > LISTED
    return {
        "headings": headings,
        "sort": sort,
        "chosen": chosen,
        "span": span,
        "filtered": any(value for name, value in chosen.items() if name != "all"),
        "first_page": address(headings.path, here) if after else None,
        "next_page": address(headings.path, {**here, "after": found[LISTED - 1]["id"]})
        if more
        else None,
    }


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


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError as error:
        raise BadAddress(f"{text} is no event of this list") from error
