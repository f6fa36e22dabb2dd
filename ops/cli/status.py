"""`els status`: the state of batches, and which beat leads."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from redis import RedisError
from rich.console import Console
from rich.table import Table

from core.checks import CheckContext
from core.db.connection import Conn, Row
from core.errors import StackError
from core.servers.redis_client import connect, connect_once
from core.settings import Settings
from core.slots import Slots
from core.states import BatchStatus
from ops.alarms import all_rules
from ops.cli.options import AsJson, Home, connection, no_blank, settings_to_read
from ops.cli.target import POSTGRES, REDIS, endpoints
from ops.output import Terminal, fail, out, print_json, print_line
from ops.queries import batches
from ops.signs import read_beats
from ops.wording import age

WIDEST = 1_000  # columns that a table could ask for
STUCK_LIMIT = 1_000  # batches of one rule
COUNTS = ("slots", "assigned", "failed", "open", "unfilled", "pending", "excess")
ALWAYS = {"slots", "assigned"}  # counts that are shown even if 0
COLUMNS = {"slots": "expected_count", "open": "available_slots"}  # as JSON names them: the table's


def status(
    batch: Annotated[
        str | None, typer.Argument(help="One batch; else the newest ones", callback=no_blank)
    ] = None,
    state: Annotated[
        BatchStatus | None, typer.Option(help="Only batches in this state", metavar="STATE")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only batches of this user")] = None,
    stuck: Annotated[
        bool, typer.Option("--stuck", help="Only batches that break a rule of the sweep")
    ] = False,
    home: Home = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most this many")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show the state of batches: slots accounted for, pending, excess, age."""
    settings = settings_to_read(home)
    with connection(settings) as conn:
        among = _stuck(conn, settings) if stuck else None
        wanted = batches.Wanted(batch, state, user, among)
        rows = batches.statuses(conn, wanted, limit)
        more = batches.count_batches(conn, wanted) - len(rows) if len(rows) == limit else 0
    if batch and not rows:
        fail(f"batch {batch} is not registered, and nothing waits for it", as_json)
    if as_json:
        print_json([_as_json(row) for row in rows])
    elif rows:
        _show_statuses(rows)
    else:
        chosen = state or user or stuck
        out.print("No such batch." if chosen else "No batches yet. `els demo` sends some.")
    if more > 0 and not as_json:
        print_line(f"{more} more: --limit shows up to 1000, --state and --user choose")
    if not batch and not as_json:
        _show_beats(settings)


def _as_json(row: Row) -> dict[str, Any]:  # Any: JSON
    counts = {COLUMNS.get(name, name): row[name] for name in COUNTS}
    moments = ("registered_at", "deadline_at", "completed_at", "ready_at")
    kept = {name: row[name] for name in ("batch_id", "status", "class_id", *moments)}
    return {**kept, **counts, "age_s": _age_s(row)}


def _age_s(row: Row) -> float:
    return float((datetime.now(UTC) - row["since"]).total_seconds())


def _show_beats(settings: Settings) -> None:
    """Print which beat leads, where a Redis is known and says so."""
    with suppress(RedisError, StackError):
        client = connect_once(endpoints(settings, POSTGRES, REDIS).redis_url)
        print_line(str(read_beats(client, settings.queue)))


def _stuck(conn: Conn, settings: Settings) -> list[str]:
    """List the batches that break a rule, up to `STUCK_LIMIT` for each rule."""
    slots = Slots(connect(endpoints(settings, POSTGRES, REDIS).redis_url))
    context = CheckContext(conn, slots, limit=STUCK_LIMIT)
    rules = all_rules(settings.pending_alarm_s)
    found = [finding for rule in rules for finding in rule.find(context) or ()]
    return sorted({finding.batch_id for finding in found})


def _show_statuses(rows: Sequence[Row]) -> None:
    """Print a table where it fits, else some lines for each batch: ids are never cut."""
    table = _status_table(rows)
    width = Console(width=WIDEST).measure(table).maximum
    if not out.is_terminal or width <= out.width:
        Terminal(width=max(out.width, width), highlight=False).print(table)
        return
    for row in rows:
        print_line(f"{row['batch_id']}\n  {row['status']}, {age(_age_s(row))} old")
        counted = [f"{row[name] or 0} {name}" for name in COUNTS if row[name] or name in ALWAYS]
        print_line(f"  {', '.join(counted)}")


def _status_table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("BATCH", "STATE"):
        table.add_column(name, no_wrap=True)
    shown = [name for name in COUNTS if name != "unfilled" or any(row[name] for row in rows)]
    for name in (*shown, "age"):
        table.add_column(name.upper(), justify="right")
    for row in rows:
        numbers = ["-" if row[name] is None else str(row[name]) for name in shown]
        table.add_row(row["batch_id"], row["status"], *numbers, age(_age_s(row)))
    return table
