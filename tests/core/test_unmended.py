"""A repair that does not help is remembered, reported, tried less often, and hinders nobody."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from structlog.testing import capture_logs

from core import db
from core.lifecycle import Lifecycle
from core.repairs import RepairContext
from core.slots import Slots
from core.sweep import sweep
from ops.explain.explanation import explain
from ops.heartbeat import SWEEP_LATE, Heartbeat
from ops.queries.sweep import holder
from tests.core import looks
from tests.core.story import assign, cancel, confirm, fill, register, reject, texts, upload
from tests.core.test_sweep import (
    TABLES,
    break_deadline_passed,
    break_full_not_announced,
    break_slot_missing,
    closed,
    drop_event,
    edit,
    edit_slot,
    ignored,
    leave_waiting,
    noted,
    pass_deadline,
    swept,
)
from tests.factories import new_batch

__all__ = ["closed"]  # a fixture


@pytest.fixture
def alone(conn, slots):
    """No other batch is there, so that a sweep of all meets only this test's."""
    conn.execute(f"TRUNCATE {TABLES}")


def take_the_number_of_the_next_event(conn, batch_id):
    """Let no event of a batch be written: its number is taken by hand."""
    conn.execute(
        "INSERT INTO event_outbox (id, batch_id, type, generation, sequence, correlation_id, data,"
        " published_at) VALUES (gen_random_uuid(), %s, 'ByHand', '1', 1, gen_random_uuid(), '{}',"
        " now())",
        [batch_id],
    )


def give_the_number_back(conn, batch_id):
    drop_event(conn, batch_id, "ByHand")


def unmended(conn, batch_id):
    return {rule: each for (_, rule), each in db.sweep.unmended(conn, batch_id, 100).items()}


def alive():
    return Heartbeat(["worker@one"], datetime.now(UTC), 0)


def causes(conn, slots, batch_id, seen=None):
    told = explain(conn, slots, batch_id, seen or alive())
    return {cause.code: cause for cause in told.causes}


def let_it_be_tried_again(conn):
    conn.execute("UPDATE unmended SET retry_at = now()")


# --- a repair that does not help -----------------------------------------------------------------


def test_a_repair_that_failed_twice_is_not_mending_itself(alone, lifecycle, conn, slots, batch_id):
    break_full_not_announced(lifecycle, conn, batch_id)
    take_the_number_of_the_next_event(conn, batch_id)
    promised = causes(conn, slots, batch_id)["full_not_announced"].by_itself

    swept(lifecycle)
    once = causes(conn, slots, batch_id)["full_not_announced"].by_itself
    swept(lifecycle)
    twice = causes(conn, slots, batch_id)["full_not_announced"].by_itself

    known = unmended(conn, batch_id)["full_not_announced"]
    assert once == promised
    assert "not mending itself: the sweep has tried 2 times since" in twice
    assert f"{known.since:%Y-%m-%d %H:%M:%S} UTC" in twice
    assert "UniqueViolation" in twice
    assert noted(conn, batch_id) == []


def test_a_repair_that_ran_but_did_not_help_says_what_is_left(
    alone, lifecycle, conn, slots, batch_id, monkeypatch
):
    break_deadline_passed(lifecycle, conn, batch_id)
    monkeypatch.setattr(db.batches, "time_out", lambda conn, batch_id: None)

    found = [swept(lifecycle), swept(lifecycle)]

    assert found == [[("deadline_passed", batch_id, False)]] * 2
    assert unmended(conn, batch_id)["deadline_passed"].last_error == (
        "after the repair: on_deadline fail"
    )
    assert noted(conn, batch_id) == []


