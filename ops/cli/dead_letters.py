"""`els dead-letters`: messages that could not be carried out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from core.catalogue import TASKS
from core.db.connection import Conn, Row
from ops.cli.completion import among
from ops.cli.options import (
    AsJson,
    DryRun,
    Home,
    Limit,
    Who,
    Why,
    Yes,
    confirm_change,
    connection,
    progress,
    read_moment,
    settings_to_read,
    signed,
)
from ops.cli.target import BROKER, POSTGRES
from ops.output import fail, out, print_json, print_line, print_result
from ops.queries import dead_letters
from ops.queries.dead_letters import Letters
from ops.reference.outcomes import CODES
from ops.wording import age_of, number, one_line


def _known_code(code: str | None) -> str | None:
    if code is not None and code not in CODES:
        raise typer.BadParameter(f"there is no code {code}; the codes are {', '.join(CODES)}")
    return code


app = typer.Typer(help="Messages that could not be carried out.", no_args_is_help=True)
Number = Annotated[int, typer.Argument(help="Its number, as `els dead-letters list` shows it")]
Numbers = Annotated[list[int] | None, typer.Argument(help="Their numbers; else give a filter")]
Batch = Annotated[str | None, typer.Option("--batch", help="Only of this batch")]
OfTask = Annotated[
    str | None, typer.Option("--task", help="Only of this task", autocompletion=among(TASKS))
]
Code = Annotated[
    str | None,
    typer.Option(
        "--code", help="Only with this code", callback=_known_code, autocompletion=among(CODES)
    ),
]
Since = Annotated[
    str | None,
    typer.Option("--since", help="Only those parked since a moment, or an age such as 2h"),
]
All = Annotated[bool, typer.Option("--all", help="All that wait and fit the other filters")]


@app.command("list")
def list_letters(
    batch: Batch = None,
    task: OfTask = None,
    code: Code = None,
    since: Since = None,
    every: Annotated[bool, typer.Option("--all", help="Replayed and discarded ones too")] = False,
    limit: Limit = 100,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters that nobody has replayed or discarded, newest first."""
    moment = read_moment(since, "--since")
    with connection(settings_to_read(home)) as conn:
        rows = dead_letters.letters(
            conn, batch_id=batch, task=task, code=code, since=moment, every=every, limit=limit
        )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        ago = age_of(row["parked_at"])
        about = f"{row['id']}  {row['task']}  {row['batch_id'] or '-'}  {row['code']}"
        print_line(f"{about}  {ago} ago{_state(row)}\n    {one_line(row['message'])}")
    if not rows:
        out.print("No dead letters wait.")


def _state(row: Row) -> str:
    """Say what became of a letter that was acted on, and of which one it is the replay."""
    again = row["failed_again_as"]
    words = {
        "replayed": "  replayed",
        "failed_again": f"  replayed, failed again as {again}",
        "discarded": "  discarded",
    }
    origin = f"  replay of {row['replay_of']}" if row["replay_of"] else ""
    return words.get(row["state"], "") + origin


@app.command()
def show(number: Number, home: Home = None, as_json: AsJson = False) -> None:
    """Print a dead letter with its whole body, as JSON."""
    with connection(settings_to_read(home)) as conn:
        print_json(_letter(conn, number, as_json))


