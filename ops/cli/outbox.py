"""`els outbox`: events on their way to downstream services."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

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
from ops.cli.target import POSTGRES
from ops.output import age, out, print_json, print_line, print_result

app = typer.Typer(help="Events on their way to downstream services.", no_args_is_help=True)
UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


@app.command("list")
def list_outbox(limit: Limit = 100, home: Home = None, as_json: AsJson = False) -> None:
    """List events that wait for delivery, with the last error of each."""
    with connection(settings_to_read(home)) as conn:
        rows = queries.undelivered(conn, limit)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        ago = age((datetime.now(UTC) - row["created_at"]).total_seconds())
        about = f"{row['batch_id']}  {row['sequence']}  {row['type']}  written {ago} ago"
        tried = f"tried {row['attempts']} times: {row['last_error']}" if row["attempts"] else ""
        print_line(f"{about}  {tried}")
    if not rows:
        out.print("Every event has been delivered.")


@app.command()
def republish(
    since: Annotated[str, typer.Option(help="A moment (2026-01-31T08:00:00Z) or an age (2h, 30m)")],
    batch: Annotated[str | None, typer.Option(help="Only of this batch")] = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Deliver all events written since a moment again. Consumers drop repeats by id."""
    try:
        moment = _moment(since)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from error
    what = f"deliver the events since {moment:%Y-%m-%d %H:%M:%S} UTC again"
    settings, _ = confirm_change(home, what, POSTGRES, yes=yes, as_json=as_json)
    with connection(settings) as conn:
        count = queries.republish(conn, moment, batch)
    line = f"{count} events queued; the relay delivers them again within seconds"
    print_result({"republished": count, "since": moment.isoformat()}, line, as_json)


def _moment(text: str) -> datetime:
    """Read a moment in UTC, or an age such as 2h. Raises ValueError."""
    if text[-1:] in UNITS and text[:-1].replace(".", "", 1).isdigit():
        try:
            return datetime.now(UTC) - timedelta(**{UNITS[text[-1]]: float(text[:-1])})
        except OverflowError as error:
            raise ValueError(f"{text} is too long ago") from error
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
