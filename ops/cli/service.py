"""The commands that run the service, and its parts one by one."""

import os
import sys
from dataclasses import asdict

import typer

from ops.cli.options import AsJson, Home, Yes, confirm_change, read_settings, settings_to_read
from ops.cli.passwords import Passwords, RoleNames, Roles, read_passwords
from ops.cli.target import POSTGRES, endpoints
from ops.output import fail, out, print_json, print_result, say
from ops.stack.supervisor import Endpoints, Stack


def run(home: Home = None, as_json: AsJson = False) -> None:
    """Run the whole service in the foreground until Ctrl-C.

    Starts Postgres and Valkey unless ELS_DATABASE_URL and ELS_REDIS_URL are set, migrates the
    schema, then starts worker, beat, ops page and Flower. A second run on the same home continues
    with the same data.
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


def env(home: Home = None, as_json: AsJson = False) -> None:
    """Print the URLs of the running stack as JSON, passwords included."""
    print_json(asdict(endpoints(settings_to_read(home))))


def migrate(
    roles: Roles = False,
    role_names: RoleNames = "els_migrate,els_app,els_read",
    passwords: Passwords = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Bring the schema to head. Safe to repeat, and to run in several places at once.

    With --roles also write the roles of docs/postgres.md, with the least rights.
    """
    from migrations import current, upgrade
    from migrations.roles import Names, write_roles

    names, given = Names.of(role_names), read_passwords(passwords)
    if passwords and not roles:
        fail("--passwords is for --roles; give both", as_json, status=2)
    what = "migrate the schema and write roles" if roles else "migrate the schema"
    _, found = confirm_change(home, what, POSTGRES, yes=yes, as_json=as_json)
    before = current(found.database_url)
    upgrade(found.database_url)
    after = current(found.database_url)
    line = f"schema at {after}" + ("" if before == after else f" (was {before or 'empty'})")
    result: dict[str, object] = {"before": before, "revision": after}
    if roles:
        did = write_roles(found.database_url, names, given)
        result |= {"roles": asdict(names), "did": did}
        line = "\n".join([line, *(did or ["the roles are as they should be"])])
    print_result(result, line, as_json)


def ops() -> None:
    """Serve the pages, health and metrics over HTTP (`els run` starts it)."""
    from ops.web.app import serve

    serve(read_settings(None))


def flower() -> None:
    """Serve Flower, read-only (`els run` starts it). ELS_FLOWER_AUTH sets user:password."""
    from ops.stack.flower import command, environment

    settings = read_settings(None)
    environ = environment(settings, os.environ)
    os.execve(sys.executable, command(settings), environ)  # noqa: S606 - our own command


def worker(context: typer.Context) -> None:
    """Start a worker; takes every option of `celery worker` (`els run` starts one)."""
    from ops.stack.celery_command import main

    main("worker", context.args)


def beat(context: typer.Context) -> None:
    """Start beat, which enqueues sweep and relay. Run exactly one (`els run` starts it)."""
    from ops.stack.celery_command import main

    main("beat", context.args)


def health(context: typer.Context) -> None:
    """Check that the worker of this home is not hung: `els health worker`, for supervisors."""
    from ops.stack.worker_health import main

    raise typer.Exit(main(context.args))


def _show_endpoints(found: Endpoints) -> None:
    out.print()
    out.print(f"  Flower    {found.flower_url}", soft_wrap=True)
    out.print(f"  Ops       {found.ops_url}", soft_wrap=True)
    out.print(f"  Data      {found.home}", soft_wrap=True)
    out.print("\nReady. `els env` prints the URLs, `els status` the batches; Ctrl-C stops.\n")