@app.command()
def replay(
    numbers: Numbers = None,
    batch: Batch = None,
    task: OfTask = None,
    code: Code = None,
    since: Since = None,
    every: All = False,
    rate: Annotated[
        str | None, typer.Option("--rate", help="At most so many: 10/s, 90/min, 500/h")
    ] = None,
    dry_run: DryRun = False,
    why: Why = None,
    who: Who = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters again, unchanged; they succeed once their cause is fixed.

    Give numbers, or a filter for those that wait. The event id is the same, so a second replay
    changes nothing.
    """
    from ops import letters
    from ops.client import Sender

    meant = _meant(numbers, batch, task, code, since, every)
    by = signed(who, why, required=False)
    try:
        pace = letters.Pace(letters.read_rate(rate) if rate is not None else None)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--rate") from error
    if dry_run:
        _show_dry_run(meant, home, "replayed", as_json)
        return
    settings, found = confirm_change(
        home,
        f"replay {_described(meant)}",
        *(POSTGRES, BROKER),
        yes=yes,
        as_json=as_json,
        repeatable=True,
    )
    with connection(settings) as conn, Sender(found.broker_url, settings.queue) as sender:
        for row in [_letter(conn, number, as_json) for number in meant.numbers or ()]:
            if problem := letters.why_not(row):
                fail(problem, as_json)
        note = progress(_count(conn, meant), "letters sent again")
        done = letters.replay(conn, sender, meant, by, pace, note)
    if numbers:
        print_result({"replayed": numbers}, f"{len(done.numbers)} sent again", as_json)
        return
    skipped = [{"id": number, "why": reason} for number, reason in done.skipped.items()]
    line = f"{len(done.numbers)} sent again" + (f", {len(skipped)} skipped" if skipped else "")
    details = [f"    {each['why']}" for each in skipped]
    result = {"replayed": done.numbers, "skipped": skipped}
    print_result(result, "\n".join([line, *details]), as_json)


@app.command()
def discard(
    numbers: Numbers = None,
    batch: Batch = None,
    task: OfTask = None,
    code: Code = None,
    since: Since = None,
    every: All = False,
    dry_run: DryRun = False,
    why: Why = None,
    who: Who = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Mark dead letters as settled. The service keeps them until it purges them.

    Give numbers, or a filter for those that wait; with a filter also a reason.
    """
    from ops import letters

    meant = _meant(numbers, batch, task, code, since, every)
    by = signed(who, why, required=not numbers and not dry_run)
    if dry_run:
        _show_dry_run(meant, home, "discarded", as_json)
        return
    what = f"discard {_described(meant)}"
    settings, _ = confirm_change(home, what, POSTGRES, yes=yes, as_json=as_json)
    with connection(settings) as conn:
        for number in meant.numbers or ():
            _letter(conn, number, as_json)
        note = progress(_count(conn, meant), "letters discarded")
        done = letters.discard(conn, meant, by, note)
    print_result({"discarded": done.numbers}, f"{len(done.numbers)} discarded", as_json)


def _meant(
    numbers: Sequence[int] | None,
    batch: str | None,
    task: str | None,
    code: str | None,
    since: str | None,
    every: bool,
) -> Letters:
    """Read which letters are meant: numbers, or a filter, and not both."""
    filters = (batch, task, code, since)
    if numbers and (every or any(each is not None for each in filters)):
        raise typer.BadParameter("give numbers or a filter, not both", param_hint="NUMBERS")
    if not numbers and not every and all(each is None for each in filters):
        raise typer.BadParameter(
            "give numbers, or a filter: --batch, --task, --code, --since, or --all",
            param_hint="NUMBERS",
        )
    chosen = [*dict.fromkeys(numbers)] if numbers else None
    return Letters(chosen, batch, task, code, read_moment(since, "--since"))


def _described(meant: Letters) -> str:
    if meant.numbers:
        return number(len(meant.numbers), "dead letter")
    given = {"batch": meant.batch_id, "task": meant.task, "code": meant.code}
    if meant.since:
        given["since"] = f"{meant.since:%Y-%m-%d %H:%M:%S} UTC"
    words = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
    return f"the dead letters that wait ({words or 'all'})"


def _count(conn: Conn, meant: Letters) -> int:
    return sum(row["n"] for row in dead_letters.count_letters(conn, meant))


def _show_dry_run(meant: Letters, home: Path | None, word: str, as_json: bool) -> None:
    """Say how many letters of which task and code are meant."""
    with connection(settings_to_read(home)) as conn:
        rows = dead_letters.count_letters(conn, meant)
    counts: list[dict[str, Any]] = [  # Any: JSON
        {"task": row["task"], "code": row["code"], "letters": row["n"]} for row in rows
    ]
    total = sum(each["letters"] for each in counts)
    lines = [f"{each['letters']}  {each['task']}  {each['code']}" for each in counts]
    text = "\n".join([*lines, f"{total} would be {word}"])
    print_result({"letters": total, "kinds": counts, "dry_run": True}, text, as_json)


def _letter(conn: Conn, number: int, as_json: bool) -> Row:
    found = dead_letters.letter(conn, number)
    if found is None:
        fail(f"there is no dead letter {number}", as_json)
    return found
