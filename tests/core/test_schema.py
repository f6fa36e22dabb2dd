"""The migrated schema: it knows every value that the program knows, and nothing else."""

import re
import subprocess
import sys
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from core.states import (
    BatchStatus,
    ClassType,
    EssayStatus,
    ExcessReason,
    OnDeadline,
    completed_status,
)
from migrations import config, current, head, upgrade
from migrations.schema import SubmissionKind, metadata
from tests.core.story import register

CONSTRAINTS = """
    SELECT conrelid::regclass::text AS holder, conname AS name, pg_get_constraintdef(oid) AS told
    FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
      AND conrelid::regclass::text <> 'alembic_version'
    ORDER BY 1, 2"""
INDEXES = """
    SELECT tablename AS holder, indexname AS name, indexdef AS told FROM pg_indexes
    WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1, 2"""
COLUMNS = """
    SELECT table_name AS holder, column_name AS name,
           concat_ws(' ', data_type, is_nullable, column_default, collation_name,
                     is_identity, identity_generation) AS told
    FROM information_schema.columns
    WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1, 2"""
STORAGE = """
    SELECT relname AS holder, relname AS name, array_to_string(reloptions, ',') AS told
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
      AND relname <> 'alembic_version' ORDER BY 1"""


def look(url, query):
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def shape(url):
    """Everything that Postgres knows of a schema."""
    return [look(url, query) for query in (CONSTRAINTS, INDEXES, COLUMNS, STORAGE)]


def engine(url):
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)


@contextmanager
def a_database(url):
    name = sql.Identifier(f"scratch_{uuid4().hex[:12]}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        try:
            yield (
                make_url(url)
                .set(database=name.as_string().strip('"'))
                .render_as_string(hide_password=False)
            )
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def scratch(database_url):
    """An empty database, gone after the test."""
    with a_database(database_url) as url:
        yield url


# --- values ---------------------------------------------------------------------------------------

VALUES = [
    ("batch_essay_trackers", "status", BatchStatus),
    ("batch_essay_trackers", "on_deadline", OnDeadline),
    ("essay_states", "current_status", EssayStatus),
    ("batch_pending_content", "kind", SubmissionKind),
    ("excess_content", "kind", SubmissionKind),
    ("excess_content", "reason", ExcessReason),
]


def insert(conn, batch_id, table, column, value):
    """Insert a row of a table with everything else as it has to be for this value."""
    ended = value == "ready_for_pipeline_execution"
    full = ended or value in ("awaiting_student_validation", "content_ingestion_failed")
    moment = "2030-01-01T00:00:00Z"
    row = {
        "batch_essay_trackers": {
            "batch_id": f"{batch_id}-{uuid4().hex[:8]}",
            "status": "cancelled",
            "user_id": "teacher-1",
            "course_code": "ENG5",
            "correlation_id": uuid4(),
            "expected_count": 1,
            "available_slots": 0,
            "essay_ids_sha256": b"x",
            "on_deadline": "fail",
            "deadline_at": moment,
            "completed_at": moment if full else None,
            "ready_at": moment if ended else None,
            "closed_at": moment,
        },
        "essay_states": {
            "batch_id": batch_id,
            "essay_id": uuid4().hex,
            "current_status": "awaiting_content",
            "text_storage_id": "text-1" if value == "ready_for_processing" else None,
        },
        "batch_pending_content": {
            "batch_id": batch_id,
            "kind": "content",
            "essay_file_id": uuid4().hex,
        },
        "excess_content": {"batch_id": batch_id, "kind": "content", "reason": "NO_AVAILABLE_SLOT"},
    }[table] | {column: value}
    query = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING {}").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(sql.Placeholder() * len(row)),
        sql.Identifier(column),
    )
    return conn.execute(query, list(row.values())).fetchone()[column]


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [(table, column, value) for table, column, values in VALUES for value in values],
    ids=str,
)
def test_every_value_of_the_program_can_be_stored(lifecycle, conn, batch_id, table, column, value):
    register(lifecycle, batch_id, 1)

    with conn.transaction(force_rollback=True):
        stored = insert(conn, batch_id, table, column, value.value)

    assert stored == value


@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, column, _ in VALUES], ids=str
)
@pytest.mark.parametrize("value", ["", "no-such-value", "CANCELLED ", None], ids=repr)
def test_a_value_that_the_program_does_not_know_is_refused(
    lifecycle, conn, batch_id, table, column, value
):
    register(lifecycle, batch_id, 1)

    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.NotNullViolation)):
        insert(conn, batch_id, table, column, value)


