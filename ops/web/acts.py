"""The actions of the page: what each will do, in words for its confirmation, and the doing."""

import json
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from core import db
from core.db.actions import By
from core.db.connection import Conn, Row
from core.states import BatchStatus, OnDeadline
from ops import letters, queries
from ops.acting import Acting, republish
from ops.client import Sender
from ops.letters import Done, Pace
from ops.moments import from_now, moment_of
from ops.output import age, utc
from ops.queries import Events, Letters
from ops.web.rendering import NOT_REGISTERED, STATES, batch_url

Fields = Mapping[str, str]  # of a form or an address
OPEN = (BatchStatus.AWAITING_CONTENT_VALIDATION, BatchStatus.AWAITING_STUDENT_VALIDATION)
AT_ONCE = 1_000  # letters that one click sends or settles: some seconds
EVENTS_AT_ONCE = 10_000
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
FILTERS = ("batch", "task", "code")


@dataclass(eq=False)
class Refused(Exception):
    """The page does not act; `step` says what a person can do."""

    status: int
    title: str
    reason: str
    step: str


@dataclass(frozen=True)
class Plan:
    """What an action will do; `fields` are what its form sends back, unchanged.

    `asks` names what is still missing: the form asks for it first.
    """

    title: str
    back: str  # the address of what it changes
    fields: Fields
    will: Sequence[str] = ()
    button: str = ""
    needs_reason: bool = False
    asks: str = ""
    shown: Mapping[str, Any] = field(default_factory=dict)  # Any: what the form asks about


@dataclass(frozen=True)
class Seen:
    """What the page knows when it plans: Postgres, and which batches break which rules."""

    conn: Conn
    broken: Mapping[str, Collection[str]]  # titles of rules, by batch


@dataclass(frozen=True)
class Tools:
    """What the page acts with."""

    acting: Acting
    sender: Sender


@dataclass(frozen=True)
class Action:
    """`act` returns a line that says what was done. Both raise Refused; `act` also Refusal."""

    plan: Callable[[Seen, Fields], Plan]
    act: Callable[[Tools, Fields, By], str]


# --- batches -------------------------------------------------------------------------------------


def plan_cancel(seen: Seen, given: Fields) -> Plan:
    row = _batch(seen.conn, given)
    _refuse_closed(row, "cancelled", sealed_too=False)
    will = [
        f"It takes no more contents, and its {row['open']} open slots are cancelled.",
        f"Its {row['assigned']} assigned contents stay where they are.",
        "Receivers get BatchCancelled, with the reason that you give.",
        "Nobody can undo this.",
    ]
    batch_id = row["batch_id"]
    title = f"Cancel batch {batch_id}"
    back = batch_url(batch_id)
    return Plan(title, back, {"batch": batch_id}, will, "Cancel the batch", needs_reason=True)


def cancel(tools: Tools, given: Fields, by: By) -> str:
    tools.acting.cancel(given["batch"], by)
    return "This batch was cancelled."


def plan_amend(seen: Seen, given: Fields) -> Plan:
    row = _batch(seen.conn, given)
    _refuse_closed(row, "amended", sealed_too=True)
    batch_id = row["batch_id"]
    terms = db.batches.terms(seen.conn, batch_id)
    left, at_deadline, prompt = _amendment(given)
    fields, will = {"batch": batch_id}, []
    if left is not None:
        moment = datetime.now(UTC) + left
        fields["deadline"] = moment.isoformat(timespec="seconds")
        will.append(
            f"The deadline {utc(row['deadline_at'])} becomes {utc(moment)},"
            f" in {age(left.total_seconds())}."
        )
    if at_deadline is not None:
        fields["on_deadline"] = at_deadline
        will.append(f"At the deadline: {terms['on_deadline']} becomes {at_deadline}.")
    if prompt is not None:
        fields["prompt_ref"] = json.dumps(prompt, ensure_ascii=False)
        before = json.dumps(terms["student_prompt_ref"], ensure_ascii=False)
        will.append(f"The prompt {before} becomes {fields['prompt_ref']}.")
    plan = Plan(f"Amend batch {batch_id}", batch_url(batch_id), fields, will, "Amend the batch")
    if not will:
        shown = {"deadline_at": row["deadline_at"], "on_deadline": terms["on_deadline"]}
        return replace(plan, asks="amend", shown=shown)
    return replace(plan, needs_reason=True)


