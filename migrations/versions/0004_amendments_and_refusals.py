"""Count amendments, keep the language of a course, and let a refusal be of no registered batch.

Postgres changes no row and reads none: it only notes the columns.
"""

from alembic import op
import sqlalchemy as sa

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLE = "batch_essay_trackers"


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("course_language", sa.Text(), nullable=True))
    op.add_column(TABLE, sa.Column("amendments", sa.Integer(), server_default="0", nullable=False))
    op.alter_column("event_outbox", "batch_id", nullable=True)


def downgrade() -> None:
    op.execute("DELETE FROM event_outbox WHERE batch_id IS NULL")
    op.alter_column("event_outbox", "batch_id", nullable=False)
    op.drop_column(TABLE, "amendments")
    op.drop_column(TABLE, "course_language")
