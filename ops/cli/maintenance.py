"""The commands that tidy up: reconcile and purge."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from core import db, logs
from core.db.actions import By
from core.db.connection import Conn
from core.settings import Settings
from core.slots import Slots, connect
from core.sweep import SweepResult
from ops import queries
from ops.cli.options import (
    AsJson,
    Home,
    Who,
    Why,
    Yes,
    acting_on,
    confirm_change,
    connection,
    settings_to_read,
    signed,
)
from ops.cli.target import POSTGRES, REDIS, endpoints
from ops.output import fail, out, print_json, print_line, print_result
from ops.stack.supervisor import Endpoints

PURGE_CHUNK = 50  # batches deleted by one transaction


def reconcile(
    batch: Annotated[str | None, typer.Argument(help="One batch; else all")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Find, but repair nothing")] = False,
    why: Why = None,
    who: Who = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Run the sweep now; print what it found and repaired.

    Exit status 1 if something stays broken: only a person can repair it, or it is a dry run.
    """
    by = None if dry_run else signed(who, why, required=False)
    if dry_run:
        settings = settings_to_read(home)
        found = endpoints(settings)
    else:
        settings, found = confirm_change(
            home, "reconcile", yes=yes, as_json=as_json, repeatable=True
        )
    logs.configure(settings)
    results = _sweep(settings, found, batch, by, as_json)
    if as_json:
        print_json([asdict(each) for each in results])
    else:
        _show_results(results, dry_run)
    if any(not each.mended for each in results):
        raise typer.Exit(1)


def _sweep(
    settings: Settings, found: Endpoints, batch: str | None, by: By | None, as_json: bool
) -> Sequence[SweepResult]:
    """Sweep once, dry where nobody signs; exit where another sweep holds the lock."""
    with acting_on(settings, found) as acting:  # one rule reads Redis, so it must answer
        results = acting.reconcile(batch, by)
        with acting.pool.connection() as conn:
            holder = db.sweep.holder(conn)
    if results is None:
        held = f" ({holder})" if holder else ""
        fail(f"another sweep is at work{held}; try again in a moment", as_json)
    return results


def _show_results(results: Sequence[SweepResult], dry_run: bool) -> None:
    for each in results:
        did = "mended" if each.mended else "found" if dry_run else "not mended"
        detail = f" ({each.finding.detail})" if each.finding.detail else ""
        print_line(f"{did}  {each.rule}  {each.finding.batch_id}{detail}")
        if each.error:
            times = f"tried {each.failures} times in a row" if each.failures else "tried"
            print_line(f"    {times}: {each.error}")
    if not results:
        out.print("Nothing found.")


def purge(
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, max=36_500, help="Days since they closed")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, but delete nothing")] = False,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete closed batches with all their data, and old contents whose batch nobody registered.

    Keeps every batch with an undelivered event or an unsettled dead letter.
    """
    needed = (POSTGRES, REDIS)
    if dry_run:
        settings = settings_to_read(home)
        found = endpoints(settings, *needed)
    else:
        what = f"purge everything that closed {older_than:g} days ago or earlier"
        settings, found = confirm_change(home, what, *needed, yes=yes, as_json=as_json)
    slots = Slots(connect(found.redis_url))
    with connection(settings) as conn:
        if dry_run:
            batches = len(queries.purgeable(conn, older_than, 1_000_000))
        else:
            batches = _purge(conn, slots, older_than)
        pending = queries.expired_pending(conn, older_than, delete=not dry_run)
        refusals = queries.expired_refusals(conn, older_than, delete=not dry_run)
    word = "would be deleted" if dry_run else "deleted"
    line = f"{batches} batches, {pending} pending contents, {refusals} refusals {word}"
    counts = {"batches": batches, "pending": pending, "refusals": refusals}
    print_result({**counts, "dry_run": dry_run}, line, as_json)


def _purge(conn: Conn, slots: Slots, older_than: float) -> int:
    """Delete batches, a chunk a transaction; return their number."""
    batches = 0
    while chunk := queries.purgeable(conn, older_than, PURGE_CHUNK):
        with conn.transaction():
            for batch_id in chunk:
                queries.purge(conn, batch_id)
        slots.forget(chunk)
        batches += len(chunk)
    return batches
