"""How an explanation and the invariants read in a terminal."""

from collections.abc import Sequence
from itertools import zip_longest

from rich.console import Console
from rich.table import Table

from ops.explain.explanation import Explanation
from ops.output import out, print_line
from ops.queries.invariants import Invariant
from ops.wording import one_line, utc

POSTGRES_FACTS = (
    *("slots", "open", "assigned", "failed"),
    *("cancelled", "pending", "excess", "undelivered"),
)


def show_explanation(explanation: Explanation) -> None:
    """Print why a batch is or is not ready, its timeline, and Postgres beside Redis."""
    out.print(f"{explanation.batch_id}: {explanation.state}\n", style="bold", markup=False)
    for cause in explanation.causes:
        since = f", since {utc(cause.since)}" if cause.since else ""
        title = f"  {one_line(cause.title)}{since}"
        out.print(title, style="bold yellow", markup=False, soft_wrap=True)
        print_line(f"    why        {one_line(cause.reason)}")
        print_line(f"    by itself  {one_line(cause.by_itself)}")
        print_line(f"    you can    {one_line(cause.command)}\n")
    if explanation.unanswered:
        names = ", ".join(explanation.unanswered)
        print_line(f"  Not read: {names}\n")
    if not explanation.causes:
        as_far = ", as far as was read" if explanation.unanswered else ""
        out.print(f"  Nothing is missing{as_far}.\n")
    for note in explanation.notes:
        print_line(f"  Also: {one_line(note)}")
    if explanation.notes:
        out.print()
    if explanation.timeline:
        out.print("Timeline", style="bold")
        for at, what in explanation.timeline:
            print_line(f"  {utc(at)}  {one_line(what)}")
        out.print()
    if explanation.sides:
        out.print(_postgres_beside_redis(explanation))
    for line in explanation.disagreements:
        out.print(f"  ✘ {line}", style="red", markup=False, soft_wrap=True)


def _postgres_beside_redis(explanation: Explanation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("POSTGRES", "", "REDIS", ""):
        table.add_column(name)
    postgres = [(name, explanation.sides["postgres"].get(name, "-")) for name in POSTGRES_FACTS]
    redis = [
        (name, len(value) if isinstance(value, list) else value)
        for name, value in explanation.sides["redis"].items()
    ]
    for left, right in zip_longest(postgres, redis, fillvalue=("", "")):
        table.add_row(*map(str, (*left, *right)))
    return table


def show_invariants(invariants: Sequence[Invariant], console: Console) -> None:
    """Print a line for each invariant, and the verdict."""
    console.print("\nInvariants\n", style="bold")
    for invariant in invariants:
        mark = "[green]✔[/]" if invariant.holds else "[red]✘[/]"
        broken = "" if invariant.holds else f": broken by {', '.join(invariant.broken)}"
        console.print(f"  {mark} {invariant.title}{broken}", soft_wrap=True)
    held = all(invariant.holds for invariant in invariants)
    verdict = "Every invariant held." if held else "An invariant is broken."
    console.print(f"\n{verdict}\n", style="bold green" if held else "bold red")
