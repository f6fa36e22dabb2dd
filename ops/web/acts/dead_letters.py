"""Send dead letters again and discard them: one, or those that wait and fit a filter."""

import shlex
from dataclasses import replace

from core.db.connection import Conn, Row
from ops import letters
from ops.letters import Done, Pace
from ops.queries.actions import By
from ops.queries.dead_letters import Letters, count_letters, letter
from ops.web.acts.plan import Fields, Plan, Refused, Seen, Tools, silently, wrong
from ops.web.addresses import Span, address
from ops.wording import number, utc

AT_ONCE = 1_000  # letters that one click sends or settles: some seconds
OPTIONS = {"batch": "--batch", "task": "--task", "code": "--code", "from": "--since"}
FILTERS = (*OPTIONS, "to")


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
    title = f"Send {number(total, 'dead letter')} again"
    return Plan(title, _list(given), _fields(meant), will, button)


def replay(tools: Tools, given: Fields, by: By) -> str:
    with tools.acting.pool.connection() as conn:
        done = letters.replay(conn, tools.sender, _chosen(given), by, Pace(None), silently)
    _refuse_held(done)
    skipped = f" {len(done.skipped)} skipped: they cannot be sent again." if done.skipped else ""
    return f"{number(len(done.numbers), 'dead letter')} sent again.{skipped}"


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
    title = f"Discard {number(total, 'dead letter')}"
    return Plan(title, _list(given), _fields(meant), will, button, needs_reason=True)


def discard(tools: Tools, given: Fields, by: By) -> str:
    with tools.acting.pool.connection() as conn:
        done = letters.discard(conn, _chosen(given), by, silently)
    _refuse_held(done)
    return f"{number(len(done.numbers), 'dead letter')} discarded."


def _plan_of_one(verb: str, row: Row, will: list[str], button: str) -> Plan:
    number = row["id"]
    title = f"{verb} {letters.target(number)}" + (" again" if verb == "Send" else "")
    about = f"Batch: {row['batch_id']}." if row["batch_id"] else "It names no batch."
    fields = {"number": str(number)}
    return Plan(title, f"/dead-letters/{number}", fields, [*will, about], button)


def _letter(conn: Conn, given: Fields) -> Row:
    """Read a letter that nobody has sent again."""
    row = letter(conn, _number(given["number"]))
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
    kinds = count_letters(conn, meant)
    total = sum(row["n"] for row in kinds)
    if not total:
        title = "No dead letter waits that matches the filter"
        raise Refused(404, title, "there is nothing to do", "look at the list")
    if total > AT_ONCE:
        raise Refused(
            409,
            f"{total} dead letters are too many for the page",
            f"it acts on at most {AT_ONCE} at once",
            "choose a shorter time" if meant.until else _by_command(command, given),
        )
    if meant.up_to is None:
        meant = replace(meant, up_to=max(row["last"] for row in kinds))
    return (
        meant,
        total,
        [f"{number(row['n'], 'letter')}: {row['task']}, {row['code']}" for row in kinds],
    )


def _by_command(command: str, given: Fields) -> str:
    chosen = [word for name in OPTIONS if given.get(name) for word in (OPTIONS[name], given[name])]
    return shlex.join(["els", "dead-letters", command, *(chosen or ["--all"])])


def _chosen(given: Fields) -> Letters:
    if "number" in given:
        return Letters([_number(given["number"])])
    batch_id, task, code = (given.get(name) or None for name in ("batch", "task", "code"))
    up_to = _number(given["up_to"]) if "up_to" in given else None
    span = Span.of(given).checked()
    return Letters(None, batch_id, task, code, span.since, span.until, up_to)


def _fields(meant: Letters) -> Fields:
    """Name these letters so that the same ones are meant later: an age becomes a moment."""
    named = {"batch": meant.batch_id, "task": meant.task, "code": meant.code, "up_to": meant.up_to}
    ends = {"from": meant.since, "to": meant.until}
    moments = {name: at.isoformat() for name, at in ends.items() if at}
    return {name: str(value) for name, value in named.items() if value is not None} | moments


def _list(given: Fields) -> str:
    return address("/dead-letters", {name: given.get(name) for name in FILTERS})


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise wrong("the number", f"{text} is no number of a dead letter")
    return int(text)


def _refuse_held(done: Done) -> None:
    if not done.numbers and not done.skipped:
        title, step = "Nothing was done", "go back, and look at what became of it"
        raise Refused(409, title, "somebody else acts on this, or has just done so", step)
