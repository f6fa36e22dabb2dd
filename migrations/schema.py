"""The tables. A rule that can be a constraint is one, and has a name.

Ids are compared bytewise (collation "C"): the order of `essay_id` is the order of the manifest.
"""

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.schema import SchemaItem

from core.states import BatchStatus, EssayStatus, ExcessReason, OnDeadline

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class SubmissionKind(StrEnum):
    """What the file service sent: a stored text, or the news of a rejected file."""

    CONTENT = "content"
    FAILURE = "failure"


Identifier = Text(collation="C")
Moment = DateTime(timezone=True)


def _one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def _moment(name: str) -> "Column[object]":
    return Column(name, Moment, nullable=False, server_default=func.now())


def _arrival_columns() -> list[SchemaItem]:
    """List the columns of an announced file, wherever it waits or ends."""
    return [
        Column("file_upload_id", Identifier, nullable=True),
        Column("text_storage_id", Identifier),
        Column("original_file_name", Text),
        Column("raw_file_storage_id", Text),
        Column("file_size_bytes", BigInteger),
        Column("content_md5_hash", Text),
        Column("validation_error_code", Text),
        Column("validation_error_detail", JSONB),
    ]


batch_essay_trackers = Table(
    "batch_essay_trackers",
    metadata,
    Column("batch_id", Identifier, primary_key=True),
    Column("status", Text, nullable=False),
    Column("class_id", Text),
    Column("org_id", Text),
    Column("user_id", Text, nullable=False),
    Column("course_code", Text, nullable=False),
    Column("course_language", Text),
    Column("correlation_id", Uuid, nullable=False),
    Column("expected_count", Integer, nullable=False),
    Column("available_slots", Integer, nullable=False),
    Column("essay_ids_sha256", LargeBinary, nullable=False),
    Column("student_prompt_ref", JSONB),
    Column("metadata", JSONB),
    Column("on_deadline", Text, nullable=False),
    _moment("registered_at"),
    Column("deadline_at", Moment, nullable=False),
    Column("full_at", Moment),  # no index reads the counter itself: its updates stay heap-only
    Column("completed_at", Moment),
    Column("ready_at", Moment),
    Column("closed_at", Moment),
    Column("closed_reason", Text),
    Column("provisioned_count", Integer),
    Column("manifest_sha256", Text),
    Column("event_sequence", Integer, nullable=False, server_default="0"),
    Column("amendments", Integer, nullable=False, server_default="0"),
    _one_of("status", BatchStatus),
    _one_of("on_deadline", OnDeadline),
    CheckConstraint("expected_count > 0", name="expected_count"),
    CheckConstraint("available_slots BETWEEN 0 AND expected_count", name="available_slots"),
    CheckConstraint(
        "CASE WHEN available_slots > 0 THEN full_at IS NULL"
        " ELSE full_at IS NOT NULL OR closed_at IS NOT NULL END",
        name="full_at",
    ),
    CheckConstraint("completed_at IS NULL OR available_slots = 0", name="complete_is_full"),
    CheckConstraint(
        "(status = 'ready_for_pipeline_execution') = (ready_at IS NOT NULL)", name="ready_at"
    ),
    CheckConstraint(
        "status NOT IN ('awaiting_student_validation', 'ready_for_pipeline_execution',"
        " 'content_ingestion_failed') OR completed_at IS NOT NULL",
        name="sealed_before_ready",
    ),
    Index(
        "ix_batch_essay_trackers_full_not_announced",
        "full_at",
        postgresql_where=text("full_at IS NOT NULL AND completed_at IS NULL AND closed_at IS NULL"),
    ),
    Index("ix_batch_essay_trackers_status_registered_at", "status", "registered_at"),
    Index(
        "ix_batch_essay_trackers_open_deadline",
        "deadline_at",
        postgresql_where=text(
            "status IN ('awaiting_content_validation', 'awaiting_student_validation')"
        ),
    ),
    Index(
        "ix_batch_essay_trackers_open_batch_id",
        "batch_id",
        postgresql_where=text("status = 'awaiting_content_validation'"),
    ),
    # A status that contradicts its row: see `db.sweep.contradicted`. Only a person writes that.
    Index(
        "ix_batch_essay_trackers_contradicted",
        "batch_id",
        postgresql_where=text(
            "completed_at IS NOT NULL AND status = 'awaiting_content_validation'"
            " OR (closed_at IS NOT NULL) <> (status IN ('timed_out', 'cancelled'))"
            " OR (completed_at IS NULL) <> (manifest_sha256 IS NULL)"
            " OR status = 'awaiting_student_validation' AND class_id IS NULL"
        ),
    ),
    # For the board: pages, newest first; search by user and correlation; ready today.
    Index("ix_batch_essay_trackers_newest", "registered_at", "batch_id"),
    Index(
        "ix_batch_essay_trackers_user_id",
        "user_id",
        postgresql_ops={"user_id": "text_pattern_ops"},
    ),
    Index("ix_batch_essay_trackers_correlation_id", "correlation_id"),
    # For the read API: pages of a user's, and of an organisation's batches.
    Index("ix_batch_essay_trackers_of_user", "user_id", "registered_at", "batch_id"),
    Index(
        "ix_batch_essay_trackers_of_org",
        "org_id",
        "registered_at",
        "batch_id",
        postgresql_where=text("org_id IS NOT NULL"),
    ),
    Index(
        "ix_batch_essay_trackers_ready_at",
        "ready_at",
        postgresql_where=text("ready_at IS NOT NULL"),
    ),
    # Room in the page for the counter's new versions, so that its updates stay heap-only.
    postgresql_with={"fillfactor": "50"},
)

