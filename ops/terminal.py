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

from core import ledger
from core.errors import StackError
from core.ledger import Conn
from core.settings import Settings
from ops.stack import Endpoints, running

out = Console(highlight=False, emoji=False)  # `:key:` in a storage id stays what it is
err = Console(stderr=True, highlight=False, emoji=False)

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the stack's data; else ELS_HOME, else .els"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs")]


def read_settings(home: Path | None) -> Settings:
    """Read the settings; `--home` wins over `ELS_HOME`."""
    environ = dict(os.environ)
    if home is not None:
        environ["ELS_HOME"] = str(home)
    return Settings.from_env(environ)


def endpoints(settings: Settings) -> Endpoints:
    """Find the stack: the one that runs on the home, else the one the URLs name."""
    if found := running(settings.home):
        return found
    if settings.database_url and settings.redis_url:
        return Endpoints(
            database_url=settings.database_url,
            redis_url=settings.redis_url,
            broker_url=settings.broker_url or settings.redis_url,
            ops_url=f"http://{settings.ops_host}:{settings.ops_port}",
            flower_url=f"http://{settings.flower_host}:{settings.flower_port}",
            pid=0,
            home=str(settings.home.absolute()),
        )
    raise StackError(
        f"no stack runs on {settings.home.absolute()}; start one with `els run`,"
        " or set ELS_DATABASE_URL and ELS_REDIS_URL"
    )


@contextmanager
def books(settings: Settings) -> Iterator[Conn]:
    """Lend a connection to the stack's Postgres."""
    with ledger.connect_once(endpoints(settings).database_url) as conn:
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


def fail(message: str, as_json: bool) -> NoReturn:
    """Say what is wrong and exit with status 1."""
    if as_json:
        typer.echo(json.dumps({"error": message}))
    err.print(f"els: {message}", markup=False, soft_wrap=True)
    sys.exit(1)


def age(seconds: float) -> str:
    """Write a duration the way people say it."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def utc(at: datetime) -> str:
    """Write a moment in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
