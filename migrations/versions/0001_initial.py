"""The whole schema, with every rule a named constraint."""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "batch_essay_trackers",
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("class_id", sa.Text(), nullable=True),
        sa.Column("org_id", sa.Text(), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("course_code", sa.Text(), nullable=False),
        sa.Column("correlation_id", sa.Uuid(), nullable=False),
        sa.Column("expected_count", sa.Integer(), nullable=False),
        sa.Column("available_slots", sa.Integer(), nullable=False),
        sa.Column("essay_ids_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("student_prompt_ref", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("on_deadline", sa.Text(), nullable=False),
        sa.Column(
            "registered_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("full_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_reason", sa.Text(), nullable=True),
        sa.Column("provisioned_count", sa.Integer(), nullable=True),
        sa.Column("manifest_sha256", sa.Text(), nullable=True),
        sa.Column("event_sequence", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "(status = 'ready_for_pipeline_execution') = (ready_at IS NOT NULL)",
            name=op.f("ck_batch_essay_trackers_ready_at"),
        ),
        sa.CheckConstraint(
            "on_deadline IN ('fail', 'proceed')", name=op.f("ck_batch_essay_trackers_on_deadline")
        ),
        sa.CheckConstraint(
            "status IN ('awaiting_content_validation', 'awaiting_student_validation', 'ready_for_pipeline_execution', 'content_ingestion_failed', 'timed_out', 'cancelled')",
            name=op.f("ck_batch_essay_trackers_status"),
        ),
        sa.CheckConstraint(
            "status NOT IN ('awaiting_student_validation', 'ready_for_pipeline_execution', 'content_ingestion_failed') OR completed_at IS NOT NULL",
            name=op.f("ck_batch_essay_trackers_sealed_before_ready"),
        ),
        sa.CheckConstraint(
            "CASE WHEN available_slots > 0 THEN full_at IS NULL ELSE full_at IS NOT NULL OR closed_at IS NOT NULL END",
            name=op.f("ck_batch_essay_trackers_full_at"),
        ),
        sa.CheckConstraint(
            "available_slots BETWEEN 0 AND expected_count",
            name=op.f("ck_batch_essay_trackers_available_slots"),
        ),
        sa.CheckConstraint(
            "completed_at IS NULL OR available_slots = 0",
            name=op.f("ck_batch_essay_trackers_complete_is_full"),
        ),
        sa.CheckConstraint(
            "expected_count > 0", name=op.f("ck_batch_essay_trackers_expected_count")
        ),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_batch_essay_trackers")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index(
        "ix_batch_essay_trackers_full_not_announced",
        "batch_essay_trackers",
        ["full_at"],
        unique=False,
        postgresql_where=sa.text(
            "full_at IS NOT NULL AND completed_at IS NULL AND closed_at IS NULL"
        ),
    )
    op.create_index(
        "ix_batch_essay_trackers_open_batch_id",
        "batch_essay_trackers",
        ["batch_id"],
        unique=False,
        postgresql_where=sa.text("status = 'awaiting_content_validation'"),
    )
    op.create_index(
        "ix_batch_essay_trackers_open_deadline",
        "batch_essay_trackers",
        ["deadline_at"],
        unique=False,
        postgresql_where=sa.text(
            "status IN ('awaiting_content_validation', 'awaiting_student_validation')"
        ),
    )
    op.create_index(
        "ix_batch_essay_trackers_status_registered_at",
        "batch_essay_trackers",
        ["status", "registered_at"],
        unique=False,
    )
    op.create_table(
        "batch_pending_content",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("essay_file_id", sa.Text(collation="C"), nullable=False),
        sa.Column("text_storage_id", sa.Text(collation="C"), nullable=True),
        sa.Column("original_file_name", sa.Text(), nullable=True),
        sa.Column("raw_file_storage_id", sa.Text(), nullable=True),
        sa.Column("file_size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("content_md5_hash", sa.Text(), nullable=True),
        sa.Column("validation_error_code", sa.Text(), nullable=True),
        sa.Column(
            "validation_error_detail", postgresql.JSONB(astext_type=sa.Text()), nullable=True
        ),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "kind IN ('content', 'failure')", name=op.f("ck_batch_pending_content_kind")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch_pending_content")),
    )
    op.create_index(
        op.f("ix_batch_pending_content_received_at"),
        "batch_pending_content",
        ["received_at"],
        unique=False,
    )
    op.create_index(
        "uq_batch_pending_content_content",
        "batch_pending_content",
        ["batch_id", "text_storage_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'content'"),
    )
    op.create_index(
        "uq_batch_pending_content_failure",
        "batch_pending_content",
        ["batch_id", "essay_file_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'failure'"),
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=True),
        sa.Column("body", postgresql.JSON(astext_type=sa.Text()), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("sqlstate", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("deliveries", sa.Integer(), server_default="1", nullable=False),
        sa.Column(
            "parked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("discarded_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
    )
    op.create_index(op.f("ix_dead_letters_batch_id"), "dead_letters", ["batch_id"], unique=False)
    op.create_index(
        "ix_dead_letters_waiting",
        "dead_letters",
        ["parked_at"],
        unique=False,
        postgresql_where=sa.text("replayed_at IS NULL AND discarded_at IS NULL"),
    )
    op.create_index("uq_dead_letters_task_id", "dead_letters", ["task_id"], unique=True)
    op.create_table(
        "idempotency_keys",
        sa.Column("key", sa.Uuid(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("outcome", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(
        op.f("ix_idempotency_keys_batch_id"), "idempotency_keys", ["batch_id"], unique=False
    )
    op.create_table(
        "repairs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column(
            "repaired_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repairs")),
    )
    op.create_index(op.f("ix_repairs_batch_id"), "repairs", ["batch_id"], unique=False)
    op.create_table(
        "essay_states",
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("essay_id", sa.Text(collation="C"), nullable=False),
        sa.Column("current_status", sa.Text(), nullable=False),
        sa.Column("file_upload_id", sa.Text(collation="C"), nullable=True),
        sa.Column("text_storage_id", sa.Text(collation="C"), nullable=True),
        sa.Column("original_file_name", sa.Text(), nullable=True),
        sa.Column("raw_file_storage_id", sa.Text(), nullable=True),
        sa.Column("file_size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("content_md5_hash", sa.Text(), nullable=True),
        sa.Column("validation_error_code", sa.Text(), nullable=True),
        sa.Column(
            "validation_error_detail", postgresql.JSONB(astext_type=sa.Text()), nullable=True
        ),
        sa.Column("student_id", sa.Text(), nullable=True),
        sa.Column("confidence_score", sa.Double(), nullable=True),
        sa.Column("validation_method", sa.Text(), nullable=True),
        sa.Column("validated_by", sa.Text(), nullable=True),
        sa.Column("validated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("assigned_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "CASE current_status WHEN 'ready_for_processing' THEN text_storage_id IS NOT NULL WHEN 'cancelled' THEN true ELSE text_storage_id IS NULL END",
            name=op.f("ck_essay_states_content_fits_status"),
        ),
        sa.CheckConstraint(
            "current_status IN ('awaiting_content', 'ready_for_processing', 'content_ingestion_failed', 'cancelled')",
            name=op.f("ck_essay_states_current_status"),
        ),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["batch_essay_trackers.batch_id"],
            name=op.f("fk_essay_states_batch_essay_trackers"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("batch_id", "essay_id", name=op.f("pk_essay_states")),
    )
    op.create_index(
        "uq_essay_states_content",
        "essay_states",
        ["batch_id", "text_storage_id"],
        unique=True,
        postgresql_where=sa.text("text_storage_id IS NOT NULL"),
    )
    op.create_index(
        "uq_essay_states_failure",
        "essay_states",
        ["batch_id", "file_upload_id"],
        unique=True,
        postgresql_where=sa.text("validation_error_code IS NOT NULL"),
    )
    op.create_table(
        "event_outbox",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("correlation_id", sa.Uuid(), nullable=False),
        sa.Column("traceparent", sa.Text(), nullable=True),
        sa.Column("data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["batch_essay_trackers.batch_id"],
            name=op.f("fk_event_outbox_batch_essay_trackers"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_outbox")),
    )
    op.create_index(
        "ix_event_outbox_unpublished",
        "event_outbox",
        ["batch_id", "sequence"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL"),
    )
    op.create_index(
        "ix_event_outbox_waiting_since",
        "event_outbox",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL"),
    )
    op.create_index(
        "uq_event_outbox_once", "event_outbox", ["batch_id", "type", "generation"], unique=True
    )
    op.create_index("uq_event_outbox_order", "event_outbox", ["batch_id", "sequence"], unique=True)
    op.create_table(
        "excess_content",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("file_upload_id", sa.Text(collation="C"), nullable=True),
        sa.Column("text_storage_id", sa.Text(collation="C"), nullable=True),
        sa.Column("original_file_name", sa.Text(), nullable=True),
        sa.Column("raw_file_storage_id", sa.Text(), nullable=True),
        sa.Column("file_size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("content_md5_hash", sa.Text(), nullable=True),
        sa.Column("validation_error_code", sa.Text(), nullable=True),
        sa.Column(
            "validation_error_detail", postgresql.JSONB(astext_type=sa.Text()), nullable=True
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("kind IN ('content', 'failure')", name=op.f("ck_excess_content_kind")),
        sa.CheckConstraint(
            "reason IN ('NO_AVAILABLE_SLOT', 'BATCH_CANCELLED', 'BATCH_TIMED_OUT')",
            name=op.f("ck_excess_content_reason"),
        ),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["batch_essay_trackers.batch_id"],
            name=op.f("fk_excess_content_batch_essay_trackers"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_excess_content")),
    )
    op.create_index(
        "uq_excess_content_content",
        "excess_content",
        ["batch_id", "text_storage_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'content'"),
    )
    op.create_index(
        "uq_excess_content_failure",
        "excess_content",
        ["batch_id", "file_upload_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'failure'"),
    )


def downgrade() -> None:
    op.drop_index(
        "uq_excess_content_failure",
        table_name="excess_content",
        postgresql_where=sa.text("kind = 'failure'"),
    )
    op.drop_index(
        "uq_excess_content_content",
        table_name="excess_content",
        postgresql_where=sa.text("kind = 'content'"),
    )
    op.drop_table("excess_content")
    op.drop_index("uq_event_outbox_order", table_name="event_outbox")
    op.drop_index("uq_event_outbox_once", table_name="event_outbox")
    op.drop_index(
        "ix_event_outbox_waiting_since",
        table_name="event_outbox",
        postgresql_where=sa.text("published_at IS NULL"),
    )
    op.drop_index(
        "ix_event_outbox_unpublished",
        table_name="event_outbox",
        postgresql_where=sa.text("published_at IS NULL"),
    )
    op.drop_table("event_outbox")
    op.drop_index(
        "uq_essay_states_failure",
        table_name="essay_states",
        postgresql_where=sa.text("validation_error_code IS NOT NULL"),
    )
    op.drop_index(
        "uq_essay_states_content",
        table_name="essay_states",
        postgresql_where=sa.text("text_storage_id IS NOT NULL"),
    )
    op.drop_table("essay_states")
    op.drop_index(op.f("ix_repairs_batch_id"), table_name="repairs")
    op.drop_table("repairs")
    op.drop_index(op.f("ix_idempotency_keys_batch_id"), table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
    op.drop_index("uq_dead_letters_task_id", table_name="dead_letters")
    op.drop_index(
        "ix_dead_letters_waiting",
        table_name="dead_letters",
        postgresql_where=sa.text("replayed_at IS NULL AND discarded_at IS NULL"),
    )
    op.drop_index(op.f("ix_dead_letters_batch_id"), table_name="dead_letters")
    op.drop_table("dead_letters")
    op.drop_index(
        "uq_batch_pending_content_failure",
        table_name="batch_pending_content",
        postgresql_where=sa.text("kind = 'failure'"),
    )
    op.drop_index(
        "uq_batch_pending_content_content",
        table_name="batch_pending_content",
        postgresql_where=sa.text("kind = 'content'"),
    )
    op.drop_index(op.f("ix_batch_pending_content_received_at"), table_name="batch_pending_content")
    op.drop_table("batch_pending_content")
    op.drop_index("ix_batch_essay_trackers_status_registered_at", table_name="batch_essay_trackers")
    op.drop_index(
        "ix_batch_essay_trackers_open_deadline",
        table_name="batch_essay_trackers",
        postgresql_where=sa.text(
            "status IN ('awaiting_content_validation', 'awaiting_student_validation')"
        ),
    )
    op.drop_index(
        "ix_batch_essay_trackers_open_batch_id",
        table_name="batch_essay_trackers",
        postgresql_where=sa.text("status = 'awaiting_content_validation'"),
    )
    op.drop_index(
        "ix_batch_essay_trackers_full_not_announced",
        table_name="batch_essay_trackers",
        postgresql_where=sa.text(
            "full_at IS NOT NULL AND completed_at IS NULL AND closed_at IS NULL"
        ),
    )
    op.drop_table("batch_essay_trackers")
