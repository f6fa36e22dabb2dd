"""`els`: the service, and everything that people ask of it, from a terminal.

Commands import what only they need themselves: `els status` should not wait for Alembic.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Annotated, NoReturn

import psycopg
import redis
import typer

from core.errors import ELSError
from core.servers.away import away
from core.servers.handshake import describe
from core.settings import Settings
from ops.cli import (
    access,
    actions,
    batches,
    completion,
    dead_letters,
    erase,
    maintenance,
    migrate,
    outbox,
    reference,
    service,
    status,
    trials,
)
from ops.output import fail

app = typer.Typer(
    help="Essay Lifecycle Service: gives each stored essay text a slot of its batch, and says"
    " exactly once that the batch is ready.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # so that a paragraph is filled, whatever the lines of its source
    context_settings={"help_option_names": ["-h", "--help"]},
)
ANY_OPTION = {"allow_extra_args": True, "ignore_unknown_options": True}  # `els` hands these on
BENCH = "bench.command"  # found by name: it is in a checkout, and not in the wheel

SERVICE, LOOK, MEND, TRY = "The service", "Look", "Mend", "Try out"  # headings of `els --help`

commands: dict[str, tuple[Callable[..., None], ...]] = {
    SERVICE: (
        *(service.run, service.env, migrate.migrate, access.access, service.ops, service.flower),
    ),
    LOOK: (status.status, batches.explain, batches.find, reference.schema),
    MEND: (maintenance.reconcile, batches.cancel, batches.amend, maintenance.purge, erase.erase),
    TRY: (trials.demo, batches.submit, trials.torture),
}
for heading, each in commands.items():
    for command in each:
        app.command(rich_help_panel=heading)(command)
for command in (service.worker, service.beat, service.health):
    app.command(rich_help_panel=SERVICE, context_settings=ANY_OPTION)(command)
app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel=MEND)
app.add_typer(actions.app, name="actions", rich_help_panel=LOOK)
app.add_typer(outbox.app, name="outbox", rich_help_panel=MEND)
if find_spec(BENCH.partition(".")[0]) and find_spec(BENCH):
    app.command(rich_help_panel=TRY)(import_module(BENCH).bench)
else:
    app.command(rich_help_panel=TRY, context_settings=ANY_OPTION)(trials.bench)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"els {metadata.version('essay-lifecycle-service')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and exit"
        ),
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run `els`; an error that has a name is a message and exit status 1, not a traceback."""
    as_json = "--json" in sys.argv
    try:
        if "_ELS_COMPLETE" in os.environ:
            completion.offer_more(app)
        app(prog_name="els")
    except ELSError as error:
        fail(str(error), as_json)
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        step = "run `els migrate`; if that changes nothing, `els explain BATCH` says what is wrong"
        fail(f"the database has no schema for this release: {_reason(error)}; {step}", as_json)
    except psycopg.errors.InvalidSchemaName as error:
        fail(f"{_reason(error)}; create the schema that the URL's search_path names", as_json)
    except psycopg.Error as error:
        if error.sqlstate:
            fail(f"Postgres refuses: {_reason(error)}; see `curl …/readyz`", as_json)
        _fail_by_tls("postgres", error, as_json)
        refusal = f"Postgres does not answer: {_reason(error)}"
        fail(f"{refusal}; is the database of ELS_DATABASE_URL up?", as_json)
    except redis.RedisError as error:
        _fail_by_tls("redis", error, as_json)
        fail(f"Redis does not answer: {error}; is the server of ELS_REDIS_URL up?", as_json)
    except OSError as error:  # a disk that is full, a home that is no folder
        fail(str(error), as_json=False)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _fail_by_tls(server: str, error: Exception, as_json: bool) -> None:
    """Say what is wrong with a certificate, if that is the fault."""
    settings = Settings.from_env()
    url = settings.database_url if server == "postgres" else settings.redis_url
    if url and describe(error):
        found = away(server, url, error)
        fail(f"{server}: {found.wrong}. Next: {found.step}", as_json)


def _reason(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error)