def amend(tools: Tools, given: Fields, by: By) -> str:
    left, at_deadline, prompt = _amendment(given)
    changes = {
        "deadline_s": left.total_seconds() if left is not None else None,
        "on_deadline": at_deadline,
        "student_prompt_ref": prompt,
    }
    tools.acting.amend(
        given["batch"], by, **{name: value for name, value in changes.items() if value is not None}
    )
    return "This batch was amended."


def plan_reconcile(seen: Seen, given: Fields) -> Plan:
    batch_id = given.get("batch")
    if not batch_id:
        found = len(seen.broken)
        will = [
            f"The sweep runs now over every batch, and repairs what it can: {found} break a rule."
        ]
        return Plan("Run the sweep now", "/", {}, will, "Run the sweep")
    broken = seen.broken.get(batch_id, ())
    will = [
        "The sweep checks this batch now by every rule, and repairs what it can.",
        *(f"It breaks a rule now: {title}." for title in broken),
    ]
    if not broken:
        will.append("It breaks no rule now, so probably nothing changes.")
    title, back = f"Reconcile batch {batch_id}", batch_url(batch_id)
    return Plan(title, back, {"batch": batch_id}, will, "Run the sweep")


def reconcile(tools: Tools, given: Fields, by: By) -> str:
    results = tools.acting.reconcile(given.get("batch") or None, by)
    if results is None:
        raise Refused(
            409,
            "Another sweep is at work",
            "nothing was done",
            "go back, and try again in a moment",
        )
    mended = sum(each.mended for each in results)
    left = len(results) - mended
    return f"The sweep ran: it found {len(results)}, mended {mended}, and left {left}."


def _batch(conn: Conn, given: Fields) -> Row:
    batch_id = given.get("batch", "")
    (row,) = queries.board(conn, [batch_id])
    if row["status"] == NOT_REGISTERED:
        raise Refused(
            404,
            f"Batch {batch_id} is not registered",
            "there is nothing to change",
            "check the id on the board",
        )
    return row


def _refuse_closed(row: Row, word: str, *, sealed_too: bool) -> None:
    sealed = sealed_too and row["completed_at"]
    if row["status"] not in OPEN or sealed:
        state = "sealed" if sealed else STATES[row["status"]].lower()
        raise Refused(
            409,
            f"This batch cannot be {word}",
            f"batch {row['batch_id']} is {state}",
            "look at its page",
        )


def _amendment(
    given: Fields,
) -> tuple[timedelta | None, str | None, dict[str, Any] | None]:  # Any: JSON
    """Read what changes: the time to the deadline, what happens there, the prompt."""
    deadline, prompt = given.get("deadline", "").strip(), given.get("prompt_ref", "").strip()
    at_deadline = given.get("on_deadline") or None
    if at_deadline and at_deadline not in [each.value for each in OnDeadline]:
        raise _wrong("the deadline", f"{at_deadline} is neither fail nor proceed")
    try:
        left = from_now(deadline) if deadline else None
    except ValueError as error:
        raise _wrong("the deadline", f"{error}; write 3d, 12h, or 2026-12-01 12:00") from error
    return left, at_deadline, _json_object(prompt) if prompt else None