def test_it_is_logged_when_it_first_fails_and_when_it_is_hopeless_only(
    alone, lifecycle, conn, batch_id
):
    break_full_not_announced(lifecycle, conn, batch_id)
    take_the_number_of_the_next_event(conn, batch_id)

    with capture_logs() as lines:
        for _ in range(5):
            swept(lifecycle)
            let_it_be_tried_again(conn)

    told = [line["event"] for line in lines if line.get("rule") == "full_not_announced"]
    assert told == ["repair_failed", "not_mending_itself"]
    assert unmended(conn, batch_id)["full_not_announced"].failures == 5


def test_it_is_tried_less_and_less_often(alone, lifecycle, conn, batch_id):
    break_full_not_announced(lifecycle, conn, batch_id)
    take_the_number_of_the_next_event(conn, batch_id)
    waits = []

    for _ in range(9):
        swept(lifecycle)
        swept(lifecycle)
        known = conn.execute("SELECT retry_at - tried_at AS wait FROM unmended").fetchone()
        waits.append(known["wait"] and round(known["wait"].total_seconds()))
        let_it_be_tried_again(conn)

    assert waits == [20, 40, 80, 160, 300, 300, 300, 300, 300]


def test_a_sweep_of_one_batch_and_one_at_once_try_it_nevertheless(alone, lifecycle, conn, batch_id):
    break_full_not_announced(lifecycle, conn, batch_id)
    take_the_number_of_the_next_event(conn, batch_id)
    swept(lifecycle)
    swept(lifecycle)

    swept(lifecycle, batch_id)
    swept(lifecycle, at_once=True)

    assert unmended(conn, batch_id)["full_not_announced"].failures == 4


def test_it_is_forgotten_once_the_cause_is_mended(alone, lifecycle, conn, slots, batch_id):
    break_full_not_announced(lifecycle, conn, batch_id)
    take_the_number_of_the_next_event(conn, batch_id)
    swept(lifecycle)
    swept(lifecycle)

    give_the_number_back(conn, batch_id)
    swept(lifecycle, batch_id)

    assert looks.batch(conn, batch_id)["status"] == "ready_for_pipeline_execution"
    swept(lifecycle)
    assert unmended(conn, batch_id) == {}


def test_it_is_forgotten_where_somebody_else_mended_it(alone, lifecycle, conn, batch_id):
    break_full_not_announced(lifecycle, conn, batch_id)
    take_the_number_of_the_next_event(conn, batch_id)
    swept(lifecycle)
    swept(lifecycle)

    give_the_number_back(conn, batch_id)
    lifecycle.complete(batch_id)
    swept(lifecycle)

    assert unmended(conn, batch_id) == {}


def test_a_dry_run_remembers_nothing(alone, lifecycle, conn, batch_id):
    break_slot_missing(lifecycle, conn, batch_id)

    swept(lifecycle, dry_run=True)

    assert unmended(conn, batch_id) == {}


def test_servers_that_fail_are_not_held_against_a_batch(
    alone, pool, lifecycle, conn, batch_id, closed
):
    break_deadline_passed(lifecycle, conn, batch_id)
    full = new_batch()
    break_full_not_announced(lifecycle, conn, full)

    for _ in range(3):
        swept(Lifecycle(pool, Slots(closed)))

    assert unmended(conn, full) == {}


def test_an_error_that_a_trigger_raises_is_the_batch_s(alone, lifecycle, conn, slots, batch_id):
    break_deadline_passed(lifecycle, conn, batch_id)
    conn.execute(
        "CREATE FUNCTION refuse_it() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'not this one'; END $$"
    )
    conn.execute(
        "CREATE TRIGGER refuse_it BEFORE UPDATE ON batch_essay_trackers FOR EACH ROW"
        f" WHEN (NEW.batch_id = '{batch_id}') EXECUTE FUNCTION refuse_it()"
    )
    try:
        swept(lifecycle)
        swept(lifecycle)
        told = causes(conn, slots, batch_id)["deadline_passed"].by_itself
    finally:
        conn.execute("DROP TRIGGER refuse_it ON batch_essay_trackers")
        conn.execute("DROP FUNCTION refuse_it")

    assert "not mending itself" in told
    assert "RaiseException: not this one" in told


