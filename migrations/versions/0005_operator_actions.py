"""Record what operators did, and remember batches that are purged.

Two tables, and two columns without a default, so Postgres changes no row and reads none:
`first_published_at` keeps the first delivery of an event that is sent again, and `replay_task_id`
names the message that a dead letter was sent again as.
"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "operator_actions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "acted_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("changes", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operator_actions")),
    )
    op.create_index("ix_operator_actions_batch_id", "operator_actions", ["batch_id"])
    op.create_index("ix_operator_actions_target", "operator_actions", ["target"])
    op.create_index("ix_operator_actions_acted_at", "operator_actions", ["acted_at"])
    op.create_table(
        "purged_batches",
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("expected_count", sa.Integer(), nullable=False),
        sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "purged_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("purged_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_purged_batches")),
    )
    op.add_column(
        "event_outbox",
        sa.Column("first_published_at", sa.DateTime(timezone=True), nullable=True),
    )
    op.add_column("dead_letters", sa.Column("replay_task_id", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("dead_letters", "replay_task_id")
    op.drop_column("event_outbox", "first_published_at")
    op.drop_table("purged_batches")
    op.drop_table("operator_actions")
