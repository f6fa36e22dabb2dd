"""The commands that run the service, and its parts one by one."""

import os
import sys
from dataclasses import asdict
from functools import partial

import typer

from ops.cli.options import AsJson, Home, read_settings, settings_to_read
from ops.cli.target import endpoints
from ops.output import out, print_json, say
from ops.stack.home import Endpoints
from ops.stack.supervisor import Stack


def run(home: Home = None, as_json: AsJson = False) -> None:
    """Run the whole service in the foreground until Ctrl-C.

    Starts Postgres and Valkey unless ELS_DATABASE_URL and ELS_REDIS_URL are set, migrates the
    schema, then starts worker, beat, ops page and Flower. A second run on the same home continues
    with the same data.
    """
    from core.servers.requirements import check_servers
    from migrations import upgrade

    settings = read_settings(home)
    with Stack(
        settings,
        echo=say,
        migrate=partial(upgrade, say=say),
        check=check_servers,
        output=sys.stderr,
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


def ops() -> None:
    """Serve the pages, health and metrics over HTTP (`els run` starts it)."""
    from ops.web.server import serve

    serve(read_settings(None))


def flower() -> None:
    """Serve Flower, read-only (`els run` starts it). ELS_FLOWER_AUTH sets user:password."""
    from ops.stack.flower import command, environment

    settings = read_settings(None)
    environ = environment(settings, os.environ)
    os.execve(sys.executable, command(settings), environ)  # noqa: S606 - our own command


def worker(context: typer.Context) -> None:
    """Start a worker; takes the options of `celery worker` (`els run` starts one)."""
    from ops.stack.celery_command import main

    main("worker", context.args)


def beat(context: typer.Context) -> None:
    """Start beat, which enqueues sweep and relay. Of several one leads (`els run` starts one)."""
    from ops.stack.celery_command import main

    main("beat", context.args)


def health(context: typer.Context) -> None:
    """Check that a worker or beat is not hung: `els health worker`, `els health beat`."""
    from ops.stack.worker_health import main

    raise typer.Exit(main(context.args))


def _show_endpoints(found: Endpoints) -> None:
    out.print()
    out.print(f"  Flower    {found.flower_url}", soft_wrap=True)
    out.print(f"  Ops       {found.ops_url}", soft_wrap=True)
    out.print(f"  Data      {found.home}", soft_wrap=True)
    out.print("\nReady. `els env` prints the URLs, `els status` the batches; Ctrl-C stops.\n")
