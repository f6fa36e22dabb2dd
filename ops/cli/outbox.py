"""`els outbox`: events on their way to downstream services."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from core.catalogue import EVENTS
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
    settings_to_read,
    signed,
)
from ops.cli.target import POSTGRES
from ops.moments import moment_of
from ops.output import out, print_json, print_line, print_result
from ops.queries import outbox
from ops.queries.actions import By
from ops.wording import age_of, number, one_line


def _known_type(event_type: str | None) -> str | None:
    if event_type is not None and event_type not in EVENTS:
        raise typer.BadParameter(
            f"there is no event {event_type}; the events are {', '.join(EVENTS)}"
        )
    return event_type


app = typer.Typer(help="Events on their way to downstream services.", no_args_is_help=True)


@app.command("list")
def list_outbox(limit: Limit = 100, home: Home = None, as_json: AsJson = False) -> None:
    """List events that wait for delivery, with the last error of each."""
    with connection(settings_to_read(home)) as conn:
        rows = outbox.undelivered(conn, limit)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        ago = age_of(row["created_at"])
        about = f"{row['batch_id']}  {row['sequence']}  {row['type']}  written {ago} ago"
        times = number(row["attempts"], "time")
        tried = f"tried {times}: {row['last_error']}" if row["attempts"] else ""
        print_line(f"{about}  {one_line(tried)}")
    if not rows:
        out.print("Every event has been delivered.")


@app.command()
def republish(
    since: Annotated[str, typer.Option(help="A moment (2026-01-31T08:00:00Z) or an age (2h, 30m)")],
    batch: Annotated[str | None, typer.Option(help="Only of this batch")] = None,
    event_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="Only of this type",
            callback=_known_type,
            autocompletion=among(EVENTS),
        ),
    ] = None,
    dry_run: DryRun = False,
    why: Why = None,
    who: Who = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Deliver all events written since a moment again. Consumers drop repeats by id.

    The first delivery of each stays noted.
    """
    try:
        moment = moment_of(since)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from error
    by = signed(who, why, required=False)
    meant = outbox.Events(moment, datetime.now(UTC), batch, event_type)
    if dry_run:
        with connection(settings_to_read(home)) as conn:
            count = outbox.count_delivered(conn, meant)
        line = f"{number(count, 'event')} would be delivered again"
    else:
        count = _republish(meant, by, home, yes, as_json)
        them = "it" if count == 1 else "them"
        line = f"{number(count, 'event')} queued; the relay delivers {them} again within seconds"
    result = {"republished": count, "since": moment.isoformat()}
    print_result({**result, **({"dry_run": True} if dry_run else {})}, line, as_json)


def _republish(meant: outbox.Events, by: By, home: Path | None, yes: bool, as_json: bool) -> int:
    from ops import acting

    what = f"deliver the events since {meant.since:%Y-%m-%d %H:%M:%S} UTC again"
    settings, _ = confirm_change(home, what, POSTGRES, yes=yes, as_json=as_json)
    with connection(settings) as conn:
        row = conn.execute("SELECT now() AS now").fetchone()
        meant = replace(meant, until=(row or {})["now"])  # by the clock that wrote the deliveries
        total = outbox.count_delivered(conn, meant)
        return acting.republish(conn, meant, by, progress(total, "events queued"))