def _json_object(text: str) -> dict[str, Any]:  # Any: JSON
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong("the prompt", f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _wrong("the prompt", "not a JSON object")
    return value


def _wrong(what: str, reason: str) -> Refused:
    return Refused(400, f"The page does not understand {what}", reason, "go back and correct it")


# --- dead letters --------------------------------------------------------------------------------


def plan_replay(seen: Seen, given: Fields) -> Plan:
    button = "Send again"
    if "number" in given:
        row = _letter(seen.conn, given)
        if problem := letters.why_not(row):
            raise Refused(409, "This dead letter cannot be sent again", problem, "go back")
        will = [f"The message goes to {row['task']} again, unchanged, under the same event id."]
        if row["code"]:
            will.append(f"It failed with {row['code']}: {row['message']}")
        will.append("If it fails again, that is a new dead letter.")
        return _plan_of_one("Send", row, will, button)
    meant, total, will = _meant(seen.conn, given, "replay")
    will += [
        "They are sent again, the oldest first, unchanged.",
        "Those that cannot be sent again are skipped; one that fails again is a new dead letter.",
    ]
    title = f"Send {_count(total, 'dead letter')} again"
    return Plan(title, _list(given), _fields(meant), will, button)


def replay(tools: Tools, given: Fields, by: By) -> str:
    with tools.acting.pool.connection() as conn:
        done = letters.replay(conn, tools.sender, _chosen(given), by, Pace(None), _silently)
    _refuse_held(done)
    skipped = f" {len(done.skipped)} skipped: they cannot be sent again." if done.skipped else ""
    return f"{_count(len(done.numbers), 'dead letter')} sent again.{skipped}"


def plan_discard(seen: Seen, given: Fields) -> Plan:
    button = "Discard"
    if "number" in given:
        row = _letter(seen.conn, given)
        if row["discarded_at"]:
            raise Refused(
                409,
                "This dead letter is discarded already",
                f"since {utc(row['discarded_at'])}",
                "go back",
            )
        will = [
            f"Its message for {row['task']} is not carried out, and nobody waits for it any more.",
            "The letter stays until it is purged; until then it can still be sent again.",
        ]
        return _plan_of_one("Discard", row, will, button)
    meant, total, will = _meant(seen.conn, given, "discard")
    will.append("Their messages are not carried out. The letters stay until they are purged.")
    title = f"Discard {_count(total, 'dead letter')}"
    return Plan(title, _list(given), _fields(meant), will, button, needs_reason=True)


def discard(tools: Tools, given: Fields, by: By) -> str:
    with tools.acting.pool.connection() as conn:
        done = letters.discard(conn, _chosen(given), by, _silently)
    _refuse_held(done)
    return f"{_count(len(done.numbers), 'dead letter')} discarded."


def _plan_of_one(verb: str, row: Row, will: list[str], button: str) -> Plan:
    number = row["id"]
    title = f"{verb} {letters.target(number)}" + (" again" if verb == "Send" else "")
    about = f"Batch: {row['batch_id']}." if row["batch_id"] else "It names no batch."
    fields = {"number": str(number)}
    return Plan(title, f"/dead-letters/{number}", fields, [*will, about], button)


def _letter(conn: Conn, given: Fields) -> Row:
    """Read a letter that nobody has sent again."""
    row = queries.letter(conn, _number(given["number"]))
    if row is None:
        title = f"There is no dead letter {given['number']}"
        raise Refused(404, title, "it may have been purged", "look at the list")
    if row["replayed_at"]:
        raise Refused(
            409,
            "This dead letter was sent again already",
            f"at {utc(row['replayed_at'])}",
            f"to send it once more: els dead-letters replay {row['id']}",
        )
    return row


def _meant(conn: Conn, given: Fields, command: str) -> tuple[Letters, int, list[str]]:
    """Say which letters a filter means, those of now and none that come later, and how many."""
    meant = _chosen(given)
    kinds = queries.count_letters(conn, meant)
    total = sum(row["n"] for row in kinds)
    if not total:
        title = "No dead letter waits that matches the filter"
        raise Refused(404, title, "there is nothing to do", "look at the list")
    if total > AT_ONCE:
        chosen = [
            word for name in FILTERS if given.get(name) for word in (f"--{name}", given[name])
        ]
        raise Refused(
            409,
            f"{total} dead letters are too many for the page",
            f"it acts on at most {AT_ONCE} at once",
            shlex.join(["els", "dead-letters", command, *(chosen or ["--all"])]),
        )
    if meant.up_to is None:
        meant = replace(meant, up_to=max(row["last"] for row in kinds))
    return (
        meant,
        total,
        [f"{_count(row['n'], 'letter')}: {row['task']}, {row['code']}" for row in kinds],
    )


def _chosen(given: Fields) -> Letters:
    if "number" in given:
        return Letters([_number(given["number"])])
    batch_id, task, code = (given.get(name) or None for name in FILTERS)
    up_to = _number(given["up_to"]) if "up_to" in given else None
    return Letters(None, batch_id, task, code, up_to=up_to)


def _fields(meant: Letters) -> Fields:
    named = {"batch": meant.batch_id, "task": meant.task, "code": meant.code, "up_to": meant.up_to}
    return {name: str(value) for name, value in named.items() if value is not None}


def _list(given: Fields) -> str:
    chosen = {name: given[name] for name in FILTERS if given.get(name)}
    return "/dead-letters" + ("?" + urlencode(chosen) if chosen else "")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _wrong("the number", f"{text} is no number of a dead letter")
    return int(text)


def _refuse_held(done: Done) -> None:
    if not done.numbers and not done.skipped:
        title, step = "Nothing was done", "go back, and look at what became of it"
        raise Refused(409, title, "somebody else acts on this, or has just done so", step)


def _silently(done: int) -> None:
    """Report no progress: the browser waits."""


# --- events --------------------------------------------------------------------------------------


def plan_republish(seen: Seen, given: Fields) -> Plan:
    batch_id, event_type = given.get("batch") or "", given.get("type") or ""
    back = batch_url(batch_id) if batch_id else "/outbox"
    fields = {name: given[name] for name in ("batch", "type") if given.get(name)}
    title = f"Deliver events of batch {batch_id} again" if batch_id else "Deliver events again"
    since = given.get("since", "").strip()
    if not since and not batch_id:
        return Plan(title, back, fields, asks="republish", shown={"type": event_type})
    meant = _events(seen.conn, given)
    total = queries.count_delivered(seen.conn, meant)
    if not total:
        where = "no event that was delivered matches"
        raise Refused(404, "There is nothing to deliver again", where, "go back and change it")
    if total > EVENTS_AT_ONCE:
        command = ["els", "outbox", "republish", "--since", meant.since.isoformat()]
        chosen = [word for name, value in fields.items() for word in (f"--{name}", value)]
        title = f"{total} events are too many for the page"
        reason = f"it delivers at most {EVENTS_AT_ONCE} again at once"
        raise Refused(409, title, reason, shlex.join([*command, *chosen]))
    of_type = f" of type {event_type}" if event_type else ""
    written = f", written since {utc(meant.since)}" if since else ""
    will = [
        f"{_count(total, 'event')}{of_type}{written}: the relay delivers them again.",
        "Receivers know repeats by the event's id. The first delivery stays noted.",
    ]
    if since:
        fields["since"] = meant.since.isoformat()
    return Plan(title, back, fields, will, "Deliver again")


def republish_events(tools: Tools, given: Fields, by: By) -> str:
    with tools.acting.pool.connection() as conn:
        total = republish(conn, _events(conn, given), by, _silently)
    return f"{_count(total, 'event')} queued; the relay delivers them again within seconds."


def _events(conn: Conn, given: Fields) -> Events:
    since = given.get("since", "").strip()
    try:
        moment = moment_of(since) if since else BEGINNING
    except ValueError as error:
        raise _wrong("the moment", f"{error}; write 2h, 3d, or 2026-12-01 12:00") from error
    row = conn.execute("SELECT now() AS now").fetchone()
    assert row is not None
    return Events(moment, row["now"], given.get("batch") or None, given.get("type") or None)


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


ACTIONS = {
    "cancel": Action(plan_cancel, cancel),
    "amend": Action(plan_amend, amend),
    "reconcile": Action(plan_reconcile, reconcile),
    "replay": Action(plan_replay, replay),
    "discard": Action(plan_discard, discard),
    "republish": Action(plan_republish, republish_events),
}
