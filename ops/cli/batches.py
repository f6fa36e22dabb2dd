"""The commands about batches: explain, find, submit, cancel, amend."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.errors import Refusal
from core.states import OnDeadline
from ops.cli.options import (
    AsJson,
    Home,
    Limit,
    Who,
    Yes,
    acting_on,
    confirm_change,
    connection,
    no_blank,
    settings_to_read,
    signed,
)
from ops.cli.target import BROKER, POSTGRES, REDIS, endpoints
from ops.explain.asking import explained
from ops.moments import from_now
from ops.output import fail, print_json, print_line, print_result
from ops.queries import batches
from ops.queries.retention import kept_until
from ops.reports import show_explanation
from ops.wording import number, utc

if TYPE_CHECKING:
    from ops.client import Sent

ALL = (POSTGRES, BROKER, REDIS)


def explain(
    batch: Annotated[str, typer.Argument(help="The batch's id", callback=no_blank)],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Say why a batch is or is not ready, and what you can do.

    What it waits for, since when, what the service will do by itself; then the timeline, and
    Postgres beside Redis. Exit status 1 for a batch that nobody has
    announced, and where Postgres does not answer.
    """
    settings = settings_to_read(home)
    found = endpoints(settings)
    explanation = explained(settings, found, batch)
    until = kept_until(explanation.sides.get("postgres", {}), settings.retention_days)
    if as_json:
        print_json({**asdict(explanation), "kept_until": until})
    else:
        show_explanation(explanation)
        if until:
            print_line(f"Kept until {utc(until)}, by ELS_RETENTION_DAYS.")
    if explanation.state in ("unknown", "unread"):
        raise typer.Exit(1)


def find(
    wanted: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            callback=no_blank,
            help="Of a batch, essay, text, file, message, event, correlation, user, class or"
            " organisation",
        ),
    ],
    limit: Limit = 1_000,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List everything that has an id: slots, pending, excess, dead letters, events.

    For the event_id of a message, show its outcome. Exit status 1 if nothing has the id.
    """
    with connection(settings_to_read(home)) as conn:
        rows = batches.find(conn, wanted, limit)
    if not rows:
        fail(f"nothing here has the id {wanted}", as_json)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        fields = (row["place"], row["batch_id"], row["name"], row["state"], row["content"])
        when = row["at"] and utc(row["at"])
        print_line("  ".join(str(each) for each in (*fields, when) if each))


def submit(
    file: Annotated[str, typer.Argument(help="JSON or JSON Lines; - for standard input")],
    home: Home = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the outcomes and print them")
    ] = False,
    timeout_s: Annotated[
        float, typer.Option(min=0, help="With --wait: give up after so many seconds")
    ] = 60,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Enqueue events from a file.

    Each is {"task": "els.assign_content", "event": {…}}, or the event alone.
    """
    from ops import client

    place = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        events = list(client.read_events(text))
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from error
    except ValueError as error:
        fail(f"{place}: {error}", as_json)
    if not events:
        fail(f"{place} holds no events", as_json)
    needed = (POSTGRES, BROKER) if wait else (BROKER,)
    what = f"enqueue {number(len(events), 'event')}"
    settings, found = confirm_change(home, what, *needed, yes=yes, as_json=as_json, repeatable=True)
    with client.Sender(found.broker_url, settings.queue) as sender:
        sent = [sender.send(task, event) for task, event in events]
    if not wait:
        line = f"{number(len(sent), 'event')} enqueued on {settings.queue}"
        print_result({"enqueued": len(sent)}, line, as_json)
        return
    with connection(settings) as conn:
        outcomes = client.outcomes(conn, sent, timeout_s)
    _show_outcomes(sent, outcomes, as_json)


