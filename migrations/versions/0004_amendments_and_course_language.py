"""Count the amendments of a batch, and keep the language of its course.

Postgres adds both columns without reading or writing a row.
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


def downgrade() -> None:
    op.drop_column(TABLE, "amendments")
    op.drop_column(TABLE, "course_language")