BROKEN_RULES = {
    "more open slots than slots": "available_slots = 4",
    "less than no open slot": "available_slots = -1",
    "no slot": "expected_count = 0, available_slots = 0",
    "complete but not full": "completed_at = now()",
    "ready without a moment": "status = 'ready_for_pipeline_execution'",
    "a moment without being ready": "ready_at = now()",
    "ready but never sealed": "status = 'ready_for_pipeline_execution', ready_at = now()",
    "awaiting students but never sealed": "status = 'awaiting_student_validation'",
    "failed but never sealed": "status = 'content_ingestion_failed'",
}


@pytest.mark.parametrize("change", BROKEN_RULES.values(), ids=BROKEN_RULES.keys())
def test_a_tracker_that_cannot_be_true_is_refused(lifecycle, conn, batch_id, change):
    register(lifecycle, batch_id, 3)

    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(
            f"UPDATE batch_essay_trackers SET {change} WHERE batch_id = %s",
            [batch_id],
        )


@pytest.mark.parametrize(
    "change",
    ["current_status = 'ready_for_processing'", "text_storage_id = 'text-1'"],
    ids=["assigned without content", "open with content"],
)
def test_an_essay_that_cannot_be_true_is_refused(lifecycle, conn, batch_id, change):
    register(lifecycle, batch_id, 1)

    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(f"UPDATE essay_states SET {change} WHERE batch_id = %s", [batch_id])


# --- the schema and its history -------------------------------------------------------------------


def test_the_migrations_end_where_the_models_are(database_url):
    with engine(database_url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})

        differences = compare_metadata(context, metadata)

    assert differences == []


def test_migrating_and_creating_from_the_models_give_the_same_schema(scratch, database_url):
    upgrade(scratch)
    with a_database(database_url) as modelled:
        with engine(modelled).begin() as connection:
            metadata.create_all(connection)

        assert shape(scratch) == shape(modelled)


def test_migrating_again_changes_nothing(scratch):
    upgrade(scratch)
    before = shape(scratch)

    upgrade(scratch)

    assert shape(scratch) == before
    assert current(scratch) == head()


def test_a_fresh_database_is_at_no_revision(scratch):
    assert current(scratch) is None


def test_down_and_up_again_gives_the_same_schema(scratch):
    upgrade(scratch)
    before = shape(scratch)

    command.downgrade(config(scratch), "base")
    emptied = shape(scratch)
    upgrade(scratch)

    assert emptied == [[], [], [], []]
    assert shape(scratch) == before


def test_migrations_at_once_wait_for_each_other(scratch):
    code = "import sys; from migrations import upgrade; upgrade(sys.argv[1])"
    argv = [sys.executable, "-W", "error", "-c", code, scratch]

    with (
        subprocess.Popen(argv, stderr=subprocess.PIPE) as one,
        subprocess.Popen(argv, stderr=subprocess.PIPE) as two,
    ):
        said = [process.communicate(timeout=60)[1].decode() for process in (one, two)]

    assert (one.returncode, two.returncode) == (0, 0), said
    assert current(scratch) == head()


def test_every_constraint_and_index_has_a_name_of_ours(database_url):
    named = [*look(database_url, CONSTRAINTS), *look(database_url, INDEXES)]

    strange = [
        (table, name)
        for table, name, _ in named
        if not re.fullmatch(rf"(pk|uq|ix|ck|fk)_{table}(_[a-z_]+?)?", name)
        or re.search(r"_(key|check|fkey|pkey|idx)\d*$", name)
    ]

    assert len(named) > 30
    assert strange == []


def test_no_index_repeats_another(database_url):
    told = [
        re.sub(r"INDEX \S+ ON", "INDEX ON", definition).replace("UNIQUE ", "")
        for _, _, definition in look(database_url, INDEXES)
    ]

    assert sorted(told) == sorted(set(told))


def test_every_identifier_is_compared_bytewise(database_url):
    found = look(
        database_url,
        "SELECT table_name, column_name, collation_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND column_name IN"
        " ('essay_id', 'text_storage_id', 'file_upload_id', 'essay_file_id')",
    )

    assert {collation for _, _, collation in found} == {"C"}


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_type", "provisioned", "status"),
    [
        ("GUEST", 1, BatchStatus.READY_FOR_PIPELINE_EXECUTION),
        ("REGULAR", 1, BatchStatus.AWAITING_STUDENT_VALIDATION),
        ("GUEST", 0, BatchStatus.CONTENT_INGESTION_FAILED),
        ("REGULAR", 0, BatchStatus.CONTENT_INGESTION_FAILED),
    ],
)
def test_what_a_complete_batch_becomes(class_type, provisioned, status):
    assert completed_status(ClassType(class_type), provisioned) is status
