"""What the commands share: options, settings, a connection to the stack's Postgres."""

import getpass
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core import db, logs
from core.db.connection import Conn
from core.messages import NAME_LENGTH
from core.servers.redis_client import connect
from core.settings import Settings
from core.slots import Slots
from ops.cli.target import POSTGRES, conflict, endpoints, explicit, locations
from ops.moments import moment_of
from ops.output import err, fail, say
from ops.queries.actions import LONGEST_REASON, By
from ops.stack.home import Endpoints
from ops.wording import age

if TYPE_CHECKING:
    from ops.acting import Acting

SAY_EVERY_S = 2.0

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the stack's data (default: ELS_HOME, else .els)"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Change data without asking first")]
Why = Annotated[
    str | None, typer.Option("--reason", help="Why you do so; `els actions list` shows it")
]
Who = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who does so (default: user@host)")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, change nothing")]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Show at most this many")]


def read_settings(home: Path | None) -> Settings:
    """Read the settings; `--home` wins over `ELS_HOME`. What a command logs goes to stderr."""
    environ = dict(os.environ)
    if home is not None:
        environ["ELS_HOME"] = str(home)
    settings = Settings.from_env(environ)
    logs.configure(settings)
    return settings


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


@contextmanager
def acting_on(settings: Settings, found: Endpoints) -> "Iterator[Acting]":
    """Lend what an operator acts with. Raises psycopg.Error or redis.RedisError if one is away."""
    from ops.acting import Acting
    from ops.client import Sender

    # A pool would try again for ten seconds, log each try, and not say why.
    db.connect_once(found.database_url, prepare=settings.database_prepare).close()
    with (
        db.connect(found.database_url, prepare=settings.database_prepare) as pool,
        Sender(found.broker_url, settings.queue) as sender,
    ):
        client = connect(found.redis_url)
        client.ping()
        yield Acting(settings, pool, Slots(client), sender.app)


def signed(who: str | None, why: str | None, *, required: bool = True) -> By:
    """Read who acts and why. Exits with status 2 where a reason is required and not given."""
    if required and not (why or "").strip():
        raise typer.BadParameter("say why, for whoever asks later", param_hint="--reason")
    for text, longest, name in ((who, NAME_LENGTH, "--by"), (why, LONGEST_REASON, "--reason")):
        if text is not None and not 0 < len(text.strip()) <= longest:
            raise typer.BadParameter(f"it has 1 to {longest} characters", param_hint=name)
        if "\0" in (text or ""):
            raise typer.BadParameter("it holds a NUL", param_hint=name)
    return By((who or user_at_host()).strip(), why.strip() if why else None)


def user_at_host() -> str:
    """Name who acts where nobody gives a name: `user@host`, as the operating system knows it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def no_blank(given: str | None) -> str | None:
    """Refuse an argument without a letter, as of a variable that is not set."""
    if given is not None and not given.strip():
        raise typer.BadParameter("it is empty; is the variable set that it comes from?")
    return given


def read_moment(text: str | None, name: str) -> datetime | None:
    """Read an option that is a moment in UTC, or an age such as 2h."""
    if text is None:
        return None
    try:
        return moment_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=name) from error


def progress(total: int, what: str) -> Callable[[int], None]:
    """Return what says on stderr how far a long work is, every few seconds."""
    started = said = time.monotonic()

    def note(done: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done < total and now - said >= SAY_EVERY_S:
            said = now
            left = (now - started) / done * (total - done) if done else 0.0
            say(f"{done} of {total} {what}, about {age(left)} left")

    return note
