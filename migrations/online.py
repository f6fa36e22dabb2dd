"""Changes to tables in use that take long, made while writers go on."""

from collections.abc import Sequence
from typing import Any

from alembic import op
from sqlalchemy import text

VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"


def create_index(
    name: str, table: str, columns: Sequence[Any], **options: Any
) -> None:  # Any: Alembic's
    """Build an index beside the writers, in a migration of its own: Postgres allows no other.

    A build that was interrupted leaves an invalid index: the next run drops and builds it again.
    """
    context = op.get_context()
    with context.autocommit_block():
        valid = None
        if not context.as_sql:
            valid = op.get_bind().execute(text(VALID), {"name": name}).scalar()
        if valid is False:
            op.drop_index(name, table_name=table, postgresql_concurrently=True)
        if not valid:
            op.create_index(name, table, columns, postgresql_concurrently=True, **options)


def drop_index(name: str, table: str) -> None:
    """Drop an index beside the writers, in a migration of its own."""
    with op.get_context().autocommit_block():
        op.drop_index(name, table_name=table, postgresql_concurrently=True, if_exists=True)
