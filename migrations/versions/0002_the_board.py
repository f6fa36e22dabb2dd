"""Indexes for the board: its pages newest first, search by user and correlation, ready today.

Each is written once a batch, at its registration or readiness; none reads a column that an
assignment updates, so the counter's updates stay heap-only. Plainly built, in the transaction of
the migration: with 100 000 batches, writers wait for about a second.
"""

from alembic import op
import sqlalchemy as sa

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLE = "batch_essay_trackers"


def upgrade() -> None:
    op.create_index("ix_batch_essay_trackers_newest", TABLE, ["registered_at", "batch_id"])
    op.create_index("ix_batch_essay_trackers_correlation_id", TABLE, ["correlation_id"])
    op.create_index(
        "ix_batch_essay_trackers_user_id",
        TABLE,
        ["user_id"],
        postgresql_ops={"user_id": "text_pattern_ops"},
    )
    op.create_index(
        "ix_batch_essay_trackers_ready_at",
        TABLE,
        ["ready_at"],
        postgresql_where=sa.text("ready_at IS NOT NULL"),
    )


def downgrade() -> None:
    for name in ("ready_at", "user_id", "correlation_id", "newest"):
        op.drop_index(f"ix_batch_essay_trackers_{name}", table_name=TABLE)
