"""The schema's history, and the one way to bring a database to head."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from core.db.connection import connect_to_migrate

HERE = Path(__file__).parent


def config(url: str) -> Config:
    """Configure Alembic for a database."""
    configured = Config()
    configured.set_main_option("script_location", str(HERE).replace("%", "%%"))
    configured.attributes["engine"] = _engine(url)
    return configured


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema of a database to a revision. Safe to run twice, and at once."""
    configured = config(url)
    with _connected(url) as connection:
        configured.attributes["connection"] = connection
        command.upgrade(configured, revision)


def current(url: str) -> str | None:
    """Return the revision that a database is at; None for an empty one."""
    with _connected(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """Return the newest revision that this code knows."""
    newest = ScriptDirectory.from_config(config("postgresql://")).get_current_head()
    assert newest is not None
    return newest


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    """Connect; errors are psycopg's own, as everywhere else."""
    try:
        with _engine(url).connect() as connection:
            yield connection
    except DBAPIError as error:
        raise (error.orig or error) from error


def _engine(url: str) -> Engine:
    """Let SQLAlchemy use connections as the service opens them, which see the same schema."""
    return create_engine(
        "postgresql+psycopg://", creator=lambda: connect_to_migrate(url), poolclass=NullPool
    )
