"""Alembic's entry: runs migrations on the connection it is given, or makes one."""

from alembic import context
from sqlalchemy import Connection, text

from migrations.schema import metadata

MIGRATION_LOCK = 7_203_115_554  # any number: two migrations at once wait for each other


def run(connection: Connection) -> None:
    """Run the migrations in one transaction, one process at a time."""
    context.configure(connection=connection, target_metadata=metadata, compare_type=True)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        context.run_migrations()


given = context.config.attributes
if given.get("connection") is not None:
    run(given["connection"])
else:
    with given["engine"].connect() as fresh:
        run(fresh)
