"""The commands about batches: explain, find, submit, cancel."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.explain import explain as explain_batch
from core.slots import Slots, connect
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
from ops.cli.target import BROKER, POSTGRES, endpoints
from ops.heartbeat import read_heartbeat, with_own_probe
from ops.output import fail, print_json, print_line, print_result, utc
from ops.receivers import read_receivers
from ops.reports import show_explanation

if TYPE_CHECKING:
    from ops.client import Sent

WAIT_S = 10.0  # for a worker to carry out a command


def explain(
    batch: Annotated[str, typer.Argument(help="The batch's id")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Say why a batch is or is not ready, and what you can do.

    What it waits for, since when, what the service will do by itself; then the timeline, and
    Postgres beside Redis. Exit status 1 for a batch that nobody has announced.
    """
    settings = settings_to_read(home)
    found = endpoints(settings)
    client = connect(found.redis_url)
    slots = Slots(client)
    heartbeat = read_heartbeat(client, found.broker_url, settings.queues)
    receivers = read_receivers(settings, client, found.broker_url)
    with connection(settings) as conn:
        seen = with_own_probe(heartbeat, conn, slots)
        explanation = explain_batch(conn, slots, batch, seen, receivers)
    if as_json:
        print_json(asdict(explanation))
    else:
        show_explanation(explanation)
    if explanation.state == "unknown":
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
    """List everything that has an id: slots, pending, excess, dead letters, events.

    For the event_id of a message, show its outcome. Exit status 1 if nothing has the id.
    """
    with connection(settings_to_read(home)) as conn:
        rows = queries.find(conn, wanted, limit)
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
    settings, found = confirm_change(home, what, *needed, yes=yes, as_json=as_json, repeatable=True)
    with client.Sender(found.broker_url, settings.queue) as sender:
        sent = [sender.send(task, event) for task, event in events]
    if not wait:
        line = f"{len(sent)} events enqueued on {settings.queue}"
        print_result({"enqueued": len(sent)}, line, as_json)
        return
    with connection(settings) as conn:
        outcomes = client.outcomes(conn, sent, timeout_s)
    _show_outcomes(sent, outcomes, as_json)


def cancel(
    batch: Annotated[str, typer.Argument(help="The batch to cancel")],
    reason: Annotated[str, typer.Option("--reason", help="Why; the event carries it")],
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Cancel a batch: keep its contents, take no more, and send BatchCancelled."""
    from ops import client

    what = f"cancel batch {batch}"
    settings, found = confirm_change(home, what, POSTGRES, BROKER, yes=yes, as_json=as_json)
    with client.Sender(found.broker_url, settings.queue) as sender:
        sent = [sender.send("els.cancel_batch", client.common(batch, reason=reason))]
    with connection(settings) as conn:
        outcomes = client.outcomes(conn, sent, WAIT_S)
    _show_outcomes(sent, outcomes, as_json)


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
        print_line(f"{result['task']}  {outcome}  {detail}")
    if any(outcome is None or outcome["outcome"] == "dead_letter" for outcome in outcomes):
        raise typer.Exit(1)