def test_a_bug_of_one_repair_keeps_no_other_batch_from_the_sweep(
    alone, lifecycle, conn, batch_id, monkeypatch
):
    other = new_batch()
    break_deadline_passed(lifecycle, conn, batch_id)
    break_deadline_passed(lifecycle, conn, other)
    time_out = lifecycle.time_out

    def wrong(each):
        return time_out(each) if each == other else 1 // 0

    monkeypatch.setattr(lifecycle, "time_out", wrong)

    with pytest.raises(ZeroDivisionError):
        swept(lifecycle)

    assert looks.batch(conn, other)["status"] == "timed_out"
    assert "ZeroDivisionError" in unmended(conn, batch_id)["deadline_passed"].last_error


# --- slots that somebody changed -----------------------------------------------------------------


def test_a_cancelled_open_slot_is_open_again_and_takes_a_content(
    alone, lifecycle, conn, slots, batch_id
):
    register(lifecycle, batch_id, 3)
    upload(lifecycle, batch_id, texts(2))
    (left,) = looks.open_slots(conn, batch_id)
    edit_slot(conn, batch_id, left, "current_status = 'cancelled'")

    found = swept(lifecycle)
    upload(lifecycle, batch_id, texts(3))
    swept(lifecycle)

    assert found == [("slot_cancelled", batch_id, True)]
    assert looks.types(conn, batch_id).count("BatchEssaysReady") == 1
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_a_cancelled_slot_keeps_its_content_and_a_rejected_one_stays_failed(
    alone, lifecycle, conn, slots, batch_id
):
    register(lifecycle, batch_id, 3)
    held = assign(lifecycle, batch_id)["essay_id"]
    failed = reject(lifecycle, batch_id)["essay_id"]
    for essay_id in (held, failed):
        edit_slot(conn, batch_id, essay_id, "current_status = 'cancelled'")

    swept(lifecycle)

    essays = looks.essays(conn, batch_id)
    assert essays[held]["current_status"] == "ready_for_processing"
    assert essays[failed]["current_status"] == "content_ingestion_failed"
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_a_batch_that_an_older_release_counted_as_full_goes_on(
    alone, lifecycle, conn, slots, batch_id
):
    register(lifecycle, batch_id, 3)
    conn.execute(
        "UPDATE essay_states SET current_status = 'cancelled' WHERE batch_id = %s", [batch_id]
    )
    edit(conn, batch_id, "available_slots = 0, full_at = now()")

    found = swept(lifecycle)

    assert ("slot_cancelled", batch_id, True) in found
    assert ("counter_wrong", batch_id, True) in found
    assert looks.batch(conn, batch_id)["available_slots"] == 3
    assert swept(lifecycle, batch_id) == []


def test_slots_of_a_batch_that_was_cancelled_stay_cancelled(
    alone, lifecycle, conn, slots, batch_id
):
    register(lifecycle, batch_id, 3)
    cancel(lifecycle, batch_id)

    assert swept(lifecycle, batch_id) == []
    assert {e["current_status"] for e in looks.essays(conn, batch_id).values()} == {"cancelled"}


@pytest.mark.parametrize("which", ["open", "assigned"])
def test_a_deleted_slot_never_makes_a_batch_count_as_full(
    alone, lifecycle, conn, slots, batch_id, which
):
    register(lifecycle, batch_id, 2)
    taken = assign(lifecycle, batch_id)["essay_id"]
    (left,) = looks.open_slots(conn, batch_id)
    gone = left if which == "open" else taken
    conn.execute("DELETE FROM essay_states WHERE batch_id = %s AND essay_id = %s", [batch_id, gone])

    for _ in range(3):
        swept(lifecycle)

    row = looks.batch(conn, batch_id)
    assert (row["available_slots"], row["full_at"]) == (1, None)
    cause = causes(conn, slots, batch_id)["slot_missing"]
    assert "1 of 2 slots are there" in cause.title
    assert cause.since is not None


