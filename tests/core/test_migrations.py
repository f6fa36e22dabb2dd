"""What migrations may do, and how `upgrade` gets along with others at the same tables."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest

import migrations
from core import schema
from core.db import connect_once
from core.schema import OLDEST_SCHEMA, Mark, State, read_standing, standing
from migrations import (
    CannotDowngrade,
    current,
    downgrade,
    head,
    pending,
    previous,
    turn,
    upgrade,
)
from migrations.policy import violations
from migrations.turn import MIGRATION_LOCK, MigrationBlocked
from tests.core.test_schema import a_database
from tests.releases import LAST


@pytest.fixture
def scratch(database_url):
    """An empty database, gone after the test."""
    with a_database(database_url) as url:
        yield url


# --- the policy -----------------------------------------------------------------------------------


def test_the_migrations_since_the_last_release_keep_the_policy():
    found = {
        script.revision: violations(
            migrations.statements(f"{script.down_revision}:{script.revision}"),
            contract=hasattr(script.module, "oldest"),
        )
        for script in pending(LAST["schema"])
    }

    assert not any(found.values()), found


EXPANDS = {
    "a table": "CREATE TABLE t (a int NOT NULL); CREATE INDEX ix_t_a ON t (a)",
    "a nullable column": "ALTER TABLE essay_states ADD COLUMN a text",
    "a column with a default": "ALTER TABLE essay_states ADD COLUMN a int DEFAULT 0 NOT NULL",
    "a moment as the default": "ALTER TABLE essay_states ADD COLUMN a timestamptz DEFAULT now()",
    "an index": "CREATE UNIQUE INDEX CONCURRENTLY uq_essay_states_a ON essay_states (a)",
    "fewer demands": "ALTER TABLE essay_states ALTER COLUMN a DROP NOT NULL",
    "a check of new rows that demands a value": (
        "ALTER TABLE essay_states ADD CONSTRAINT c CHECK (a IS NOT NULL) NOT VALID"
    ),
    "a check of new rows": "ALTER TABLE essay_states ADD CONSTRAINT c CHECK (a > 0) NOT VALID",
    "a check of all rows": "ALTER TABLE essay_states VALIDATE CONSTRAINT c",
    "another value": (
        "ALTER TABLE essay_states DROP CONSTRAINT c;"
        "ALTER TABLE essay_states ADD CONSTRAINT c CHECK (a IN ('x', 'y')) NOT VALID"
    ),
    "a key by an index": (
        "ALTER TABLE essay_states ADD CONSTRAINT uq_a UNIQUE USING INDEX uq_essay_states_a"
    ),
    "its own revision": "UPDATE alembic_version SET version_num='0004'",
}
CONTRACTS = {
    "a table": "DROP TABLE essay_states",
    "a column": "ALTER TABLE essay_states DROP COLUMN a",
    "a constraint": "ALTER TABLE essay_states DROP CONSTRAINT c",
    "an index": "DROP INDEX CONCURRENTLY ix_essay_states_a",
    "nulls": "ALTER TABLE essay_states ALTER COLUMN a SET NOT NULL",
    "a column, briefly": "alter table only essay_states drop if exists a",
    "a default": "ALTER TABLE essay_states ALTER a DROP DEFAULT",
}
HARMS = {
    "a rename": "ALTER TABLE essay_states RENAME COLUMN a TO b",
    "a renamed table": "ALTER TABLE essay_states RENAME TO b",
    "another type": "ALTER TABLE essay_states ALTER COLUMN a TYPE bigint",
    "a column that old code does not fill": "ALTER TABLE essay_states ADD COLUMN a int NOT NULL",
    "a random default": "ALTER TABLE essay_states ADD COLUMN a uuid DEFAULT gen_random_uuid()",
    "a plain index": "CREATE INDEX ix_essay_states_a ON essay_states (a)",
    "a plain index of a schema": 'CREATE UNIQUE INDEX "a" ON public.essay_states (a)',
    "a check at once": "ALTER TABLE essay_states ADD CONSTRAINT c CHECK (a > 0)",
    "a key at once": "ALTER TABLE essay_states ADD CONSTRAINT c UNIQUE (a)",
    "a foreign key at once": "ALTER TABLE a ADD CONSTRAINT c FOREIGN KEY (b) REFERENCES d (e)",
    "a column, briefly": "alter table essay_states\n  add a int /* why */ not null",
    "a type, briefly": "ALTER TABLE essay_states ALTER a TYPE bigint USING a::bigint",
    "a check without a name": "ALTER TABLE essay_states ADD CHECK (a > 0)",
    "a key without a name": "ALTER TABLE essay_states ADD UNIQUE (a)",
    "a key of the column": "ALTER TABLE essay_states ADD COLUMN a text UNIQUE",
    "a check of the column": "ALTER TABLE essay_states ADD COLUMN a int CHECK (a > 0)",
    "a column that is counted": "ALTER TABLE essay_states ADD a int GENERATED ALWAYS AS IDENTITY",
    "some rows": "DELETE FROM essay_states WHERE a IS NULL",
    "all rows": "UPDATE essay_states SET a = 1",
    "a lock": "LOCK TABLE essay_states",
    "an index beside others": (
        "ALTER TABLE essay_states ADD COLUMN a text;"
        "CREATE INDEX CONCURRENTLY ix_essay_states_a ON essay_states (a)"
    ),
    "an index of a new table and of an old one": (
        "CREATE TABLE t (a int); CREATE INDEX ix_essay_states_a ON essay_states (a)"
    ),
}


@pytest.mark.parametrize("sql", EXPANDS.values(), ids=EXPANDS.keys())
def test_a_migration_may_add(sql):
    assert violations(sql) == []


@pytest.mark.parametrize("sql", CONTRACTS.values(), ids=CONTRACTS.keys())
def test_only_a_contract_migration_may_delete(sql):
    assert violations(sql)
    assert violations(sql, contract=True) == []


@pytest.mark.parametrize("sql", HARMS.values(), ids=HARMS.keys())
def test_no_migration_may_break_older_code_or_keep_writers_waiting(sql):
    assert violations(sql)
    assert violations(sql, contract=True)


# --- where a schema stands ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("revision", "mark", "state", "usable"),
    [
        (None, None, State.EMPTY, False),
        ("0001", None, State.BEHIND, False),
        (head(), None, State.HEAD, True),
        ("9999", None, State.UNKNOWN, False),
        ("9999", "not JSON", State.UNKNOWN, False),
        ("9999", "[]", State.UNKNOWN, False),
        ("9999", '{"revision": "9999", "oldest": 3}', State.UNKNOWN, False),
        ("9999", '"9999"', State.UNKNOWN, False),
        ("9999", str(Mark("9998", OLDEST_SCHEMA)), State.UNKNOWN, False),
        ("9999", str(Mark("9999", OLDEST_SCHEMA)), State.AHEAD, True),
        ("9999", str(Mark("9999", head())), State.AHEAD, True),
        ("9999", str(Mark("9999", "9998")), State.AHEAD, False),
        ("9999", str(Mark("9999", OLDEST_SCHEMA))[:-1] + ', "more": 1}', State.AHEAD, True),
    ],
)
def test_code_knows_which_schemas_it_works_on(revision, mark, state, usable):
    found = standing(revision, mark)

    assert (found.state, found.usable) == (state, usable)
    assert (revision or "no schema") in found.wrong


def test_a_schema_that_this_code_needs_not_yet_is_usable(monkeypatch):
    monkeypatch.setattr(schema, "OLDEST_SCHEMA", "0002")

    assert standing("0002", None).usable
    assert not standing("0001", None).usable


def test_a_migrated_schema_says_with_which_code_it_works(scratch):
    upgrade(scratch)

    with connect_once(scratch) as conn:
        row = conn.execute(schema.READ).fetchone()

    assert schema.read_mark(row["mark"], head()) == Mark(head(), "0003")
    with connect_once(scratch) as conn:
        assert read_standing(conn).state is State.HEAD


# --- who is in the way ----------------------------------------------------------------------------


@contextmanager
def transaction(url, *statements):
    """A transaction of somebody else, open meanwhile."""
    with psycopg.connect(url, application_name="somebody") as other:
        for statement in statements:
            other.execute(statement)
        yield other
        other.rollback()


def until(condition, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def upgrading():
    """An upgrade in a thread, and the lines that it said."""

    def start(url, revision="head", patience_s=60):
        said, failed = [], []

        def run():
            try:
                upgrade(url, revision, said.append, patience_s)
            except Exception as error:  # noqa: BLE001 - the edge of a thread
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        return thread, said, failed

    threads = []
    yield start
    for thread in threads:
        thread.join()


def test_a_migration_names_who_holds_its_lock_and_tries_again(scratch, upgrading):
    upgrade(scratch, "0001")
    with transaction(scratch, "LOCK TABLE batch_essay_trackers IN ROW EXCLUSIVE MODE") as other:
        thread, said, failed = upgrading(scratch, "0002")
        until(lambda: any("lets writers pass" in line for line in said))
        pid = other.info.backend_pid
    thread.join()

    assert failed == []
    assert current(scratch) == "0002"
    [line, *_] = [line for line in said if f"session {pid}" in line]
    assert "on batch_essay_trackers" in line
    assert "somebody" in line
    assert "since" in line
    assert f"pg_terminate_backend({pid})" in line


def test_a_migration_gives_up_after_its_patience_and_changes_nothing(scratch, upgrading):
    upgrade(scratch, "0001")
    with transaction(scratch, "LOCK TABLE batch_essay_trackers IN ROW EXCLUSIVE MODE") as other:
        thread, _, failed = upgrading(scratch, "0002", patience_s=0)
        thread.join()
        pid = other.info.backend_pid

    [error] = failed
    assert isinstance(error, MigrationBlocked)
    assert f"session {pid}" in str(error)
    assert current(scratch) == "0001"


def test_a_migration_waits_for_another_one_and_names_it(scratch, upgrading):
    lock = f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"
    with transaction(scratch, lock) as other:
        thread, said, failed = upgrading(scratch)
        until(lambda: said)
        pid = other.info.backend_pid
    thread.join()

    assert failed == []
    assert f"session {pid}" in said[0]
    assert current(scratch) == head()


# --- back -----------------------------------------------------------------------------------------


def test_one_step_back_and_up_again(scratch):
    upgrade(scratch)
    before = previous(head()).down_revision

    downgrade(scratch, before)
    went_to = current(scratch)
    upgrade(scratch)

    assert went_to == before
    assert current(scratch) == head()


@pytest.mark.parametrize("revision", ["0001", "9999"])
def test_what_cannot_be_undone_is_refused(revision):
    with pytest.raises(CannotDowngrade):
        previous(revision)


# --- an index beside its writers ------------------------------------------------------------------

BUILD = """
import sys
from alembic.migration import MigrationContext
from alembic.operations import Operations
from migrations import _engine, online

