"""What the commands share: options, settings, a connection to the stack's Postgres."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from core import db
from core.db.connection import Conn
from core.settings import Settings
from ops.cli.target import POSTGRES, conflict, endpoints, explicit, locations
from ops.output import err, fail, say
from ops.stack.supervisor import Endpoints

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the stack's data (default: ELS_HOME, else .els)"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Change data without asking first")]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Show at most this many")]


def read_settings(home: Path | None) -> Settings:
    """Read the settings; `--home` wins over `ELS_HOME`."""
    environ = dict(os.environ)
    if home is not None:
        environ["ELS_HOME"] = str(home)
    return Settings.from_env(environ)


def settings_to_read(home: Path | None) -> Settings:
    """Read the settings of a command that changes nothing; note where they contradict the home."""
    settings = read_settings(home)
    if contradiction := conflict(settings):
        say(f"note: {contradiction}; this command reads the server of the URL")
    return settings


def confirm_change(
    home: Path | None, what: str, *needed: str, yes: bool, as_json: bool, repeatable: bool = False
) -> tuple[Settings, Endpoints]:
    """Read the settings of a command that changes data; say where it acts, and ask a person.

    A `repeatable` command does not ask on the stack of a home. Exits with status 2 where the
    settings contradict the home, and 1 where the person says no.
    """
    settings = read_settings(home)
    if contradiction := conflict(settings):
        fail(f"{contradiction}; unset the one that you do not mean", as_json, status=2)
    found = endpoints(settings, *needed)
    say(f"{what}: {locations(found)}")
    asks = explicit(settings) or not repeatable
    if asks and not yes and sys.stdin.isatty():
        err.print(f"{what}? [y/N] ", end="", markup=False)
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            fail("nothing was changed; answer y, or give --yes", as_json)
    return settings, found


@contextmanager
def connection(settings: Settings) -> Iterator[Conn]:
    """Lend a connection to the stack's Postgres."""
    with db.connect_once(endpoints(settings, POSTGRES).database_url) as conn:
        yield conn