@pytest.mark.parametrize("on_deadline", ["fail", "proceed"])
@pytest.mark.parametrize("full", [False, True])
def test_a_batch_with_a_deleted_slot_ends_at_its_deadline(
    alone, lifecycle, conn, slots, batch_id, on_deadline, full
):
    register(lifecycle, batch_id, 2, on_deadline=on_deadline)
    taken = assign(lifecycle, batch_id)["essay_id"]
    if full:
        assign(lifecycle, batch_id, "text-2")
    conn.execute(
        "DELETE FROM essay_states WHERE batch_id = %s AND essay_id = %s", [batch_id, taken]
    )
    swept(lifecycle)
    pass_deadline(conn, batch_id)

    swept(lifecycle)

    assert looks.batch(conn, batch_id)["status"] == "timed_out"
    (event,) = looks.events(conn, batch_id, "BatchReadinessTimeout")
    assert event["data"]["on_deadline"] == "fail"
    assert swept(lifecycle) == []


def test_an_alarm_about_slots_is_seen_wherever_the_count_is(
    alone, lifecycle, conn, slots, batch_id, monkeypatch
):
    monkeypatch.setattr("core.checks.COUNTED_SLOTS", 1)
    break_slot_missing(lifecycle, conn, batch_id)
    for _ in range(3):
        register(lifecycle, new_batch(), 1)

    rounds = [swept(lifecycle) for _ in range(8)]

    seen = [("slot_missing", batch_id, False) in found for found in rounds]
    assert all(seen[seen.index(True) :])


# --- a status that somebody changed --------------------------------------------------------------


def a_ready_batch(lifecycle, batch_id):
    fill(lifecycle, batch_id, 2)
    lifecycle.complete(batch_id)


def a_ready_regular_batch(lifecycle, batch_id):
    a_batch_that_waits_for_students(lifecycle, batch_id)
    confirm(lifecycle, batch_id, {"essay-000000": "student-1"})


def a_batch_that_waits_for_students(lifecycle, batch_id):
    fill(lifecycle, batch_id, 2, class_id="class-1")
    lifecycle.complete(batch_id)


def a_failed_batch(lifecycle, batch_id):
    register(lifecycle, batch_id, 1)
    reject(lifecycle, batch_id)
    lifecycle.complete(batch_id)


def a_cancelled_batch(lifecycle, batch_id):
    register(lifecycle, batch_id, 2)
    cancel(lifecycle, batch_id)


def a_timed_out_batch(lifecycle, batch_id):
    register(lifecycle, batch_id, 2)
    with lifecycle.pool.connection() as conn:
        pass_deadline(conn, batch_id)
    lifecycle.time_out(batch_id)


def an_open_batch(lifecycle, batch_id):
    register(lifecycle, batch_id, 2)
    assign(lifecycle, batch_id)


BACK = "status = 'awaiting_content_validation', ready_at = NULL"
CHANGED = [
    (a_ready_batch, BACK),
    (a_ready_batch, f"{BACK}, completed_at = NULL"),
    (a_ready_batch, f"{BACK}, completed_at = NULL, manifest_sha256 = NULL"),
    (a_ready_batch, "status = 'awaiting_student_validation', ready_at = NULL"),
    (a_ready_batch, "status = 'content_ingestion_failed', ready_at = NULL"),
    (a_ready_batch, "status = 'cancelled', ready_at = NULL, closed_at = now()"),
    (a_ready_batch, "status = 'timed_out', ready_at = NULL"),
    (a_ready_batch, "closed_at = now()"),
    (a_ready_regular_batch, BACK),
    (a_ready_regular_batch, "status = 'awaiting_student_validation', ready_at = NULL"),
    (a_batch_that_waits_for_students, "status = 'awaiting_content_validation'"),
    (a_batch_that_waits_for_students, "status = 'ready_for_pipeline_execution', ready_at = now()"),
    (a_batch_that_waits_for_students, "status = 'content_ingestion_failed'"),
    (a_failed_batch, "status = 'awaiting_content_validation'"),
    (a_failed_batch, "status = 'awaiting_content_validation', completed_at = NULL"),
    (a_cancelled_batch, "status = 'awaiting_content_validation'"),
    (a_cancelled_batch, "status = 'timed_out'"),
    (
        a_cancelled_batch,
        "status = 'awaiting_content_validation', closed_at = NULL, full_at = now()",
    ),
    (a_timed_out_batch, "status = 'awaiting_content_validation'"),
    (a_timed_out_batch, "status = 'cancelled', closed_reason = NULL"),
    (an_open_batch, "status = 'cancelled'"),
    (an_open_batch, "status = 'timed_out'"),
    (an_open_batch, "closed_at = now()"),
]