essay_states = Table(
    "essay_states",
    metadata,
    Column("batch_id", Identifier, primary_key=True),
    Column("essay_id", Identifier, primary_key=True),
    Column("current_status", Text, nullable=False),
    *_arrival_columns(),
    Column("student_id", Text),
    Column("confidence_score", Double),
    Column("validation_method", Text),
    Column("validated_by", Text),
    Column("validated_at", Moment),
    Column("assigned_at", Moment),
    _one_of("current_status", EssayStatus),
    CheckConstraint(
        "CASE current_status WHEN 'ready_for_processing' THEN text_storage_id IS NOT NULL"
        " WHEN 'cancelled' THEN true ELSE text_storage_id IS NULL END",
        name="content_fits_status",
    ),
    ForeignKeyConstraint(["batch_id"], ["batch_essay_trackers.batch_id"], ondelete="CASCADE"),
    Index("ix_essay_states_essay_id", "essay_id", "batch_id"),
    # One slot a content, and one a rejected file.
    Index(
        "uq_essay_states_content",
        "batch_id",
        "text_storage_id",
        unique=True,
        postgresql_where=text("text_storage_id IS NOT NULL"),
    ),
    Index(
        "uq_essay_states_failure",
        "batch_id",
        "file_upload_id",
        unique=True,
        postgresql_where=text("validation_error_code IS NOT NULL"),
    ),
)

batch_pending_content = Table(
    "batch_pending_content",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("batch_id", Identifier, nullable=False),
    Column("kind", Text, nullable=False),
    Column("essay_file_id", Identifier, nullable=False),
    *[c for c in _arrival_columns() if getattr(c, "name", None) != "file_upload_id"],
    _moment("received_at"),
    _one_of("kind", SubmissionKind),
    Index(None, "received_at"),
    Index(
        "uq_batch_pending_content_content",
        "batch_id",
        "text_storage_id",
        unique=True,
        postgresql_where=text("kind = 'content'"),
    ),
    Index(
        "uq_batch_pending_content_failure",
        "batch_id",
        "essay_file_id",
        unique=True,
        postgresql_where=text("kind = 'failure'"),
    ),
)