with _engine(sys.argv[1]).connect() as connection:
    context = MigrationContext.configure(connection)
    with Operations.context(context):
        online.create_index("uq_repairs_rule", "repairs", ["rule"], unique=True)
"""


def build(url):
    return subprocess.run([sys.executable, "-c", BUILD, url], capture_output=True, check=False)


def is_valid(conn):
    row = conn.execute(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('uq_repairs_rule')"
    ).fetchone()
    return row and row["indisvalid"]


def test_an_index_that_an_interrupted_build_left_is_built_again(scratch):
    upgrade(scratch)
    with connect_once(scratch) as conn:
        conn.execute("INSERT INTO repairs (batch_id, rule) VALUES ('a', 'x'), ('b', 'x')")
        first = build(scratch)
        left = is_valid(conn)
        conn.execute("DELETE FROM repairs WHERE batch_id = 'b'")
        second, third = build(scratch), build(scratch)

        assert first.returncode != 0
        assert left is False
        assert (second.returncode, third.returncode) == (0, 0), second.stderr
        assert is_valid(conn)


@pytest.fixture
def watched(scratch, monkeypatch):
    """A turn that looks often, and the lines that it said."""
    monkeypatch.setattr(turn, "WATCH_S", 0.02)
    monkeypatch.setattr(turn, "REPEAT_S", 0.0)
    upgrade(scratch)
    said = []
    with turn.Turn(scratch, said.append):
        yield said


def test_whoever_keeps_an_index_from_its_end_is_named(scratch, watched):
    with (
        transaction(
            scratch, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT 1"
        ) as other,
        ThreadPoolExecutor(1) as crowd,
    ):
        building = crowd.submit(build, scratch)
        pid = other.info.backend_pid
        until(lambda: any(f"session {pid}" in line for line in watched))
        other.rollback()
        done = building.result()

    assert done.returncode == 0


def test_a_long_build_says_how_far_it_is(scratch, watched):
    with connect_once(scratch) as conn:
        conn.execute(
            "INSERT INTO repairs (batch_id, rule) SELECT g, g FROM generate_series(1, 3e5) g"
        )

        assert build(scratch).returncode == 0

    assert any("index on repairs: building index" in line for line in watched), watched


def test_who_watches_a_migration_keeps_no_build_of_an_index_waiting(scratch, monkeypatch):
    upgrade(scratch)
    monkeypatch.setattr(turn, "WATCH_S", 0)  # so that each build meets a look
    monkeypatch.setattr(turn, "REPEAT_S", 0)
    with turn.Turn(scratch, lambda line: None), connect_once(scratch) as conn:
        conn.execute("SET statement_timeout = '10s'")
        for n in range(10):
            conn.execute(f"CREATE INDEX CONCURRENTLY ix_watched_{n} ON repairs (rule)")

        valid = conn.execute(
            "SELECT count(*) AS n FROM pg_index WHERE indexrelid::regclass::text LIKE"
            " 'ix_watched%' AND indisvalid"
        ).fetchone()

    assert valid["n"] == 10
