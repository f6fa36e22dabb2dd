"""Alembic's entry: runs migrations on the connection it is given, or makes one; or writes SQL."""

from collections.abc import Collection, Mapping
from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from sqlalchemy import Connection, event, text
from sqlalchemy.dialects.postgresql import dialect

from core.schema import Mark
from migrations.schema import metadata
from migrations.turn import LOCK_TIMEOUT_S

given = context.config.attributes
FIRST_CODE = "0003"  # of 1.0.0: no older code is about


def run(connection: Connection) -> None:
    """Run each migration in a transaction of its own."""
    event.listen(connection, "begin", _begin)
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        transaction_per_migration=True,
        on_version_apply=_mark,
    )
    with context.begin_transaction():
        context.run_migrations()


def _begin(connection: Connection) -> None:
    """Bound how long writers queue behind a migration that waits for its lock."""
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S:g}s'")
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    if turn := given.get("turn"):
        turn.pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()


def _mark(
    ctx: MigrationContext,
    step: MigrationInfo,
    heads: Collection[Any],  # Any: so Alembic types them
    run_args: Mapping[str, Any],  # Any: likewise
) -> None:
    """Let the schema say how old the code may be that works on it."""
    if turn := given.get("turn"):
        turn.check()
    for revision in heads:  # one, or none
        mark = Mark(revision, _oldest(revision), given.get("waits"))
        ctx.impl.execute(text(f"COMMENT ON TABLE alembic_version IS '{mark}'"))


def _oldest(revision: str) -> str:
    """Return the oldest code that works on a revision: a contract migration names it."""
    passed = context.script.iterate_revisions(revision, "base")
    named = (getattr(script.module, "oldest", FIRST_CODE) for script in passed)
    return max(named, default=FIRST_CODE)


def _write() -> None:
    context.configure(
        dialect_name=dialect.name,
        literal_binds=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _write()
elif given.get("connection") is not None:
    run(given["connection"])
else:
    with given["engine"].connect() as fresh:
        run(fresh)
