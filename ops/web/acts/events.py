"""Deliver events again."""

import shlex
from datetime import UTC, datetime

from core.db.connection import Conn
from ops import acting
from ops.moments import moment_of
from ops.queries.actions import By
from ops.queries.outbox import Events, count_delivered
from ops.web.acts.plan import Fields, Plan, Refused, Seen, Tools, silently, wrong
from ops.web.rendering import batch_url
from ops.wording import number, utc

AT_ONCE = 10_000  # events that one click lets the relay deliver again
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def plan_republish(seen: Seen, given: Fields) -> Plan:
    batch_id, event_type = given.get("batch") or "", given.get("type") or ""
    back = batch_url(batch_id) if batch_id else "/outbox"
    fields = {name: given[name] for name in ("batch", "type") if given.get(name)}
    title = f"Deliver events of batch {batch_id} again" if batch_id else "Deliver events again"
    since = given.get("since", "").strip()
    if not since and not batch_id:
        return Plan(title, back, fields, asks="republish", shown={"type": event_type})
    meant = _events(seen.conn, given)
    total = count_delivered(seen.conn, meant)
    if not total:
        where = "no event that was delivered matches"
        raise Refused(404, "There is nothing to deliver again", where, "go back and change it")
    if total > AT_ONCE:
        command = ["els", "outbox", "republish", "--since", meant.since.isoformat()]
        chosen = [word for name, value in fields.items() for word in (f"--{name}", value)]
        title = f"{total} events are too many for the page"
        reason = f"it delivers at most {AT_ONCE} again at once"
        raise Refused(409, title, reason, shlex.join([*command, *chosen]))
    of_type = f" of type {event_type}" if event_type else ""
    written = f", written since {utc(meant.since)}" if since else ""
    will = [
        f"{number(total, 'event')}{of_type}{written}: the relay delivers them again.",
        "Receivers know repeats by the event's id. The first delivery stays noted.",
    ]
    if since:
        fields["since"] = meant.since.isoformat()
    return Plan(title, back, fields, will, "Deliver again")


def republish(tools: Tools, given: Fields, by: By) -> str:
    with tools.acting.pool.connection() as conn:
        total = acting.republish(conn, _events(conn, given), by, silently)
    return f"{number(total, 'event')} queued; the relay delivers them again within seconds."


def _events(conn: Conn, given: Fields) -> Events:
    since = given.get("since", "").strip()
    try:
        moment = moment_of(since) if since else BEGINNING
    except ValueError as error:
        raise wrong("the moment", f"{error}; write 2h, 3d, or 2026-12-01 12:00") from error
    row = conn.execute("SELECT now() AS now").fetchone()
    assert row is not None
    return Events(moment, row["now"], given.get("batch") or None, given.get("type") or None)
