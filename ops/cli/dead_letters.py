"""`els dead-letters`: messages that could not be carried out."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from core.db.connection import Conn, Row
from ops import queries
from ops.cli.options import (
    AsJson,
    Home,
    Limit,
    Yes,
    confirm_change,
    connection,
    settings_to_read,
)
from ops.cli.target import BROKER, POSTGRES
from ops.output import age, fail, out, print_json, print_line, print_result

app = typer.Typer(help="Messages that could not be carried out.", no_args_is_help=True)
Number = Annotated[int, typer.Argument(help="Its number, as `els dead-letters list` shows it")]
Numbers = Annotated[list[int], typer.Argument(help="Their numbers")]


@app.command("list")
def list_letters(
    batch: Annotated[str | None, typer.Option(help="Only of this batch")] = None,
    task: Annotated[str | None, typer.Option(help="Only of this task")] = None,
    every: Annotated[bool, typer.Option("--all", help="Replayed and discarded ones too")] = False,
    limit: Limit = 100,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters that nobody has replayed or discarded, newest first."""
    with connection(settings_to_read(home)) as conn:
        rows = queries.letters(conn, batch_id=batch, task=task, every=every, limit=limit)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        ago = age((datetime.now(UTC) - row["parked_at"]).total_seconds())
        about = f"{row['id']}  {row['task']}  {row['batch_id'] or '-'}  {row['code']}"
        print_line(f"{about}  {ago} ago\n    {row['message']}")
    if not rows:
        out.print("No dead letters wait.")


@app.command()
def show(number: Number, home: Home = None, as_json: AsJson = False) -> None:
    """Print a dead letter with its whole body, as JSON."""
    with connection(settings_to_read(home)) as conn:
        print_json(_letter(conn, number, as_json))


@app.command()
def replay(numbers: Numbers, home: Home = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Send dead letters again, unchanged; they succeed once their cause is fixed.

    The event id is the same, so a second replay changes nothing.
    """
    from ops.client import Sender

    settings, found = confirm_change(
        home,
        f"replay {len(numbers)} dead letters",
        *(POSTGRES, BROKER),
        yes=yes,
        as_json=as_json,
        repeatable=True,
    )
    with connection(settings) as conn, Sender(found.broker_url, settings.queue) as sender:
        letters = [_letter(conn, number, as_json) for number in numbers]
        for letter in letters:
            if letter["task"] == "unknown" or _as_it_came(letter["body"]):
                problem = f"nobody could read dead letter {letter['id']}, so it cannot be replayed"
                fail(f"{problem}: correct it at its sender and send it again", as_json)
            if letter["code"] == "UNKNOWN_VERSION":
                problem = f"dead letter {letter['id']} is a step of a completion"
                fail(f"{problem}, which the sweep has completed: discard it", as_json)
        for letter in letters:
            sender.send(letter["task"], letter["body"])
            queries.mark_replayed(conn, letter["id"])
    print_result({"replayed": numbers}, f"{len(numbers)} sent again", as_json)


@app.command()
def discard(numbers: Numbers, home: Home = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Mark dead letters as settled. The service keeps them until it purges their batch."""
    what = f"discard {len(numbers)} dead letters"
    settings, _ = confirm_change(home, what, POSTGRES, yes=yes, as_json=as_json)
    with connection(settings) as conn:
        for letter in [_letter(conn, number, as_json) for number in numbers]:
            queries.mark_discarded(conn, letter["id"])
    print_result({"discarded": numbers}, f"{len(numbers)} discarded", as_json)


def _as_it_came(body: object) -> bool:
    """Tell whether this is the body of a message that nobody could decode."""
    return isinstance(body, dict) and bool(body.keys() & {"base64", "beginning_base64"})


def _letter(conn: Conn, number: int, as_json: bool) -> Row:
    found = queries.letter(conn, number)
    if found is None:
        fail(f"there is no dead letter {number}", as_json)
    return found
