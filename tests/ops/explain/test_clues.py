"""What may have become of what a batch lacks, said of one id, also among very many batches."""

import json
import time
from dataclasses import replace
from uuid import uuid4

import pytest

from core import db
from core.db.dead_letters import DeadLetter
from ops.explain import queries
from ops.explain.batch_causes import CLAIMED_LONG, NO_CLUE
from ops.explain.causes import CAUSES
from ops.explain.explanation import explain
from ops.explain.message_clues import with_lost
from tests.core.story import assign, cancel, confirm, fill, register, reject
from tests.factories import content, essay_ids, new_batch, registration
from tests.ops.explain.test_explain import alive

MANY = 100_000
SLOWER = 15  # times as slow as among few batches


class Asked:
    """The stores of the test, and what is said of an id on them."""

    def __init__(self, lifecycle, conn):
        self.lifecycle, self.conn = lifecycle, conn

    def explain(self, given):
        return explain(self.conn, self.lifecycle.slots, given, alive())

    def cause(self, given, code):
        (found,) = [each for each in self.explain(given).causes if each.code == code]
        return found

    def park(self, body, batch_id=None, task="els.assign_content", code="VALIDATION_ERROR"):
        letter = DeadLetter(task, str(uuid4()), batch_id, json.dumps(body), code, "why")
        return db.dead_letters.add(self.conn, letter)

    def edit(self, batch_id, assignments):
        query = f"UPDATE batch_essay_trackers SET {assignments} WHERE batch_id = %s"
        self.conn.execute(query, [batch_id])

    def time_out(self, batch_id):
        self.edit(batch_id, "deadline_at = now() - interval '1 minute'")
        self.lifecycle.time_out(batch_id)


@pytest.fixture
def asked(lifecycle, conn):
    conn.execute("UPDATE dead_letters SET discarded_at = now() WHERE discarded_at IS NULL")
    yield Asked(lifecycle, conn)
    conn.execute("UPDATE dead_letters SET discarded_at = now() WHERE discarded_at IS NULL")


# --- ids -----------------------------------------------------------------------------------------


def test_a_similar_id_gives_the_step(asked, lifecycle, batch_id):
    register(lifecycle, batch_id)

    cause = asked.cause(batch_id.upper(), "unknown_batch")

    assert cause.reason == f"{batch_id} is registered, which is this id in another case"
    assert cause.command == f"els explain {batch_id}"


def test_whatever_a_person_types_is_explained(asked):
    for given in ("{batch} 'x' {0}", "%s", "a" * 5_000, "", " ", "\u0441\u0430", "-?"):
        assert "is mistyped" in asked.cause(given, "unknown_batch").reason


def test_many_similar_ids_are_counted(asked, lifecycle, batch_id):
    for n in range(5):
        register(lifecycle, f"{batch_id}-{n}", 1)

    cause = asked.cause(batch_id, "unknown_batch")

    assert cause.reason.count("is registered") == 3
    assert "2 more registered ids are nearly the same" in cause.reason


def test_an_id_of_two_kinds_is_said_to_be_both(asked, lifecycle, batch_id):
    name = f"n-{uuid4().hex}"
    register(lifecycle, batch_id, [name], class_id=name)

    cause = asked.cause(name, "unknown_batch")

    assert f"it is the id of a class, of {batch_id}" in cause.reason
    assert f"it is the id of an essay, of {batch_id}" in cause.reason


def test_outcomes_without_a_batch_say_that_its_rows_are_gone(asked, lifecycle, conn, batch_id):
    register(lifecycle, batch_id)
    conn.execute("DELETE FROM batch_essay_trackers WHERE batch_id = %s", [batch_id])

    told = asked.explain(batch_id)

    assert [cause.code for cause in told.causes] == ["unknown_batch"]
    assert told.causes[0].title == "The batch was registered, but its rows are gone"
    assert told.causes[0].since is not None


def test_without_tombstones_nothing_fails(asked, conn, batch_id):
    with conn.transaction(force_rollback=True):
        conn.execute("DROP TABLE purged_batches")

        assert "is mistyped" in asked.cause(batch_id, "unknown_batch").reason


