"""`els erase`: take a person out of everything that the service keeps."""

from typing import Annotated, Any

import typer

from core.servers.redis_client import connect
from core.servers.urls import is_amqp
from ops.cli.options import (
    AsJson,
    DryRun,
    Home,
    Who,
    Yes,
    confirm_change,
    connection,
    settings_to_read,
    signed,
)
from ops.cli.target import POSTGRES, REDIS, endpoints
from ops.output import fail, print_json, print_line
from ops.queries import actions
from ops.wording import number


def erase(
    reason: Annotated[str, typer.Option("--reason", help="Why; `els actions list` shows it")],
    user: Annotated[
        str | None, typer.Option("--user", help="A user's id: user_id, validated_by")
    ] = None,
    student: Annotated[str | None, typer.Option("--student", help="A student's id")] = None,
    open_too: Annotated[
        bool, typer.Option("--open", help="Also where a batch is open or an event is undelivered")
    ] = False,
    dry_run: DryRun = False,
    who: Who = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Erase a person from tables and Redis; `erased` stands instead.

    Refused while a batch still needs the person, unless --open. Exit status 1 if it is refused, or
    if messages that wait name the person: run it again once they are carried out.
    """
    from ops import erasure

    person = _person(user, student)
    by = erasure.erase_reason(person, signed(who, reason))
    needed = (POSTGRES, REDIS)
    if dry_run:
        settings = settings_to_read(home)
        found = endpoints(settings, *needed)
    else:
        settings, found = confirm_change(
            home, f"erase a {person.kind} everywhere", *needed, yes=yes, as_json=as_json
        )
    queues = [*settings.queues, settings.events_queue]
    note = None
    with connection(settings) as conn:
        held = erasure.open_batches(conn, person)
        if held and not (open_too or dry_run):
            step = "wait for their end, cancel them (`els cancel`), or give --open"
            fail(
                f"these batches are open or have undelivered events: {', '.join(held)}; {step}",
                as_json,
            )
        rows = erasure.erase_rows(conn, person, dry_run=dry_run)
        client = connect(found.redis_url)
        in_redis = erasure.erase_redis(client, person, queues, dry_run=dry_run)
        if not dry_run:
            actions.record(
                conn,
                by.action("erase", f"a {person.kind}", rows=dict(rows), redis=in_redis.entries),
            )
            note = erasure.clean_up(conn, list(rows))
    result: dict[str, Any] = {  # Any: JSON
        "rows": dict(rows),
        "redis": in_redis.entries,
        "waiting": dict(in_redis.waiting),
        "open": held,
        "dry_run": dry_run,
    }
    _show(result, note, is_amqp(found.broker_url), as_json)
    if in_redis.waiting and not dry_run:
        raise typer.Exit(1)


def _person(user: str | None, student: str | None) -> "Any":  # Any: imported late
    from ops.erasure import Person

    if (user is None) == (student is None):
        raise typer.BadParameter("give --user or --student", param_hint="--user")
    if not (user or student or "").strip():
        raise typer.BadParameter("an id is not empty", param_hint="--user")
    return Person("user", user) if user is not None else Person("student", str(student))


def _show(result: dict[str, Any], note: str | None, amqp: bool, as_json: bool) -> None:  # Any: JSON
    if as_json:
        print_json(result)
        return
    word = "would be changed" if result["dry_run"] else "changed"
    for table, count in result["rows"].items():
        print_line(f"{number(count, 'row')} of {table} {word}")
    rows = number(sum(result["rows"].values()), "row")
    entries = number(result["redis"], "entry", "entries")
    print_line(f"{rows} and {entries} of Redis {word}")
    if result["open"]:
        print_line(f"open, or with undelivered events: {', '.join(result['open'])}")
    for queue, count in result["waiting"].items():
        print_line(
            f"{number(count, 'message names', 'messages name')} the person in {queue}:"
            " run this again once that is gone"
        )
    if note:
        print_line(f"old rows stay on the disk until Postgres vacuums: {note}")
    if amqp:
        print_line("messages that wait in RabbitMQ were not looked at")
