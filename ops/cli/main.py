"""`els`: the service, and everything that people ask of it, from a terminal.

Commands import what only they need themselves: `els status` should not wait for Alembic.
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import psycopg
import redis
import typer
from rich.console import Console
from rich.table import Table

from bench.command import bench
from core.errors import ELSError
from ops import queries
from ops.cli import operations
from ops.cli.output import (
    AsJson,
    Home,
    Yes,
    age,
    books,
    fail,
    out,
    print_json,
    read_settings,
    say,
    tell,
    to_change,
    to_read,
)
from ops.cli.target import BROKER, POSTGRES, endpoints
from ops.stack.supervisor import Endpoints, Stack

if TYPE_CHECKING:
    from ops.client import Sent

app = typer.Typer(
    help="Essay Lifecycle Service: gives each stored essay text a slot of its batch, and says"
    " exactly once that the batch is ready.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ANY_OPTION = {"allow_extra_args": True, "ignore_unknown_options": True}  # `els` hands these on
WAIT_S = 10.0  # what a worker gets to carry out a command
WIDE = 132  # columns of the status table: ids are never cut, so that they can be copied


@app.command()
def run(home: Home = None, as_json: AsJson = False) -> None:
    """Run the whole service in the foreground until Ctrl-C.

    Embedded Postgres and Valkey unless ELS_DATABASE_URL and ELS_REDIS_URL are set; migrations,
    worker, beat, ops page and Flower. A second run on the same home goes on where it stopped.
    """
    from core.requirements import check_servers
    from migrations import upgrade

    settings = read_settings(home)
    with Stack(
        settings, echo=say, migrate=upgrade, check=check_servers, output=sys.stderr
    ) as stack:
        if as_json:
            print_json(asdict(stack.endpoints))
        else:
            _show_endpoints(stack.endpoints)
        status = stack.wait()
    raise typer.Exit(status)


@app.command()
def demo(
    home: Home = None,
    folder: Annotated[
        Path | None, typer.Option(help="A folder of text files, taken as the upload")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="Give up after so many seconds")] = 60,
    as_json: AsJson = False,
) -> None:
    """Run the service and send it real work; exit 0 only if every invariant held.

    A reference orchestrator and file service upload a guest batch of 25 essays and a regular
    batch, out of order, with repeats, an early content, a rejected file and an excess one.
    """
    from ops.demo.play import play, texts_of

    texts = texts_of(folder) if folder else None
    told = play(read_settings(home), texts, timeout_s, say)
    if as_json:
        print_json(told.as_json())
    else:
        told.show(out)
    raise typer.Exit(0 if told.ok else 1)


@app.command()
def env(home: Home = None, as_json: AsJson = False) -> None:
    """Print the URLs of the running stack as JSON (with its passwords)."""
    print_json(asdict(endpoints(to_read(home))))


@app.command()
def status(
    batch: Annotated[str | None, typer.Argument(help="One batch; else the newest ones")] = None,
    home: Home = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many batches")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show how far batches are: state, slots accounted for, pending, excess, age."""
    with books(to_read(home)) as conn:
        rows = queries.statuses(conn, batch, limit)
    if batch and not rows:
        fail(f"batch {batch} is not registered, and nothing waits for it", as_json)
    if as_json:
        print_json(rows)
    elif not rows:
        out.print("No batches yet. `els demo` sends some.")
    else:
        Console(width=max(out.width, WIDE), highlight=False).print(_status_table(rows))


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="JSON or JSON Lines; - for standard input")],
    home: Home = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcomes, show them")] = False,
    timeout_s: Annotated[float, typer.Option(min=0, help="With --wait: seconds")] = 60,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Enqueue events from a file.

    Each is {"task": "els.assign_content", "event": {…}}, or the bare event.
    """
    from ops import client

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        events = list(client.read_events(text))
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from error
    except ValueError as error:
        fail(f"{file}: {error}", as_json)
    if not events:
        fail(f"{file} holds no events", as_json)
    needed = (POSTGRES, BROKER) if wait else (BROKER,)
    what = f"enqueue {len(events)} events"
    settings, found = to_change(home, what, *needed, yes=yes, as_json=as_json, gentle=True)
    with client.Sender(found.broker_url, settings.queue) as sender:
        sent = [sender.send(task, event) for task, event in events]
    if not wait:
        tell({"enqueued": len(sent)}, f"{len(sent)} events enqueued on {settings.queue}", as_json)
        return
    with books(settings) as conn:
        outcomes = client.outcomes(conn, sent, timeout_s)
    _show_outcomes(sent, outcomes, as_json)


@app.command()
def cancel(
    batch: Annotated[str, typer.Argument(help="The batch to give up")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it stands in the event")],
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give a batch up: its contents are kept, later ones are refused, BatchCancelled is sent."""
    from ops import client

    what = f"cancel batch {batch}"
    settings, found = to_change(home, what, POSTGRES, BROKER, yes=yes, as_json=as_json)
    with client.Sender(found.broker_url, settings.queue) as sender:
        sent = [sender.send("els.cancel_batch", client.common(batch, reason=reason))]
    with books(settings) as conn:
        outcomes = client.outcomes(conn, sent, WAIT_S)
    _show_outcomes(sent, outcomes, as_json)


