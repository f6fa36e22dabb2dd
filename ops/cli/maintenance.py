"""The commands that tidy up: reconcile and purge."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from core import db
from core.retention import Purge
from core.servers.redis_client import connect
from core.settings import Settings
from core.slots import Slots
from core.sweep import SweepResult
from ops.cli.options import (
    AsJson,
    Home,
    Who,
    Why,
    Yes,
    acting_on,
    confirm_change,
    connection,
    no_blank,
    progress,
    settings_to_read,
    signed,
)
from ops.cli.target import POSTGRES, REDIS, endpoints
from ops.explain.causes import TITLES
from ops.output import fail, out, print_json, print_line, print_result
from ops.queries import actions, retention, sweep
from ops.queries.actions import By
from ops.stack.home import Endpoints
from ops.wording import number

PURGED = {  # the kinds of a purge, as people read them
    "batches": ("batch", "batches"),
    "pending": ("pending content", "pending contents"),
    "refusals": ("refusal", "refusals"),
    "letters": ("dead letter", "dead letters"),
    "keys": ("key", "keys"),
    "actions": ("action", "actions"),
}


def reconcile(
    batch: Annotated[
        str | None, typer.Argument(help="One batch; else all", callback=no_blank)
    ] = None,
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
            holder = sweep.holder(conn)
    if results is None:
        held = f" ({holder})" if holder else ""
        fail(f"another sweep is at work{held}; try again in a moment", as_json)
    return results


def _show_results(results: Sequence[SweepResult], dry_run: bool) -> None:
    for each in results:
        did = "mended" if each.mended else "found" if dry_run else "not mended"
        detail = f" ({each.finding.detail})" if each.finding.detail else ""
        print_line(f"{did}  {each.rule}  {each.finding.batch_id}: {TITLES[each.rule]}{detail}")
        if each.error:
            times = f"tried {number(each.failures, 'time')} in a row" if each.failures else "tried"
            print_line(f"    {times}: {each.error}")
    if not results:
        out.print("Nothing found.")


def purge(
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, max=36_500, help="Days since they closed")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, but delete nothing")] = False,
    why: Why = None,
    who: Who = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete closed batches with all their data, and what old messages of no batch left.

    That is contents whose batch nobody registered, dead letters, keys and events about refusals.
    Keeps every batch with an undelivered event or an unsettled dead letter.
    """
    needed = (POSTGRES, REDIS)
    if dry_run:
        settings = settings_to_read(home)
        with connection(settings) as conn:
            counts = retention.count(conn, older_than)
    else:
        by = signed(who, why, required=False)
        what = f"purge everything that closed {older_than:g} days ago or earlier"
        settings, found = confirm_change(home, what, *needed, yes=yes, as_json=as_json)
        counts = _purge(settings, found, older_than, by)
    shown = {name: counts.get(name, 0) for name in PURGED}
    counted = ", ".join(number(shown[name], *words) for name, words in PURGED.items())
    line = f"{counted} {'would be deleted' if dry_run else 'deleted'}"
    print_result({**shown, "dry_run": dry_run}, line, as_json)


def _purge(settings: Settings, found: Endpoints, older_than: float, by: By) -> dict[str, int]:
    """Purge in small steps, and record the action; return how many of each kind."""
    with db.connect(found.database_url, prepare=settings.database_prepare) as pool:
        with pool.connection() as conn:
            total = retention.count_batches(conn, older_than)
        note = progress(total, "batches deleted")
        steps = Purge(pool, Slots(connect(found.redis_url)), older_than, by.actor)
        steps.run(each=lambda: note(steps.done["batches"]))
        with pool.connection() as conn:
            target = f"what is older than {older_than:g} days"
            actions.record(conn, by.action("purge", target, **dict[str, Any](steps.done)))
    return dict(steps.done)
