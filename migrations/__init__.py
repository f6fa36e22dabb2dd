"""The schema's history, and the one way to bring a database to head, or one step back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from core.db.connection import connect_once
from core.errors import ELSError
from core.schema import Standing, State, read_standing
from core.servers.postgres import other_encoding
from migrations.turn import PATIENCE_S, Turn, connect, retrying

HERE = Path(__file__).parent

Say = Callable[[str], object]


class CannotDowngrade(ELSError):
    """A step back that would delete batches, or bring nothing back."""


class UnfitDatabase(ELSError):
    """A database in another encoding than UTF8, which cannot hold every name."""


class UnknownSchema(ELSError):
    """A schema that this version cannot migrate, as it does not know it."""


def config(url: str) -> Config:
    """Configure Alembic for a database."""
    configured = Config()
    configured.set_main_option("script_location", str(HERE).replace("%", "%%"))
    configured.attributes["engine"] = _engine(url)
    return configured


def upgrade(
    url: str,
    revision: str = "head",
    say: Say = lambda _: None,
    patience_s: float = PATIENCE_S,
    waits: str | None = None,
) -> None:
    """Bring the schema of a database to a revision. Safe to run twice, and at once.

    `say` gets a line for each wait and for long progress. `waits` is the migration after
    `revision`, if that is to wait until somebody asks for it. Does nothing to the schema of a newer
    release that this version can use. Raises UnknownSchema for another one, and MigrationBlocked
    where somebody holds a lock for longer than `patience_s`; what is done by then stays. Raises
    UnfitDatabase for an empty one that is not in UTF8.
    """
    found = stands(url)
    if found.state is State.AHEAD and found.usable:
        say(f"{found.wrong}; nothing is done")
        return
    if found.state in {State.AHEAD, State.UNKNOWN}:
        raise UnknownSchema(f"{found.wrong}; {found.step}")
    if found.state is State.EMPTY:
        _require_utf8(url)

    def run(configured: Config) -> None:
        configured.attributes["waits"] = waits
        command.upgrade(configured, revision)

    _migrate(url, say, patience_s, run)


def downgrade(url: str, revision: str, say: Say = lambda _: None) -> None:
    """Undo every migration after a revision. Raises MigrationBlocked, as `upgrade` does."""
    _migrate(url, say, PATIENCE_S, lambda configured: command.downgrade(configured, revision))


def _migrate(url: str, say: Say, patience_s: float, command_of: Callable[[Config], object]) -> None:
    configured = config(url)
    with _psycopgs_errors(), Turn(url, say, patience_s) as turn:
        for attempt in retrying(turn):
            with attempt, _engine(url).connect() as connection:
                configured.attributes.update(connection=connection, turn=turn)
                command_of(configured)


def _require_utf8(url: str) -> None:
    with connect_once(url) as conn:
        if found := other_encoding(conn):
            raise UnfitDatabase(f"{found.wrong}, and {found.why}; {found.step}")


def stands(url: str) -> Standing:
    """Return where a database stands beside this code."""
    with connect_once(url) as conn:
        return read_standing(conn)


def current(url: str) -> str | None:
    """Return the revision that a database is at; None for an empty one."""
    with _psycopgs_errors(), _engine(url).connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """Return the newest revision that this code knows."""
    newest = _scripts().get_current_head()
    assert newest is not None
    return newest


def pending(revision: str | None) -> list[Script]:
    """List the migrations that come after a revision, in their order."""
    return [*reversed([*_scripts().iterate_revisions("head", revision or "base")])]


def first_contract(revision: str | None, waits: str | None = None) -> Script | None:
    """Find the first migration to come that code of this revision does not survive.

    That happens where somebody skips a release: each release works on the schema of the next. It
    then `waits`.
    """
    if revision is None:
        return None  # nobody works on an empty database
    contracts = (each for each in pending(revision) if getattr(each.module, "oldest", ""))
    late = (each for each in contracts if each.module.oldest > revision or each.revision == waits)
    return next(late, None)


def previous(revision: str) -> Script:
    """Return the migration of a revision, to be undone. Raises CannotDowngrade."""
    scripts = _scripts()
    script = next((s for s in scripts.walk_revisions() if s.revision == revision), None)
    if script is None:
        raise CannotDowngrade(
            f"this version does not know {revision}; downgrade with the release that made it"
        )
    if script.down_revision is None:
        raise CannotDowngrade(
            f"{revision} is the first revision: undoing it would delete every batch;"
            " drop the database yourself if you mean that"
        )
    if getattr(script.module, "oldest", None):
        raise CannotDowngrade(
            f"{revision} deleted what no code uses any more, and nothing can bring that back;"
            " restore a backup from before it"
        )
    return script


def statements(span: str) -> str:
    """Write the SQL of some migrations, such as `0003:0004`; backwards for a downgrade."""
    configured = config("postgresql://")
    configured.output_buffer = StringIO()
    start, _, end = span.partition(":")
    (command.upgrade if start < end else command.downgrade)(configured, span, sql=True)
    return configured.output_buffer.getvalue()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(config("postgresql://"))


@contextmanager
def _psycopgs_errors() -> Iterator[None]:
    """Raise errors of Postgres as psycopg's own, as everywhere else."""
    try:
        yield
    except DBAPIError as error:
        raise (error.orig or error) from error


def _engine(url: str) -> Engine:
    """Let SQLAlchemy use connections as the service opens them, which see the same schema."""
    return create_engine("postgresql+psycopg://", creator=lambda: connect(url), poolclass=NullPool)


__all__: Sequence[str] = (
    "CannotDowngrade",
    "UnknownSchema",
    "config",
    "current",
    "downgrade",
    "first_contract",
    "head",
    "pending",
    "previous",
    "stands",
    "statements",
    "upgrade",
)