@app.command()
def migrate(home: Home = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Bring the schema to head. Safe to run again, and at once from several places."""
    from migrations import current, upgrade

    _, found = to_change(home, "migrate the schema", POSTGRES, yes=yes, as_json=as_json)
    url = found.database_url
    before = current(url)
    upgrade(url)
    after = current(url)
    told = f"schema at {after}" + ("" if before == after else f" (was {before or 'empty'})")
    tell({"before": before, "revision": after}, told, as_json)


@app.command()
def ops() -> None:
    """Serve the pages and health over HTTP (run by `els run`)."""
    from ops.web.page import serve

    serve(read_settings(None))


@app.command()
def flower() -> None:
    """Serve Flower, read-only (run by `els run`). ELS_FLOWER_AUTH=user:password asks for it."""
    from ops.stack.flower import command, environment

    settings = read_settings(None)
    environ = environment(settings, os.environ)
    os.execve(sys.executable, command(settings), environ)  # noqa: S606 - our own command


@app.command(context_settings=ANY_OPTION)
def worker(context: typer.Context) -> None:
    """Start a worker: Celery's own, with all of its options (run by `els run`)."""
    from ops.stack.celery_command import main

    main("worker", context.args)


@app.command(context_settings=ANY_OPTION)
def beat(context: typer.Context) -> None:
    """Start beat, which enqueues sweep and relay; exactly one (run by `els run`)."""
    from ops.stack.celery_command import main

    main("beat", context.args)


@app.command(context_settings=ANY_OPTION)
def health(context: typer.Context) -> None:
    """Tell whether the worker on this home turns, for supervisors: `els health worker`."""
    from ops.cli.health import main

    raise typer.Exit(main(context.args))


@app.command()
def torture(  # noqa: PLR0913, PLR0917 - an option each
    minutes: Annotated[float, typer.Option(min=0.1, help="How long to do harm")] = 2,
    batches: Annotated[int, typer.Option(min=1, help="At most so many batches")] = 100_000,
    seed: Annotated[int, typer.Option(help="Makes the choices repeatable")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Do this fault; may be repeated")] = None,
    longest: Annotated[
        float | None, typer.Option(min=0.5, help="No fault lasts more seconds than that")
    ] = None,
    logs: Annotated[Path | None, typer.Option(help="A folder that gets the logs")] = None,
    rabbitmq: Annotated[
        bool, typer.Option("--rabbitmq", help="RabbitMQ as the broker, in place of a Valkey")
    ] = False,
    list_faults: Annotated[bool, typer.Option("--list", help="List the faults, do none")] = False,
    as_json: AsJson = False,
) -> None:
    """Do random harm to a private stack under load, then check every promise.

    Workers killed at every crash point, servers restarted, frozen, full or read-only, connections
    cut or swallowed, Redis flushed, old messages replayed. Exit status 1 if an invariant is broken.
    """
    from ops.torture import all_faults, broker_kind, show
    from ops.torture import torture as run_torture

    if list_faults:
        faults = all_faults(broker_kind(rabbitmq))
        names = list(dict.fromkeys(fault.name for fault in faults))
        print_json(names) if as_json else out.print("\n".join(names), markup=False)
        return
    report = run_torture(
        seed,
        minutes,
        batches,
        say,
        only=tuple(only or ()),
        longest_s=longest,
        logs=logs,
        rabbitmq=rabbitmq,
    )
    if as_json:
        print_json(report.as_json())
    else:
        show(report, out)
    raise typer.Exit(0 if report.ok else 1)


app.command()(bench)
operations.add_to(app)


def main() -> NoReturn:
    """Run `els`; an error that has a name is a message and exit status 1, not a traceback."""
    as_json = "--json" in sys.argv
    try:
        app(prog_name="els")
    except ELSError as error:
        fail(str(error), as_json)
    except psycopg.errors.UndefinedTable:
        fail("the database has no schema yet; run `els migrate`", as_json)
    except psycopg.errors.InvalidSchemaName as error:
        fail(f"{_reason(error)}; create the schema that the URL's search_path names", as_json)
    except psycopg.Error as error:
        if error.sqlstate:
            fail(f"Postgres refuses: {_reason(error)}; see `curl …/readyz`", as_json)
        told = f"Postgres does not answer: {_reason(error)}"
        fail(f"{told}; is the database of ELS_DATABASE_URL up?", as_json)
    except redis.RedisError as error:
        fail(f"Redis does not answer: {error}; is the server of ELS_REDIS_URL up?", as_json)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _reason(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error)


def _show_endpoints(found: Endpoints) -> None:
    out.print()
    out.print(f"  Flower    {found.flower_url}", soft_wrap=True)
    out.print(f"  Ops       {found.ops_url}", soft_wrap=True)
    out.print(f"  Data      {found.home}", soft_wrap=True)
    out.print("\nReady. `els env` prints the URLs, `els status` the batches; Ctrl-C stops.\n")


def _status_table(rows: list[dict[str, Any]]) -> Table:  # Any: database rows
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("BATCH", "STATE"):
        table.add_column(name, no_wrap=True)
    for name in ("SLOTS", "ASSIGNED", "FAILED", "OPEN", "PENDING", "EXCESS", "AGE"):
        table.add_column(name, justify="right")
    for row in rows:
        counts = ("expected_count", "assigned", "failed", "available_slots", "pending", "excess")
        numbers = ["-" if row[name] is None else str(row[name]) for name in counts]
        table.add_row(row["batch_id"], row["status"], *numbers, age(row["age_s"]))
    return table


def _show_outcomes(
    sent: "list[Sent]",
    found: list[Any],
    as_json: bool,  # Any: JSON
) -> None:
    """Show what each message led to; exit 1 if one is a dead letter or still under way."""
    told = [
        {"task": message.task, "event_id": message.event.get("event_id"), **(outcome or {})}
        for message, outcome in zip(sent, found, strict=True)
    ]
    if as_json:
        print_json(told)
    for line in [] if as_json else told:
        extra = line.get("essay_id") or line.get("message") or line.get("batch_id") or ""
        shown = line.get("outcome", "not taken yet: is a worker running? (`els run`)")
        out.print(f"{line['task']}  {shown}  {extra}", markup=False, soft_wrap=True)
    if any(outcome is None or outcome["outcome"] == "dead_letter" for outcome in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