def test_a_locked_table_keeps_no_other_clue_back(asked, lifecycle, conn, pool, batch_id):
    register(lifecycle, batch_id)
    with pool.connection() as holder, holder.transaction():
        holder.execute("LOCK TABLE purged_batches IN ACCESS EXCLUSIVE MODE")

        with conn.transaction():
            conn.execute("SET LOCAL lock_timeout = '100ms'")
            cause = asked.cause(batch_id.upper(), "unknown_batch")

    assert f"{batch_id} is registered" in cause.reason


def test_the_search_for_other_kinds_gives_up_in_time(asked, conn, pool, batch_id):
    before = conn.execute("SHOW statement_timeout").fetchone()
    with pool.connection() as holder, holder.transaction():
        holder.execute("LOCK TABLE excess_content IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()

        found = queries.other_kinds(conn, batch_id)

        assert (found, time.monotonic() - started < 10) == ([], True)
    assert conn.execute("SHOW statement_timeout").fetchone() == before


# --- letters -------------------------------------------------------------------------------------


def test_a_letter_from_before_this_release_is_found_by_its_body(asked, lifecycle, batch_id):
    register(lifecycle, batch_id)
    number = asked.park({"args": [], "kwargs": content(batch_id)})

    cause = asked.cause(batch_id, "waiting_for_contents")

    assert f"dead letter {number} (els.assign_content, VALIDATION_ERROR) names this" in cause.reason
    assert cause.command == f"els dead-letters show {number}"


def test_a_letter_of_another_task_is_no_clue(asked, lifecycle, batch_id):
    register(lifecycle, batch_id)
    asked.park({}, task="els.register_batch")
    asked.park({}, task="els.confirm_students")

    reason = asked.cause(batch_id, "waiting_for_contents").reason

    assert "names no batch" not in reason
    assert "no dead letter, pending content or similar id" in reason


def test_a_large_letter_is_not_read(asked, batch_id):
    hexes = [uuid4().hex for _ in range(20_000)]
    asked.park({"args": hexes, "kwargs": content(batch_id)})

    assert "names no batch" in asked.cause(batch_id, "unknown_batch").reason


def test_letters_of_students_are_named(asked, lifecycle, batch_id):
    fill(lifecycle, batch_id, 1, class_id="class 7b")
    lifecycle.complete(batch_id)
    number = asked.park({}, task="els.confirm_students")

    cause = asked.cause(batch_id, "waiting_for_students")

    assert "class 7b" in cause.reason
    assert f"1 dead letter names no batch: {number} (els.confirm_students" in cause.reason


def test_the_letters_that_a_batch_needs_say_why(asked, lifecycle, batch_id):
    register(lifecycle, batch_id)
    number = asked.park(content(batch_id), batch_id)

    cause = asked.cause(batch_id, "dead_letter_waiting")

    first, *more = cause.reason.split("; ")
    assert first == f"{number} (els.assign_content, VALIDATION_ERROR): why"
    assert more == ["its sender must correct that and send it again", "then discard the letter"]


def test_a_registration_of_a_similar_batch_is_named(asked, lifecycle, batch_id):
    assign(lifecycle, batch_id)
    number = asked.park(registration(batch_id), batch_id.upper(), "els.register_batch")

    cause = asked.cause(batch_id, "pending_not_registered")

    assert f"{batch_id.upper()}, which is this id in another case" in cause.reason
    assert cause.command == f"els dead-letters show {number}"


# --- contents ------------------------------------------------------------------------------------


def test_contents_under_a_similar_id_are_named_on_both_sides(asked, lifecycle, batch_id):
    register(lifecycle, batch_id)
    other = batch_id.upper()
    assign(lifecycle, other)

    waiting = asked.cause(batch_id, "waiting_for_contents")
    pending = asked.cause(other, "pending_not_registered")

    assert f"1 content waits for {other}, which is this id in another case" in waiting.reason
    assert waiting.command == f"els explain {other}"
    assert f"{batch_id} is registered, which is this id in another case" in pending.reason
    assert pending.command == f"els explain {batch_id}"


def test_excess_of_a_similar_batch_is_named(asked, lifecycle, batch_id):
    register(lifecycle, batch_id)
    other = f"{batch_id}x"
    fill(lifecycle, other, 1)
    assign(lifecycle, other, "text-too-many")

    cause = asked.cause(batch_id, "waiting_for_contents")

    assert f"1 content found no slot in {other}, which is this id" in cause.reason
    assert cause.command == f"els find {other}"


def test_a_passed_deadline_is_said_to_have_passed(asked, lifecycle, batch_id):
    register(lifecycle, batch_id)
    asked.edit(batch_id, "deadline_at = now() - interval '1 minute'")

    cause = asked.cause(batch_id, "waiting_for_contents")

    assert "its deadline passed at " in cause.by_itself
    assert "it is timed out" not in cause.by_itself


def test_nothing_that_came_is_no_rejected_file(asked, lifecycle, batch_id):
    register(lifecycle, batch_id, 2, on_deadline="proceed")
    asked.time_out(batch_id)

    cause = asked.cause(batch_id, "all_slots_failed")

    assert cause.title == "No text came for any slot until the deadline"
    assert "proceeded" in cause.reason


def test_rejected_files_and_missing_ones_are_told_apart(asked, lifecycle, batch_id):
    register(lifecycle, batch_id, 3, on_deadline="proceed")
    reject(lifecycle, batch_id)
    asked.time_out(batch_id)

    cause = asked.cause(batch_id, "all_slots_failed")

    assert cause.title == "1 file was rejected, and nothing came for 2 slots until the deadline"
    assert "EMPTY_CONTENT \u00d7 1" in cause.reason


def test_rejected_files_are_counted_by_code(asked, lifecycle, batch_id):
    register(lifecycle, batch_id, 3)
    for n, code in enumerate(["EMPTY_CONTENT", "CONTENT_TOO_LONG", "EMPTY_CONTENT"]):
        reject(lifecycle, batch_id, f"file-{n}", validation_error_code=code)
    lifecycle.complete(batch_id)

    cause = asked.cause(batch_id, "all_slots_failed")

    assert cause.title == "Every file of the batch was rejected"
    assert "EMPTY_CONTENT \u00d7 2, CONTENT_TOO_LONG \u00d7 1" in cause.reason


def test_a_timeout_says_what_was_missing(asked, lifecycle, batch_id):
    register(lifecycle, batch_id, 3)
    assign(lifecycle, batch_id)
    asked.time_out(batch_id)

    assert "carried out for 2 of 3 slots" in asked.cause(batch_id, "timed_out").reason


def test_a_timeout_says_that_students_were_missing(asked, lifecycle, batch_id):
    fill(lifecycle, batch_id, 1, class_id="class-1")
    lifecycle.complete(batch_id)
    asked.time_out(batch_id)

    assert "els.confirm_students had not come" in asked.cause(batch_id, "timed_out").reason


def test_a_cancellation_says_its_reason(asked, lifecycle, batch_id):
    register(lifecycle, batch_id)
    cancel(lifecycle, batch_id, "a wrong {class}")

    assert "a wrong {class}" in asked.cause(batch_id, "cancelled").reason


# --- events --------------------------------------------------------------------------------------


def ready(lifecycle, batch_id):
    fill(lifecycle, batch_id, 1, class_id="class-1")
    lifecycle.complete(batch_id)
    confirm(lifecycle, batch_id, {essay_ids(1)[0]: "student-1"})


def test_an_event_that_has_not_left_is_named_at_once(asked, lifecycle, batch_id):
    ready(lifecycle, batch_id)

    cause = asked.cause(batch_id, "event_under_way")

    assert cause.title == "The outbox holds 2 events of the batch that have not been delivered yet"
    assert cause.since is not None


def test_an_event_that_failed_a_moment_ago_says_why(asked, lifecycle, conn, batch_id):
    ready(lifecycle, batch_id)
    conn.execute(
        "UPDATE event_outbox SET attempts = 1, last_error = 'OSError: {no} route'"
        " WHERE batch_id = %s",
        [batch_id],
    )

    assert "OSError: {no} route" in asked.cause(batch_id, "event_under_way").reason


def test_an_event_that_somebody_deleted_is_named_by_its_number(asked, lifecycle, conn, batch_id):
    register(lifecycle, batch_id)
    cancel(lifecycle, batch_id)
    conn.execute("DELETE FROM event_outbox WHERE batch_id = %s", [batch_id])

    cause = asked.cause(batch_id, "event_deleted")

    assert cause.title == "The outbox lacks 1 event of the batch (number 1 of 1)"


# --- notes ---------------------------------------------------------------------------------------


def test_messages_of_claims_are_not_lost_where_a_letter_may_have_them():
    claims = replace(CAUSES["claims_in_flight"].fill(held="1 slot is"), reason=CLAIMED_LONG)
    waits = CAUSES["waiting_for_contents"]

    assert with_lost([claims, waits]) == [claims, waits]
    [lost, _] = with_lost([claims, replace(waits, reason=f"{waits.reason}; {NO_CLUE}")])
    assert lost.title.startswith("Contents of the batch were in work")
    assert "neither in the queue nor with a worker" in lost.reason


def test_what_holds_nothing_up_is_noted(asked, lifecycle, batch_id):
    register(lifecycle, batch_id, 2)
    reject(lifecycle, batch_id, "file-of-both")
    assign(lifecycle, batch_id, "text-1", file_upload_id="file-of-both")
    assign(lifecycle, batch_id, "text-2")
    lifecycle.complete(batch_id)
    number = asked.park({}, batch_id)

    excess, twice, letter = asked.explain(batch_id).notes

    assert excess == "1 file came when every slot was taken: text-2"
    assert twice.startswith("file file-of-both holds 2 slots: essay-000000 (")
    assert "(rejected)" in twice
    assert "(text-1)" in twice
    assert letter == (
        f"dead letter {number} (els.assign_content, VALIDATION_ERROR) waits, and the batch no"
        f" longer needs it: els dead-letters discard {number}"
    )


def test_a_healthy_batch_has_no_notes(asked, lifecycle, batch_id):
    ready(lifecycle, batch_id)

    assert asked.explain(batch_id).notes == []


# --- many ----------------------------------------------------------------------------------------


def best(asked, ids):
    """Measure the quickest of some answers to each id, in seconds."""

    def seconds(given):
        started = time.monotonic()
        asked.explain(given)
        return time.monotonic() - started

    return {given: min(seconds(given) for _ in range(5)) for given in ids}


@pytest.fixture
def alone(asked):
    """Measure how long it takes to say that nothing is known of an id, among few batches."""
    return best(asked, [new_batch()])


@pytest.fixture
def many(conn, alone):
    """Very many batches of three essays, contents that wait for others, letters without a batch."""
    conn.execute(
        "INSERT INTO batch_essay_trackers (batch_id, status, user_id, course_code, correlation_id,"
        " expected_count, available_slots, essay_ids_sha256, on_deadline, deadline_at)"
        " SELECT 'many-' || n, 'awaiting_content_validation', 'teacher-1', 'ENG5',"
        " gen_random_uuid(), 3, 3, '', 'fail', now() + interval '1 day'"
        " FROM generate_series(1, %s) n",
        [MANY],
    )
    conn.execute(
        "INSERT INTO essay_states (batch_id, essay_id, current_status)"
        " SELECT 'many-' || n, 'essay-' || e, 'awaiting_content'"
        " FROM generate_series(1, %s) n, generate_series(1, 3) e",
        [MANY],
    )
    conn.execute(
        "INSERT INTO batch_pending_content (batch_id, kind, essay_file_id, text_storage_id)"
        " SELECT 'lost-' || n, 'content', 'file-1', 'text-1' FROM generate_series(1, %s) n",
        [MANY // 10],
    )
    conn.execute(
        "INSERT INTO dead_letters (task, task_id, body, code, message)"
        " SELECT 'els.assign_content', 'many-' || n, '{\"a\": \"b\"}', 'VALIDATION_ERROR', 'x'"
        " FROM generate_series(1, %s) n",
        [MANY // 10],
    )
    conn.execute("ANALYZE")
    yield
    conn.execute("DELETE FROM batch_essay_trackers WHERE batch_id LIKE 'many-%'")
    conn.execute("DELETE FROM batch_pending_content WHERE batch_id LIKE 'lost-%'")
    conn.execute("DELETE FROM dead_letters WHERE task_id LIKE 'many-%'")
    conn.execute("ANALYZE")


@pytest.mark.slow
def test_the_answer_is_quick_among_very_many_batches(asked, alone, many):
    ids = ("many-77", "MANY-77", "lost-77", "essay-2", new_batch(), "x" * 64)

    took = best(asked, ids)

    assert max(took.values()) < SLOWER * max(alone.values()), (took, alone)
