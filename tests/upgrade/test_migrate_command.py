"""`els migrate` between releases: where the schema stands, one step back, and what waits."""

import json

import pytest

from core import schema
from core.servers.finding import Severity
from core.servers.postgres import check_postgres
from migrations import head
from tests.releases import LAST, ROOT


@pytest.fixture
def this(release):
    return release("this", ROOT)


@pytest.fixture
def coming(release, next_tree):
    return release("next", next_tree)


@pytest.fixture
def later(release, contract_tree):
    return release("later", contract_tree)


def check(release):
    done = release.els("migrate", "--check", "--json")
    answer = json.loads(done.stdout)
    return done.returncode, answer["state"], answer["revision"], answer["pending"]


def test_check_says_where_a_schema_stands(this, coming, conn):
    empty = check(this)
    this.els("migrate")
    at_head = check(this)
    behind = check(coming)
    coming.els("migrate")
    ahead, nothing_done = check(this), this.els("migrate")
    conn.execute("UPDATE alembic_version SET version_num = '9009'")
    unknown, refused = check(this), this.els("migrate")

    assert (empty[:3], empty[3][0]) == ((1, "empty", None), "0001")
    assert at_head == (0, "head", head(), [])
    assert behind == (1, "behind", head(), ["9001", "9002"])
    assert ahead == (1, "ahead", "9002", [])
    assert unknown == (1, "unknown", "9009", [])
    assert (nothing_done.returncode, nothing_done.stdout) == (0, "schema at 9002\n")
    assert (refused.returncode, "does not know" in refused.stderr) == (1, True)


def test_check_prints_one_line_with_the_next_step(this, coming, conn):
    this.els("migrate")

    line = coming.els("migrate", "--check").stdout

    assert line == (
        f"the schema is at {head()}, and this version brings 9002; to come: 9001, 9002."
        " Next: els migrate\n"
    )


def test_a_schema_of_a_newer_release_that_only_adds_is_a_warning(this, coming, conn):
    this.els("migrate")
    coming.els("migrate")

    [finding] = check_postgres(conn)

    assert finding.severity is Severity.WARNING
    assert "9002" in finding.wrong


def test_a_schema_that_dropped_what_this_code_uses_is_refused(this, later, conn):
    later.els("migrate", "--contract")

    [finding] = check_postgres(conn)
    checked = this.els("migrate", "--check")

    assert finding.severity is Severity.FAULT
    assert "for code of 9002 and newer" in finding.wrong
    assert (checked.returncode, "update this process" in checked.stdout) == (1, True)


def test_whoever_skips_a_release_deletes_nothing_before_saying_so(this, later, conn):
    this.els("migrate")

    first = later.els("migrate", "--json")
    checked = later.els("migrate", "--check")
    again = later.els("migrate", "--json")
    contracted = later.els("migrate", "--contract", "--json")

    stopped = {"revision": "9002", "waits": "9003"}
    assert json.loads(first.stdout) == {"before": head(), **stopped}
    assert (checked.returncode, "--contract" in checked.stdout) == (1, True)
    assert json.loads(again.stdout) == {"before": "9002", **stopped}
    assert json.loads(contracted.stdout)["revision"] == "9003"


def test_whoever_skips_no_release_needs_no_second_step(coming, later):
    coming.els("migrate")

    done = later.els("migrate", "--json")

    assert json.loads(done.stdout) == {"before": "9002", "revision": "9003", "waits": None}


def test_an_empty_database_gets_the_whole_schema(later):
    assert json.loads(later.els("migrate", "--json").stdout)["revision"] == "9003"


def test_a_step_back_says_what_it_deletes_and_asks(this, coming, conn):
    coming.els("migrate")
    coming.els("migrate", "--downgrade", "--yes")  # of the index
    conn.execute(
        "INSERT INTO batch_essay_trackers (batch_id, status, user_id, course_code, correlation_id,"
        " expected_count, available_slots, essay_ids_sha256, on_deadline, deadline_at,"
        " of_the_next_release) VALUES ('b', 'awaiting_content_validation', 'u', 'c',"
        " gen_random_uuid(), 1, 1, '', 'fail', now(), 'x')"
    )

    unanswered = coming.els("migrate", "--downgrade")
    kept = check(coming)[2]
    done = coming.els("migrate", "--downgrade", "--yes", "--json")

    assert "column batch_essay_trackers.of_the_next_release (1 row)" in unanswered.stderr
    assert (unanswered.returncode, kept) == (1, "9001")
    assert json.loads(done.stdout) == {
        "before": "9001",
        "revision": head(),
        "deleted": ["column batch_essay_trackers.of_the_next_release"],
    }
    assert check(this)[:2] == (0, "head")


def test_a_step_back_counts_the_rows_that_it_deletes(this, conn):
    this.els("migrate")
    conn.execute("UPDATE alembic_version SET version_num = '0004'")

    said = this.els("migrate", "--downgrade").stderr

    assert "rows of event_outbox (0 rows); column batch_essay_trackers.amendments (0 rows)" in said


def test_what_cannot_be_undone_is_refused(this, coming, later, conn):
    later.els("migrate", "--contract")
    of_contract = later.els("migrate", "--downgrade", "--yes")
    of_unknown = this.els("migrate", "--downgrade", "--yes")
    conn.execute("UPDATE alembic_version SET version_num = '0001'")
    of_first = this.els("migrate", "--downgrade", "--yes")

    assert [each.returncode for each in (of_contract, of_unknown, of_first)] == [1, 1, 1]
    assert "restore a backup" in of_contract.stderr
    assert "the release that made it" in of_unknown.stderr
    assert "every batch" in of_first.stderr


ASK = """
import sys
from core import db
try:
    from core.servers.postgres import missing_for_work
except ImportError:  # of 1.0.0
    from core.requirements import missing_for_work
found = missing_for_work(db.connect_once(sys.argv[1]))
print(found.step if found else "")
"""


def test_the_last_release_works_on_this_schema_and_this_one_waits_for_what_it_needs(
    release, last_tree, this
):
    last = release("last", last_tree)

    last.els("migrate")
    here = this.run("-c", ASK, this.servers.database_url)
    this.els("migrate")
    there = last.run("-c", ASK, last.servers.database_url)

    needs = LAST["schema"] < schema.OLDEST_SCHEMA
    assert (here.stdout, here.stderr) == ("els migrate\n" if needs else "\n", "")
    assert (there.stdout, there.stderr) == ("\n", "")