@pytest.mark.parametrize(("make", "change"), CHANGED)
def test_a_status_changed_by_hand_is_named_and_put_back(
    alone, lifecycle, conn, slots, batch_id, make, change
):
    make(lifecycle, batch_id)
    before = looks.batch(conn, batch_id)
    told = looks.types(conn, batch_id)
    edit(conn, batch_id, change)

    named = causes(conn, slots, batch_id)
    for _ in range(4):
        found = swept(lifecycle)

    after = looks.batch(conn, batch_id)
    moments = ("completed_at", "ready_at", "closed_at")
    assert "status_wrong" in named
    assert found == []
    assert after["status"] == before["status"]
    assert [after[m] is None for m in moments] == [before[m] is None for m in moments]
    assert after["manifest_sha256"] == before["manifest_sha256"]
    assert looks.types(conn, batch_id) == told
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_a_closed_batch_whose_slots_are_open_again_is_offered_to_no_content(
    alone, lifecycle, conn, slots, batch_id
):
    a_cancelled_batch(lifecycle, batch_id)
    conn.execute(
        "UPDATE essay_states SET current_status = 'awaiting_content' WHERE batch_id = %s",
        [batch_id],
    )

    found = swept(lifecycle, batch_id)

    assert found == []
    assert slots.free(batch_id) == set()
    assert assign(lifecycle, batch_id)["outcome"] == "closed"


def test_a_closed_batch_with_a_counter_is_closed_again(alone, lifecycle, conn, slots, batch_id):
    a_cancelled_batch(lifecycle, batch_id)
    edit(conn, batch_id, "available_slots = 2")
    leave_waiting(conn, batch_id)

    for _ in range(2):
        swept(lifecycle, batch_id)

    assert looks.batch(conn, batch_id)["available_slots"] == 0
    assert looks.waiting(conn, batch_id) == []
    assert swept(lifecycle, batch_id) == []


# --- events that somebody deleted ----------------------------------------------------------------


@pytest.mark.parametrize("make", [a_ready_batch, a_ready_regular_batch])
def test_a_deleted_readiness_event_is_written_again_as_it_was(
    alone, lifecycle, conn, slots, batch_id, make
):
    make(lifecycle, batch_id)
    (before,) = looks.events(conn, batch_id, "BatchEssaysReady")
    drop_event(conn, batch_id, "BatchEssaysReady")

    assert "event_missing" in causes(conn, slots, batch_id)
    found = swept(lifecycle)

    (after,) = looks.events(conn, batch_id, "BatchEssaysReady")
    same = ("id", "sequence", "generation", "data", "correlation_id")
    assert ("event_missing", batch_id, True) in found
    assert {n: after[n] for n in same} == {n: before[n] for n in same}


def test_an_event_is_not_written_again_from_other_slots(alone, lifecycle, conn, slots, batch_id):
    a_ready_batch(lifecycle, batch_id)
    drop_event(conn, batch_id, "BatchEssaysReady")
    edit_slot(conn, batch_id, "essay-000000", "text_storage_id = 'another'")

    swept(lifecycle)
    swept(lifecycle)

    assert "BatchEssaysReady" not in looks.types(conn, batch_id)
    assert "BrokenSeal" in causes(conn, slots, batch_id)["event_missing"].by_itself


