"""Remember what the sweep could not mend, and find batches whose status contradicts their row.

The index holds only contradictions, so it is empty while all is well; no assignment updates a column
of it. Plainly built, in the transaction of the migration: writers wait for under a second.
"""

from alembic import op
import sqlalchemy as sa

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLE = "batch_essay_trackers"
INDEX = "ix_batch_essay_trackers_contradicted"


def upgrade() -> None:
    op.create_table(
        "unmended",
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column(
            "since",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("batch_id", "rule", name=op.f("pk_unmended")),
    )
    op.create_index("ix_unmended_rule", "unmended", ["rule"])
    op.create_index(
        INDEX,
        TABLE,
        ["batch_id"],
        postgresql_where=sa.text(
            "completed_at IS NOT NULL AND status = 'awaiting_content_validation'"
            " OR (closed_at IS NOT NULL) <> (status IN ('timed_out', 'cancelled'))"
            " OR (completed_at IS NULL) <> (manifest_sha256 IS NULL)"
            " OR status = 'awaiting_student_validation' AND class_id IS NULL"
        ),
    )


def downgrade() -> None:
    op.drop_index(INDEX, table_name=TABLE)
    op.drop_table("unmended")
