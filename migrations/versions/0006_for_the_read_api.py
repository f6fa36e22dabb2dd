"""Tell in which transaction an event was written, and which message a dead letter was.

Readers follow the events in the order of their transactions: `xact_id`. The column comes with a
constant default, 0, which stands for everything written before, so Postgres changes no row; from
then on its default is the running transaction, also for what older code writes. A dead letter
written before has no `event_id`.
"""

from alembic import op
import sqlalchemy as sa

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "event_outbox",
        sa.Column("xact_id", sa.BigInteger(), server_default="0", nullable=False),
    )
    op.alter_column(
        "event_outbox", "xact_id", server_default=sa.text("pg_current_xact_id()::text::bigint")
    )
    op.add_column("dead_letters", sa.Column("event_id", sa.Uuid(), nullable=True))


def downgrade() -> None:
    op.drop_column("dead_letters", "event_id")
    op.drop_column("event_outbox", "xact_id")