# --- deadlines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("never", ["infinity", "10000-01-01", "294276-01-01", "2045-01-01"])
@pytest.mark.parametrize("class_id", [None, "class-1"])
def test_a_deadline_that_never_comes_is_a_day_from_now(
    alone, lifecycle, conn, slots, batch_id, never, class_id
):
    if class_id:
        a_batch_that_waits_for_students(lifecycle, batch_id)
    else:
        register(lifecycle, batch_id, 2)
    edit(conn, batch_id, f"deadline_at = '{never}'")

    named = causes(conn, slots, batch_id)
    found = swept(lifecycle)

    assert "deadline_never" in named
    assert found == [("deadline_never", batch_id, True)]
    left = looks.batch(conn, batch_id)["deadline_at"] - datetime.now(UTC)
    assert timedelta(hours=23) < left < timedelta(hours=25)


def test_the_longest_deadline_that_may_be_asked_for_is_none_that_never_comes(
    alone, lifecycle, batch_id
):
    register(lifecycle, batch_id, 2, deadline_s=10 * 366 * 86_400)

    assert swept(lifecycle, batch_id) == []


# --- the lock of the sweep -----------------------------------------------------------------------


@pytest.fixture
def elsewhere(database_url):
    """Another session has the lock of the sweep."""
    with psycopg.connect(database_url, autocommit=True, application_name="somebody") as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('sweep', 0))")
        yield other.info.backend_pid


def late():
    return Heartbeat(["worker@one"], datetime.now(UTC) - SWEEP_LATE * 2, 0)


def test_who_holds_the_lock_of_the_sweep_is_named(lifecycle, conn, slots, batch_id, elsewhere):
    register(lifecycle, batch_id, 1)

    named = causes(conn, slots, batch_id, late())

    cause = named["sweep_lock_held"]
    assert f"pid {elsewhere}, somebody, idle since" in cause.title
    assert cause.since is not None
    assert "sweep_lock_held" not in causes(conn, slots, batch_id)
    assert sweep(RepairContext(lifecycle, ignored)) is None


def test_a_sweep_at_work_is_no_reason(lifecycle, conn, slots, batch_id, database_url):
    register(lifecycle, batch_id, 1)

    with db.connect_once(database_url) as other:
        with db.sweep.lock(other) as ours:
            held = holder(conn)
            named = causes(conn, slots, batch_id, late())
        name = other.execute("SHOW application_name").fetchone()["application_name"]

    assert ours
    assert (held.application_name, held.sweeping) == ("els sweep", True)
    assert "sweep_lock_held" not in named
    assert name == "els"


# --- an explanation at the moment in which a batch is sealed -----------------------------------


def test_a_batch_that_is_announced_while_it_is_explained_has_a_cause(
    lifecycle, conn, slots, batch_id, monkeypatch
):
    fill(lifecycle, batch_id, 2)
    read = db.sweep.unmended

    def announced_meanwhile(*args):
        lifecycle.complete(batch_id)
        return read(*args)

    monkeypatch.setattr(db.sweep, "unmended", announced_meanwhile)

    assert list(causes(conn, slots, batch_id)) == ["being_sealed"]


def test_a_content_that_waits_for_a_batch_without_open_slots_does_not_hinder_the_sweep(
    alone, lifecycle, conn, slots, batch_id
):
    register(lifecycle, batch_id, 2)
    conn.execute("DELETE FROM essay_states WHERE batch_id = %s", [batch_id])
    leave_waiting(conn, batch_id)

    swept(lifecycle)
    swept(lifecycle)

    told = causes(conn, slots, batch_id)
    assert "SlotsInFlight" in told["pending_though_registered"].by_itself
    assert "slot_missing" in told