excess_content = Table(
    "excess_content",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("batch_id", Identifier, nullable=False),
    Column("kind", Text, nullable=False),
    *_arrival_columns(),
    Column("reason", Text, nullable=False),
    _moment("received_at"),
    _one_of("kind", SubmissionKind),
    _one_of("reason", ExcessReason),
    ForeignKeyConstraint(["batch_id"], ["batch_essay_trackers.batch_id"], ondelete="CASCADE"),
    Index(
        "uq_excess_content_content",
        "batch_id",
        "text_storage_id",
        unique=True,
        postgresql_where=text("kind = 'content'"),
    ),
    Index(
        "uq_excess_content_failure",
        "batch_id",
        "file_upload_id",
        unique=True,
        postgresql_where=text("kind = 'failure'"),
    ),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("key", Uuid, primary_key=True),
    Column("task", Text, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("outcome", JSONB, nullable=False),
    Column("batch_id", Identifier, nullable=False),
    _moment("created_at"),
    Index(None, "batch_id"),
)

event_outbox = Table(
    "event_outbox",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("batch_id", Identifier),  # NULL: a refusal that names no registered batch
    Column("type", Text, nullable=False),
    Column("generation", Text, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("correlation_id", Uuid, nullable=False),
    Column("traceparent", Text),
    Column("data", JSONB, nullable=False),
    _moment("created_at"),
    Column("published_at", Moment),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("last_error", Text),
    # Of an event that is sent again: `published_at` is NULL until the relay has sent it.
    Column("first_published_at", Moment),
    # Of the transaction that wrote it; 0: before this column was there. See `ops.pages.events`.
    Column(
        "xact_id",
        BigInteger,
        nullable=False,
        server_default=text("pg_current_xact_id()::text::bigint"),
    ),
    ForeignKeyConstraint(["batch_id"], ["batch_essay_trackers.batch_id"], ondelete="CASCADE"),
    # A second event of a kind cannot be written.
    Index("uq_event_outbox_once", "batch_id", "type", "generation", unique=True),
    Index("uq_event_outbox_order", "batch_id", "sequence", unique=True),
    Index("ix_event_outbox_written", "xact_id", "created_at", "sequence", "id"),
    Index(
        "ix_event_outbox_waiting_since",
        "created_at",
        postgresql_where=text("published_at IS NULL"),
    ),
    Index(
        "ix_event_outbox_unpublished",
        "batch_id",
        "sequence",
        postgresql_where=text("published_at IS NULL"),
    ),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("task", Text, nullable=False),
    Column("task_id", Text, nullable=False),
    Column("batch_id", Text),
    # json, not jsonb: it keeps every letter of the text, also what jsonb refuses.
    Column("body", JSON, nullable=False),
    Column("code", Text, nullable=False),
    Column("sqlstate", Text),
    Column("message", Text, nullable=False),
    Column("deliveries", Integer, nullable=False, server_default="1"),
    _moment("parked_at"),
    Column("replayed_at", Moment),
    Column("discarded_at", Moment),
    Column("replay_task_id", Text),  # the message that it was last sent again as
    Column("event_id", Uuid),  # of the message, where it has a well-formed one
    # A redelivered message counts up instead of writing a second row.
    Index("uq_dead_letters_task_id", "task_id", unique=True),
    Index("ix_dead_letters_event_id", "event_id", postgresql_where=text("event_id IS NOT NULL")),
    Index(None, "batch_id"),
    Index(
        "ix_dead_letters_waiting",
        "parked_at",
        postgresql_where=text("replayed_at IS NULL AND discarded_at IS NULL"),
    ),
)

# What the sweep repaired, for the timeline of a batch.
repairs = Table(
    "repairs",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("batch_id", Identifier, nullable=False),
    Column("rule", Text, nullable=False),
    _moment("repaired_at"),
    Index(None, "batch_id"),
)

# What the sweep could not repair. A row goes once the rule no longer finds the batch.
unmended = Table(
    "unmended",
    metadata,
    Column("batch_id", Identifier, primary_key=True),
    Column("rule", Text, primary_key=True),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("last_error", Text),
    _moment("since"),
    Column("tried_at", Moment),
    Column("retry_at", Moment),
    Index(None, "rule"),
)

# What operators did, for the timeline of a batch and for whoever asks later.
operator_actions = Table(
    "operator_actions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _moment("acted_at"),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("batch_id", Identifier),
    Column("reason", Text),
    Column("changes", JSONB, nullable=False, server_default="{}"),
    Index(None, "batch_id"),
    Index(None, "target"),
    Index(None, "acted_at"),
)

# What is left of a purged batch: its id, and how it ended. It names no person of the batch.
purged_batches = Table(
    "purged_batches",
    metadata,
    Column("batch_id", Identifier, primary_key=True),
    Column("status", Text, nullable=False),
    Column("expected_count", Integer, nullable=False),
    Column("registered_at", Moment, nullable=False),
    Column("ended_at", Moment, nullable=False),
    _moment("purged_at"),
    Column("purged_by", Text, nullable=False),
)
