"""Index what the read API pages through, each beside the writers.

Batches by user and by organisation, newest first; events in the order of their transactions; dead
letters by the message that they were.
"""

import sqlalchemy as sa

from migrations.online import create_index, drop_index

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

BATCHES = "batch_essay_trackers"


def upgrade() -> None:
    create_index(f"ix_{BATCHES}_of_user", BATCHES, ["user_id", "registered_at", "batch_id"])
    create_index(
        f"ix_{BATCHES}_of_org",
        BATCHES,
        ["org_id", "registered_at", "batch_id"],
        postgresql_where=sa.text("org_id IS NOT NULL"),
    )
    create_index(
        "ix_event_outbox_written", "event_outbox", ["xact_id", "created_at", "sequence", "id"]
    )
    create_index(
        "ix_dead_letters_event_id",
        "dead_letters",
        ["event_id"],
        postgresql_where=sa.text("event_id IS NOT NULL"),
    )


def downgrade() -> None:
    drop_index("ix_dead_letters_event_id", "dead_letters")
    drop_index("ix_event_outbox_written", "event_outbox")
    drop_index(f"ix_{BATCHES}_of_org", BATCHES)
    drop_index(f"ix_{BATCHES}_of_user", BATCHES)
