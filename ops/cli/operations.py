"""The commands of a night on call: explain, find, reconcile, dead letters, outbox, purge."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.table import Table

from core import db, logs
from core.db.connection import Conn
from core.explain import Explanation, explain
from core.slots import Slots, connect
from ops import queries
from ops.cli.output import (
    AsJson,
    Home,
    Yes,
    age,
    books,
    fail,
    out,
    print_json,
    tell,
    to_change,
    to_read,
    utc,
)
from ops.cli.target import BROKER, POSTGRES, REDIS, endpoints
from ops.heartbeat import read_signs, with_own_probe

PURGE_CHUNK = 50  # batches deleted by one transaction
dead_letters = typer.Typer(help="Messages that could not be carried out.", no_args_is_help=True)
outbox = typer.Typer(help="Events on their way to downstream services.", no_args_is_help=True)
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="At most so many")]
Number = Annotated[int, typer.Argument(help="Its number, as `els dead-letters list` shows it")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to `els`."""
    app.command("explain")(explain_batch)
    app.command("find")(find)
    app.command("reconcile")(reconcile)
    app.command("purge")(purge)
    app.add_typer(dead_letters, name="dead-letters")
    app.add_typer(outbox, name="outbox")


def explain_batch(
    batch: Annotated[str, typer.Argument(help="The batch")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Say why a batch is or is not ready, and what can be done.

    What it waits for, since when, what the service will do by itself; then the timeline, and
    Postgres beside Redis. Exit status 1 for a batch that nobody has seen.
    """
    settings = to_read(home)
    found = endpoints(settings)
    client = connect(found.redis_url)
    slots = Slots(client)
    signs = read_signs(client, found.broker_url, settings.queue)
    with books(settings) as conn:
        told = explain(conn, slots, batch, with_own_probe(signs, conn, slots))
    if as_json:
        print_json(asdict(told))
    else:
        show_explanation(told)
    if told.state == "unknown":
        raise typer.Exit(1)


def find(
    wanted: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Of a batch, essay, text, file, message, event, correlation, user, class or"
            " organisation",
        ),
    ],
    limit: Limit = 1_000,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Say where everything is that bears an id: slots, pending, excess, dead letters, events.

    A message, by its event_id, is shown with its outcome. Exit status 1 if there is nothing.
    """
    with books(to_read(home)) as conn:
        rows = queries.find(conn, wanted, limit)
    if not rows:
        fail(f"nothing here bears the id {wanted}", as_json)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        told = (row["place"], row["batch_id"], row["name"], row["state"], row["content"])
        when = row["at"] and utc(row["at"])
        line = "  ".join(str(each) for each in (*told, when) if each)
        out.print(line, markup=False, soft_wrap=True)


def reconcile(
    batch: Annotated[str | None, typer.Argument(help="One batch; else all")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Find, but mend nothing")] = False,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Run the sweep now; say what it found and mended.

    Exit status 1 if something is left as it was found: what only a person can mend, or a dry run.
    """
    from core.lifecycle import Lifecycle
    from core.repairs import RepairContext
    from core.sweep import sweep
    from ops.client import Sender
    from tasks.delivery import deliver

    if dry_run:
        settings = to_read(home)
        found = endpoints(settings)
    else:
        settings, found = to_change(home, "reconcile", yes=yes, as_json=as_json, gentle=True)
    logs.configure(settings)
    with (
        db.connect(found.database_url) as pool,
        Sender(found.broker_url, settings.queue) as sender,
    ):
        client = connect(found.redis_url)
        client.ping()  # half of the rules look there, and would find nothing
        mender = RepairContext(
            Lifecycle(pool, Slots(client), settings.opt_in_events()),
            lambda event: deliver(sender.app, event, settings.routes(event["type"])),
        )
        swept = sweep(mender, batch, dry_run=dry_run, at_once=True)
        with pool.connection() as conn:
            holder = db.sweep.holder(conn)
    if swept is None:
        held = f" ({holder})" if holder else ""
        fail(f"another sweep is at work{held}; try again in a moment", as_json)
    if as_json:
        print_json([asdict(each) for each in swept])
    for each in [] if as_json else swept:
        did = "mended" if each.mended else "found" if dry_run else "not mended"
        detail = f" ({each.finding.detail})" if each.finding.detail else ""
        line = f"{did}  {each.rule}  {each.finding.batch_id}{detail}"
        out.print(line, markup=False, soft_wrap=True)
        if each.error:
            times = f"tried {each.failures} times in a row" if each.failures else "tried"
            out.print(f"    {times}: {each.error}", markup=False, soft_wrap=True)
    if not swept and not as_json:
        out.print("Nothing found.")
    if any(not each.mended for each in swept):
        raise typer.Exit(1)


@dead_letters.command("list")
def list_letters(
    batch: Annotated[str | None, typer.Option(help="Only of this batch")] = None,
    task: Annotated[str | None, typer.Option(help="Only of this task")] = None,
    every: Annotated[bool, typer.Option("--all", help="Replayed and discarded ones too")] = False,
    limit: Limit = 100,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters that wait for somebody, newest first."""
    with books(to_read(home)) as conn:
        rows = queries.letters(conn, batch_id=batch, task=task, every=every, limit=limit)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        ago = age((datetime.now(UTC) - row["parked_at"]).total_seconds())
        about = f"{row['id']}  {row['task']}  {row['batch_id'] or '-'}  {row['code']}"
        out.print(f"{about}  {ago} ago\n    {row['message']}", markup=False, soft_wrap=True)
    if not rows:
        out.print("No dead letters wait.")


@dead_letters.command("show")
def show_letter(number: Number, home: Home = None, as_json: AsJson = False) -> None:
    """Show a dead letter with its whole body (JSON)."""
    with books(to_read(home)) as conn:
        print_json(_letter(conn, number, as_json))


@dead_letters.command()
def replay(
    numbers: Annotated[list[int], typer.Argument(help="Their numbers")],
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters again, unchanged; after their cause is mended they succeed.

    The event id is the same, so that a second replay does no harm.
    """
    from ops.client import Sender

    what = f"replay {len(numbers)} dead letters"
    needed = (POSTGRES, BROKER)
    settings, found = to_change(home, what, *needed, yes=yes, as_json=as_json, gentle=True)
    with books(settings) as conn, Sender(found.broker_url, settings.queue) as sender:
        letters = [_letter(conn, number, as_json) for number in numbers]
        for letter in letters:
            if letter["task"] == "unknown":
                told = f"dead letter {letter['id']} was no message: send what was meant anew"
                fail(told, as_json)
        for letter in letters:
            sender.send(letter["task"], letter["body"])
            queries.mark_replayed(conn, letter["id"])
    tell({"replayed": numbers}, f"{len(numbers)} sent again", as_json)


@dead_letters.command()
def discard(
    numbers: Annotated[list[int], typer.Argument(help="Their numbers")],
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Note that dead letters need nothing any more. They are kept until their batch is purged."""
    what = f"discard {len(numbers)} dead letters"
    settings, _ = to_change(home, what, POSTGRES, yes=yes, as_json=as_json)
    with books(settings) as conn:
        for letter in [_letter(conn, number, as_json) for number in numbers]:
            queries.mark_discarded(conn, letter["id"])
    tell({"discarded": numbers}, f"{len(numbers)} discarded", as_json)


@outbox.command("list")
def list_outbox(limit: Limit = 100, home: Home = None, as_json: AsJson = False) -> None:
    """List events that wait for delivery, with the last error of each."""
    with books(to_read(home)) as conn:
        rows = queries.undelivered(conn, limit)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        ago = age((datetime.now(UTC) - row["created_at"]).total_seconds())
        about = f"{row['batch_id']}  {row['sequence']}  {row['type']}  written {ago} ago"
        tried = f"tried {row['attempts']} times: {row['last_error']}" if row["attempts"] else ""
        out.print(f"{about}  {tried}", markup=False, soft_wrap=True)
    if not rows:
        out.print("Every event has been delivered.")


@outbox.command()
def republish(
    since: Annotated[str, typer.Option(help="A moment (2026-01-31T08:00:00Z) or an age (2h, 30m)")],
    batch: Annotated[str | None, typer.Option(help="Only of this batch")] = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Deliver events again that were written since then. Consumers drop repeats by id."""
    try:
        moment = _moment(since)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from error
    what = f"deliver the events since {moment:%Y-%m-%d %H:%M:%S} UTC again"
    settings, _ = to_change(home, what, POSTGRES, yes=yes, as_json=as_json)
    with books(settings) as conn:
        count = queries.republish(conn, moment, batch)
    told = f"{count} events will be delivered again by the relay, within seconds"
    tell({"republished": count, "since": moment.isoformat()}, told, as_json)


def purge(
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, max=36_500, help="Days since they ended")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, but delete nothing")] = False,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete closed batches with all that belongs to them, and pending that nobody registers.

    Never a batch with an undelivered event or a waiting dead letter.
    """
    needed = (POSTGRES, REDIS)
    if dry_run:
        settings = to_read(home)
        found = endpoints(settings, *needed)
    else:
        what = f"purge what ended {older_than:g} days ago or earlier"
        settings, found = to_change(home, what, *needed, yes=yes, as_json=as_json)
    slots = Slots(connect(found.redis_url))
    with books(settings) as conn:
        if dry_run:
            batches = len(queries.purgeable(conn, older_than, 1_000_000))
        else:
            batches = 0
            while chunk := queries.purgeable(conn, older_than, PURGE_CHUNK):
                with conn.transaction():
                    for batch_id in chunk:
                        queries.purge(conn, batch_id)
                slots.forget(chunk)
                batches += len(chunk)
        pending = queries.expired_pending(conn, older_than, delete=not dry_run)
    word = "would be deleted" if dry_run else "deleted"
    told = f"{batches} batches and {pending} pending contents {word}"
    tell({"batches": batches, "pending": pending, "dry_run": dry_run}, told, as_json)


def _letter(conn: Conn, number: int, as_json: bool) -> db.Row:
    """Read a dead letter; exit where there is none of this number."""
    found = queries.letter(conn, number)
    if found is None:
        fail(f"there is no dead letter {number}", as_json)
    return found


def show_explanation(told: Explanation) -> None:
    """Tell a person why a batch is or is not ready."""
    out.print(f"{told.batch_id}: {told.state}\n", style="bold", markup=False)
    for cause in told.causes:
        since = f", since {utc(cause.since)}" if cause.since else ""
        out.print(f"  {cause.title}{since}", style="bold yellow", markup=False, soft_wrap=True)
        out.print(f"    why        {cause.reason}", markup=False, soft_wrap=True)
        out.print(f"    by itself  {cause.by_itself}", markup=False, soft_wrap=True)
        out.print(f"    you can    {cause.command}\n", markup=False, soft_wrap=True)
    if not told.causes:
        out.print("  Nothing is missing.\n")
    if told.timeline:
        out.print("Timeline", style="bold")
        for at, what in told.timeline:
            out.print(f"  {utc(at)}  {what}", markup=False, soft_wrap=True)
        out.print()
    out.print(_sides(told))
    for line in told.disagreements:
        out.print(f"  ✘ {line}", style="red", markup=False, soft_wrap=True)


def _sides(told: Explanation) -> Table:
    """Put Postgres beside Redis."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("POSTGRES", "", "REDIS", ""):
        table.add_column(name)
    shown = ("slots", "open", "assigned", "failed", "cancelled", "pending", "excess", "undelivered")
    postgres = [(name, told.sides["postgres"].get(name, "-")) for name in shown]
    redis_side: list[tuple[str, Any]] = [  # Any: whatever Redis told
        (name, len(value) if isinstance(value, list) else value)
        for name, value in told.sides["redis"].items()
    ]
    for n, (name, value) in enumerate(postgres):
        other: Sequence[Any] = redis_side[n] if n < len(redis_side) else ("", "")
        table.add_row(name, str(value), str(other[0]), str(other[1]))
    return table


def _moment(text: str) -> datetime:
    """Read a moment in UTC, or an age such as 2h. Raises ValueError."""
    units = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    if text[-1:] in units and text[:-1].replace(".", "", 1).isdigit():
        try:
            return datetime.now(UTC) - timedelta(**{units[text[-1]]: float(text[:-1])})
        except OverflowError as error:
            raise ValueError(f"{text} ago is before all time") from error
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
