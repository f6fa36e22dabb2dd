"""Each page of the read API is read from an index, however many rows lie before and behind it."""

import re
from contextlib import contextmanager
from uuid import uuid4

import pytest

from ops import pages

MANY = 20_000
BATCHES = """
    INSERT INTO batch_essay_trackers (batch_id, status, user_id, org_id, course_code,
        correlation_id, expected_count, available_slots, essay_ids_sha256, on_deadline,
        registered_at, deadline_at, closed_at)
    SELECT 'many-' || n, CASE WHEN n %% 5000 = 0 THEN 'cancelled'
               ELSE 'awaiting_content_validation' END,
           'user-' || n %% 200, 'org-' || n %% 100, 'C', gen_random_uuid(), 1,
           (n %% 5000 <> 0)::int, '', 'fail', now() - make_interval(secs => n), now(),
           CASE WHEN n %% 5000 = 0 THEN now() END
    FROM generate_series(1, %(many)s::int) n
"""
ESSAYS = """
    INSERT INTO essay_states (batch_id, essay_id, current_status)
    SELECT 'many-' || n, 'essay-' || n %% 500, 'awaiting_content'
    FROM generate_series(1, %(many)s::int) n
"""
LETTERS = """
    INSERT INTO dead_letters (task, task_id, body, code, message, event_id)
    SELECT 'els.x', 'many-' || n, '{}', 'C', 'm', CASE WHEN n %% 2 = 0 THEN gen_random_uuid() END
    FROM generate_series(1, %(many)s::int) n
"""
ANALYZE = "ANALYZE batch_essay_trackers, essay_states, dead_letters"


@contextmanager
def many_rows(pool):
    with pool.connection() as conn, conn.transaction(force_rollback=True):
        for statement in (BATCHES, ESSAYS, LETTERS):
            conn.execute(statement, {"many": MANY})
        conn.execute(ANALYZE)
        yield conn


def rows_read(conn, statement, parameters):
    """Execute a statement; return its plan, and how many rows of tables it has read at most."""
    told = conn.execute("EXPLAIN (ANALYZE, TIMING off) " + statement, parameters, prepare=False)
    plan = "\n".join(row["QUERY PLAN"] for row in told.fetchall())
    scans = [line for line in plan.splitlines() if "Scan" in line and "actual" in line]
    read = [float(re.search(r"actual rows=([\d.]+)", line)[1]) for line in scans]
    left_out = [int(each) for each in re.findall(r"Rows Removed by Filter: (\d+)", plan)]
    return plan, sum(read) + sum(left_out)


@pytest.fixture(scope="module")
def conn(pool):
    with many_rows(pool) as connection:
        yield connection


@pytest.mark.parametrize(
    ("index", "value", "name"),
    [
        (None, None, "ix_batch_essay_trackers_newest"),
        ("user_id", "user-7", "ix_batch_essay_trackers_of_user"),
        ("org_id", "org-7", "ix_batch_essay_trackers_of_org"),
        ("state", "cancelled", "ix_batch_essay_trackers_status_registered_at"),
    ],
)
@pytest.mark.parametrize("after", ["infinity", "middle"])
def test_a_page_of_batches(conn, index, value, name, after):
    wanted = pages.Wanted(**({index: value} if index else {}))
    row = conn.execute("SELECT (now() - interval '10000 s')::text AS middle").fetchone()
    since = row["middle"] if after == "middle" else after
    parameters = {**wanted.parameters, "since": since, "batch_id": "~", "looked": 11}

    plan, read = rows_read(conn, pages.page_of_batches(index), parameters)

    assert name in plan
    assert read <= 20, plan


def test_a_rare_state_is_found_without_a_look_at_the_others(conn):
    found, following = pages.batches(conn, pages.Wanted(state="cancelled"), None, 1_000)

    assert len([each for each in found if each.startswith("many-")]) == MANY / 5_000
    assert following is None


def test_filters_without_an_index_look_at_a_bounded_number(conn):
    wanted = pages.Wanted(regular=True)
    parameters = {**wanted.parameters, "since": "infinity", "batch_id": "~"}

    statement = pages.page_of_batches(wanted.index)
    plan, read = rows_read(conn, statement, {**parameters, "looked": pages.WINDOW})

    assert read <= pages.WINDOW, plan


def test_a_page_of_an_essay(conn):
    plan, read = rows_read(
        conn, pages.ESSAYS_BY_ID, {"essay_id": "essay-7", "after": "", "limit": 11}
    )

    assert "ix_essay_states_essay_id" in plan
    assert read <= 20, plan


def test_the_dead_letters_of_a_message(conn):
    plan, read = rows_read(conn, pages.LETTERS_OF, {"event_id": uuid4(), "limit": 100})

    assert "ix_dead_letters_event_id" in plan
    assert read <= 1, plan
