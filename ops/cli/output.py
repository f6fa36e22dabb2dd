"""What every command shares: where the stack is, and how results and errors are printed."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from core import db
from core.db.connection import Conn
from core.settings import Settings
from ops.cli.target import POSTGRES, conflict, endpoints, explicit, places
from ops.stack.supervisor import Endpoints

out = Console(highlight=False, emoji=False)  # `:key:` in a storage id stays what it is
err = Console(stderr=True, highlight=False, emoji=False)

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the stack's data; else ELS_HOME, else .els"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before data is changed")]


def read_settings(home: Path | None) -> Settings:
    """Read the settings; `--home` wins over `ELS_HOME`."""
    environ = dict(os.environ)
    if home is not None:
        environ["ELS_HOME"] = str(home)
    return Settings.from_env(environ)


def to_read(home: Path | None) -> Settings:
    """Read the settings of a command that changes nothing; note where they contradict the home."""
    settings = read_settings(home)
    if contradiction := conflict(settings):
        say(f"note: {contradiction}; this shows what the URL names")
    return settings


def to_change(
    home: Path | None, what: str, *needed: str, yes: bool, as_json: bool, gentle: bool = False
) -> tuple[Settings, Endpoints]:
    """Read the settings of a command that changes data; say where it acts, and ask a person.

    `gentle`: on the stack of a home, a command that may be repeated does not ask. Exits with
    status 2 where the settings contradict the home, and 1 where the person says no.
    """
    settings = read_settings(home)
    if contradiction := conflict(settings):
        fail(f"{contradiction}; unset the one that you do not mean", as_json, status=2)
    found = endpoints(settings, *needed)
    say(f"{what}: {places(found)}")
    asks = explicit(settings) or not gentle
    if asks and not yes and sys.stdin.isatty():
        err.print(f"{what}? [y/N] ", end="", markup=False)
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            fail("nothing was changed; answer y, or give --yes", as_json)
    return settings, found


@contextmanager
def books(settings: Settings) -> Iterator[Conn]:
    """Lend a connection to the stack's Postgres."""
    with db.connect_once(endpoints(settings, POSTGRES).database_url) as conn:
        yield conn


def say(line: str) -> None:
    """Say what is going on, beside the output proper."""
    err.print(line, style="dim", markup=False, soft_wrap=True)


def tell(value: dict[str, Any], line: str, as_json: bool) -> None:  # Any: JSON
    """Print a result, for a person or for a program."""
    if as_json:
        print_json(value)
    else:
        out.print(line, markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    """Print for programs."""
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def fail(message: str, as_json: bool, status: int = 1) -> NoReturn:
    """Say what is wrong, in one line, and exit."""
    message = " ".join(message.split())
    if as_json:
        typer.echo(json.dumps({"error": message}))
    err.print(f"els: {message}", markup=False, soft_wrap=True)
    sys.exit(status)


def age(seconds: float) -> str:
    """Write a duration the way people say it."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def utc(at: datetime) -> str:
    """Write a moment in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
