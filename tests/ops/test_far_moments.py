"""One row with a moment that Python cannot hold fails no page and no command."""

import json
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from core import db
from core.db.dead_letters import DeadLetter
from core.repairs import RepairContext
from core.sweep import sweep
from ops.cli.main import app
from tests import factories as make
from tests.core import looks, story
from tests.ops.served import Served, own_database, own_redis

FAR = ["infinity", "-infinity", "10000-01-01 00:00:00+00", "294276-12-31", "0044-03-15 BC"]
PAGES = [
    *("/", "/?state=in_trouble", "/?q={batch}", "/batches/{batch}", "/dead-letters", "/outbox"),
    *("/?sort=age", "/?sort=-deadline", "/?state=in_trouble&sort=-age", "/?from=3d", "/activity"),
    *("/?sort=age&after={batch}", "/dead-letters?sort=parked&from=3d", "/outbox?sort=-written"),
]
PROGRAMS = ["/health/batches", "/metrics", "/readyz"]
COMMANDS = [
    ("status",),
    ("status", "{batch}"),
    ("explain", "{batch}"),
    ("find", "{batch}"),
    ("outbox", "list"),
    ("dead-letters", "list"),
    ("reconcile", "--dry-run"),
]
MOMENTS = """
    SELECT table_name, column_name FROM information_schema.columns
    WHERE table_schema = 'public' AND data_type = 'timestamp with time zone'"""


@pytest.fixture(scope="module")
def far(database_url, valkey):
    """A service of whose batches some have every moment far away, each in another state."""
    with (
        own_database(database_url, f"far_{uuid4().hex[:8]}") as url,
        Served(url, own_redis(valkey_url(valkey))) as page,
    ):
        batches = [spoilt(page, moment, make_it) for moment in FAR for make_it in STATES]
        yield page, url, batches
        page.client.flushdb()


def valkey_url(client):
    told = client.connection_pool.connection_kwargs
    return f"redis://:{told['password']}@{told['host']}:{told['port']}/0"


def an_open_batch(page, batch):
    story.register(page.lifecycle, batch, 2)
    story.assign(page.lifecycle, batch)


def a_batch_that_waits_for_students(page, batch):
    story.fill(page.lifecycle, batch, 2, class_id="class-1")
    page.lifecycle.complete(batch)


def a_ready_batch(page, batch):
    story.fill(page.lifecycle, batch, 2)
    story.assign(page.lifecycle, batch, "one-too-many")
    page.lifecycle.complete(batch)


def a_cancelled_batch(page, batch):
    story.register(page.lifecycle, batch, 2)
    story.cancel(page.lifecycle, batch)


def a_batch_that_nobody_registered(page, batch):
    story.assign(page.lifecycle, batch)


STATES = [
    an_open_batch,
    a_batch_that_waits_for_students,
    a_ready_batch,
    a_cancelled_batch,
    a_batch_that_nobody_registered,
]


def spoilt(page, moment, make_it):
    """Make a batch, and set each moment that it has to a far one."""
    batch = make.new_batch()
    make_it(page, batch)
    with page.pool.connection() as conn:
        letter = DeadLetter("els.assign_content", uuid4().hex, batch, "{}", "UNKNOWN_BATCH", "no")
        db.dead_letters.add(conn, letter)
        db.sweep.note_repair(conn, batch, "slot_drift")
        for table, column in moments(conn):
            conn.execute(
                f"UPDATE {table} SET {column} = %s WHERE batch_id = %s AND {column} IS NOT NULL",
                [moment, batch],
            )
    return batch


def moments(conn):
    rows = conn.execute(MOMENTS)
    return [(row["table_name"], row["column_name"]) for row in rows]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_shows_such_a_batch(far, path):
    page, _, batches = far

    for batch in batches if "{batch}" in path else batches[:1]:
        answer = page.get(path.replace("{batch}", batch))

        assert answer.status == 200, answer.words
        assert batch in page.get(f"/?q={batch}").text


@pytest.mark.parametrize("path", PROGRAMS)
def test_a_program_is_answered(far, path):
    page, _, _ = far

    answer = page.get(path)

    assert answer.status == 200, answer.text
    assert "NaN" not in answer.text
    if path == "/health/batches":
        json.loads(answer.text, parse_constant=pytest.fail)
    if path == "/metrics":
        assert 'els_up{part="postgres"} 1.0' in answer.text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_answers(far, command, tmp_path):
    page, url, batches = far
    env = {
        "ELS_HOME": str(tmp_path),
        "ELS_DATABASE_URL": url,
        "ELS_REDIS_URL": page.settings.redis_url,
        "COLUMNS": "200",
    }
    whom = batches if "{batch}" in command else batches[:1]

    for batch in whom:
        words = [word.replace("{batch}", batch) for word in command]
        told = CliRunner().invoke(app, words, env=env)
        as_json = CliRunner().invoke(app, [*words, "--json"], env=env)

        allowed = (0, 1) if command[0] == "reconcile" else (0,)
        assert told.exit_code in allowed, told.output + repr(told.exception)
        assert as_json.exit_code in allowed, as_json.output
        json.loads(as_json.stdout, parse_constant=pytest.fail)


def test_the_sweep_goes_on_among_such_batches(far):
    page, _, _ = far
    late = make.new_batch()
    story.fill(page.lifecycle, late, 2)

    for _ in range(3):
        sweep(RepairContext(page.lifecycle, lambda events: None))

    with page.pool.connection() as conn:
        assert looks.batch(conn, late)["status"] == "ready_for_pipeline_execution"


@pytest.mark.parametrize("moment", FAR)
@pytest.mark.parametrize("column", ["registered_at", "deadline_at"])
def test_a_batch_with_such_a_moment_is_announced(far, moment, column):
    page, _, _ = far
    batch = make.new_batch()
    story.fill(page.lifecycle, batch, 2, class_id="class-1")
    with page.pool.connection() as conn:
        conn.execute(
            f"UPDATE batch_essay_trackers SET {column} = %s WHERE batch_id = %s", [moment, batch]
        )

    page.lifecycle.complete(batch)

    with page.pool.connection() as conn:
        assert looks.batch(conn, batch)["status"] == "awaiting_student_validation"
