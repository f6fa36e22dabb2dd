"""`els actions`: what operators did, and why."""

from typing import Annotated

import typer

from ops.cli.completion import among
from ops.cli.options import AsJson, Home, Limit, connection, read_moment, settings_to_read
from ops.output import out, print_json, print_line
from ops.queries import actions
from ops.wording import age_of, one_line

KINDS = ("amend", "cancel", "discard", "erase", "purge", "reconcile", "replay", "republish")


def _known_kind(action: str | None) -> str | None:
    if action is not None and action not in KINDS:
        raise typer.BadParameter(f"there is no action {action}; they are {', '.join(KINDS)}")
    return action


app = typer.Typer(help="What operators did, and why.", no_args_is_help=True)


@app.command("list")
def list_actions(
    batch: Annotated[str | None, typer.Option(help="Only on this batch")] = None,
    who: Annotated[str | None, typer.Option("--by", help="Only by this operator")] = None,
    action: Annotated[
        str | None,
        typer.Option(
            help="Only of this kind: cancel, amend, replay, discard, …",
            callback=_known_kind,
            autocompletion=among(KINDS),
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only since a moment, or an age such as 2h")
    ] = None,
    limit: Limit = 100,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List what operators did, the newest first: who, what, why, and what changed."""
    wanted = actions.Wanted(batch, who, action, read_moment(since, "--since"))
    with connection(settings_to_read(home)) as conn:
        rows = actions.newest(conn, wanted, limit)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        ago = age_of(row["acted_at"])
        print_line(f"{row['id']}  {row['action']}  {row['target']}  {row['actor']}  {ago} ago")
        changes = "; ".join(f"{name}: {_written(value)}" for name, value in row["changes"].items())
        for line in filter(None, (row["reason"], changes)):
            print_line(f"    {one_line(line)}")
    if not rows:
        among_all = not any(vars(wanted).values())
        out.print("No operator has done anything." if among_all else "No action fits.")


def _written(value: object) -> str:
    """Write what changed: an old and a new value, or a number."""
    match value:
        case [before, after]:
            return f"{before} → {after}"
        case dict():
            return ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
    return str(value)