def cancel(
    batch: Annotated[str, typer.Argument(help="The batch to cancel")],
    reason: Annotated[str, typer.Option("--reason", help="Why; the event carries it")],
    who: Who = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Cancel a batch: keep its contents, take no more, and send BatchCancelled."""
    by = signed(who, reason)
    what = f"cancel batch {batch}"
    settings, found = confirm_change(home, what, *ALL, yes=yes, as_json=as_json)
    with acting_on(settings, found) as acting:
        _act("els.cancel_batch", lambda: acting.cancel(batch, by), as_json)


def amend(
    batch: Annotated[str, typer.Argument(help="The batch to change, until it is sealed")],
    reason: Annotated[str, typer.Option("--reason", help="Why; `els actions list` shows it")],
    deadline_s: Annotated[
        float | None, typer.Option("--deadline-s", help="The deadline, in seconds from now")
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", help="The deadline: a moment in UTC, or from now: 2h, 3d"),
    ] = None,
    on_deadline: Annotated[
        OnDeadline | None, typer.Option("--on-deadline", help="What happens at the deadline")
    ] = None,
    prompt_ref: Annotated[
        str | None,
        typer.Option("--prompt-ref", metavar="JSON", help="Another student_prompt_ref, an object"),
    ] = None,
    who: Who = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Change the deadline of a batch, what happens at it, or its prompt, until it is sealed."""
    by = signed(who, reason)
    given = {
        "deadline_s": _seconds(deadline_s, deadline),
        "on_deadline": on_deadline.value if on_deadline else None,
        "student_prompt_ref": _json_object(prompt_ref),
    }
    fields = {name: value for name, value in given.items() if value is not None}
    if not fields:
        raise typer.BadParameter(
            "say what changes: --deadline, --on-deadline or --prompt-ref", param_hint="BATCH"
        )
    what = f"amend batch {batch}: {', '.join(fields)}"
    settings, found = confirm_change(home, what, *ALL, yes=yes, as_json=as_json)
    with acting_on(settings, found) as acting:
        _act("els.amend_batch", lambda: acting.amend(batch, by, **fields), as_json)


def _seconds(deadline_s: float | None, deadline: str | None) -> float | None:
    """Read a deadline, given in one of two forms, as seconds from now."""
    if deadline is None:
        return deadline_s
    if deadline_s is not None:
        raise typer.BadParameter(
            "give --deadline or --deadline-s, not both", param_hint="--deadline"
        )
    try:
        return from_now(deadline).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--deadline") from error


def _json_object(text: str | None) -> dict[str, Any] | None:  # Any: JSON
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--prompt-ref") from error
    if not isinstance(value, dict):
        raise typer.BadParameter("not a JSON object", param_hint="--prompt-ref")
    return value


def _act(task: str, act: Callable[[], Mapping[str, Any]], as_json: bool) -> None:  # Any: JSON
    """Act on a batch; print the outcome, or exit with status 1 where it is refused."""
    try:
        outcome = act()
    except Refusal as error:
        outcome = {"outcome": "refused", "code": error.code, "message": str(error)}
    if as_json:
        print_json([{"task": task, **outcome}])
    else:
        detail = outcome.get("message") or outcome["batch_id"]
        print_line(f"{task}  {outcome['outcome']}  {detail}")
    if outcome["outcome"] == "refused":
        raise typer.Exit(1)


def _show_outcomes(
    sent: "Sequence[Sent]",
    outcomes: Sequence[Mapping[str, Any] | None],  # Any: JSON
    as_json: bool,
) -> None:
    """Print the outcome of each message; exit 1 if one is a dead letter or not carried out."""
    results: list[dict[str, Any]] = [  # Any: JSON
        {"task": message.task, "event_id": message.event.get("event_id"), **(outcome or {})}
        for message, outcome in zip(sent, outcomes, strict=True)
    ]
    if as_json:
        print_json(results)
    for result in [] if as_json else results:
        detail = result.get("essay_id") or result.get("message") or result.get("batch_id") or ""
        outcome = result.get("outcome", "not carried out yet: is a worker running? (`els run`)")
        code = f"  {result['code']}" if "code" in result else ""
        print_line(f"{result['task']}  {outcome}{code}  {detail}")
    if any(outcome is None or outcome["outcome"] == "dead_letter" for outcome in outcomes):
        raise typer.Exit(1)
