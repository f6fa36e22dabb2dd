"""Each rule of the sweep finds what breaks it, mends it, and disturbs nothing else."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core import db
from core.checks import CURSOR, CheckContext, counter_wrong, slot_drift
from core.db.dead_letters import DeadLetter
from core.errors import NotSent
from core.lifecycle import Lifecycle
from core.outbox import relay
from core.repairs import RepairContext
from core.slots import CLAIM_LEASE, Slots, _keys
from core.sweep import sweep
from ops.alarms import all_rules
from tests.core import looks
from tests.core.crowd import DEADLINE_S, at_once
from tests.core.story import assign, cancel, fill, register, reject, texts, upload
from tests.factories import essay_ids, new_batch

TABLES = (
    "batch_essay_trackers, essay_states, batch_pending_content, excess_content, idempotency_keys,"
    " event_outbox, dead_letters, repairs, unmended"
)
PENDING_ALARM = timedelta(minutes=5)
RULES = all_rules(PENDING_ALARM.total_seconds())
BY_CODE = {rule.code: rule for rule in RULES}
CODES = list(BY_CODE)
MENDED = [rule.code for rule in RULES if rule.repair]
ALARMS = [rule.code for rule in RULES if not rule.repair]
CROWD = 10_000
MANY = 100_000


@pytest.fixture
def alone(conn, slots):
    """No other batch is there, so that a sweep of all meets only this test's."""
    conn.execute(f"TRUNCATE {TABLES}")


@pytest.fixture
def crowd(alone, conn):
    """Give a way to add many healthy open batches of one slot each, set-based."""

    def gather(count):
        conn.execute(
            "INSERT INTO batch_essay_trackers (batch_id, status, user_id, course_code,"
            " correlation_id, expected_count, available_slots, essay_ids_sha256, on_deadline,"
            " deadline_at) SELECT 'crowd-' || n, 'awaiting_content_validation', 'teacher-1',"
            " 'ENG5', gen_random_uuid(), 1, 1, '', 'fail', now() + interval '1 day'"
            " FROM generate_series(1, %s) n",
            [count],
        )
        conn.execute(
            "INSERT INTO essay_states (batch_id, essay_id, current_status)"
            " SELECT batch_id, 'essay-1', 'awaiting_content' FROM batch_essay_trackers"
        )

    yield gather
    conn.execute(f"TRUNCATE {TABLES}")
    conn.execute(f"ANALYZE {TABLES}")


def ignored(events):
    """Take events, as a broker."""


def away(events):
    raise NotSent("the broker is away", 0)


def refusing(*batches):
    """Make a broker that takes no events of these batches."""
    return lambda events: away(events) if events[0]["subject"] in batches else None


def swept(lifecycle, batch_id=None, send=ignored, **how):
    """Sweep; return rule, batch and whether it was mended, of each finding."""
    found = sweep(RepairContext(lifecycle, send), batch_id, RULES, **how)
    assert found is not None, "another sweep is at work"
    return [(each.rule, each.finding.batch_id, each.mended) for each in found]


def noted(conn, batch_id):
    """The repairs that are written down for a batch."""
    query = "SELECT rule FROM repairs WHERE batch_id = %s ORDER BY id"
    return [row["rule"] for row in conn.execute(query, [batch_id])]


def leave_waiting(conn, batch_id, text="text-by-hand"):
    """Write a waiting content by hand, although the batch may be registered."""
    conn.execute(
        "INSERT INTO batch_pending_content (batch_id, kind, essay_file_id, text_storage_id,"
        " original_file_name) VALUES (%s, 'content', %s, %s, 'a.txt')",
        [batch_id, f"file-{text}", text],
    )


def pass_deadline(conn, batch_id):
    conn.execute(
        "UPDATE batch_essay_trackers SET deadline_at = now() - interval '1 second'"
        " WHERE batch_id = %s",
        [batch_id],
    )


def age_events(conn, batch_id, seconds=60):
    conn.execute(
        "UPDATE event_outbox SET created_at = created_at - make_interval(secs => %s)"
        " WHERE batch_id = %s",
        [seconds, batch_id],
    )


def age_claims(valkey, batch_id, by=CLAIM_LEASE + timedelta(seconds=2)):
    key = f"batch:{{{batch_id}}}:claims"
    for essay_id in valkey.zrange(key, 0, -1):
        valkey.zincrby(key, -by.total_seconds() * 1000, essay_id)


def edit(conn, batch_id, assignments):
    """Edit the row of a batch by hand."""
    query = f"UPDATE batch_essay_trackers SET {assignments} WHERE batch_id = %s"
    assert conn.execute(query, [batch_id]).rowcount == 1


def edit_slot(conn, batch_id, essay_id, assignments):
    """Edit a slot by hand."""
    query = f"UPDATE essay_states SET {assignments} WHERE batch_id = %s AND essay_id = %s"
    assert conn.execute(query, [batch_id, essay_id]).rowcount == 1


def drop_event(conn, batch_id, event_type):
    query = "DELETE FROM event_outbox WHERE batch_id = %s AND type = %s"
    assert conn.execute(query, [batch_id, event_type]).rowcount == 1


def free_key(batch_id):
    return f"batch:{{{batch_id}}}:available_slots"


# --- how each rule is broken ---------------------------------------------------------------------


def break_pending_though_registered(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    leave_waiting(conn, batch_id)


def break_counter_wrong(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    conn.execute(
        "UPDATE batch_essay_trackers SET available_slots = 2 WHERE batch_id = %s", [batch_id]
    )


def break_full_not_announced(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 3)


def break_slot_drift(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    lifecycle.slots.forget([batch_id])


def break_deadline_passed(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    pass_deadline(conn, batch_id)


def break_event_not_delivered(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 3)
    lifecycle.complete(batch_id)
    age_events(conn, batch_id)


def break_dead_letter_waiting(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    letter = DeadLetter(
        "els.assign_content", f"task-{batch_id}", batch_id, "{}", "VALIDATION_ERROR", "no name"
    )
    db.dead_letters.add(conn, letter)


def break_pending_not_registered(lifecycle, conn, batch_id):
    assign(lifecycle, batch_id)
    conn.execute(
        "UPDATE batch_pending_content SET received_at = now() - %s WHERE batch_id = %s",
        [PENDING_ALARM + timedelta(minutes=1), batch_id],
    )


def break_status_wrong(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 3)
    lifecycle.complete(batch_id)
    edit(conn, batch_id, "status = 'awaiting_content_validation', ready_at = NULL")


def break_slot_missing(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    taken = assign(lifecycle, batch_id)["essay_id"]
    conn.execute(
        "DELETE FROM essay_states WHERE batch_id = %s AND essay_id = %s", [batch_id, taken]
    )


def break_slot_extra(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    conn.execute(
        "INSERT INTO essay_states (batch_id, essay_id, current_status, validation_error_code)"
        " VALUES (%s, 'essay-extra', 'content_ingestion_failed', 'EMPTY_CONTENT')",
        [batch_id],
    )


def break_slot_cancelled(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    taken = assign(lifecycle, batch_id)["essay_id"]
    edit_slot(conn, batch_id, taken, "current_status = 'cancelled'")


def break_deadline_never(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    edit(conn, batch_id, "deadline_at = 'infinity'")


def break_event_missing(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 3)
    lifecycle.complete(batch_id)
    relay(lifecycle.pool, [batch_id], ignored)
    drop_event(conn, batch_id, "BatchEssaysReady")


def break_rule(code, lifecycle, conn, batch_id):
    globals()[f"break_{code}"](lifecycle, conn, batch_id)


# --- every rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scoped", [True, False], ids=["one batch", "all batches"])
@pytest.mark.parametrize("code", CODES)
def test_a_rule_finds_its_batch_and_no_other_rule_does(
    alone, lifecycle, conn, batch_id, code, scoped
):
    break_rule(code, lifecycle, conn, batch_id)
    register(lifecycle, new_batch(), 2)

    found = swept(lifecycle, batch_id if scoped else None, dry_run=True)

    assert found == [(code, batch_id, False)]


@pytest.mark.parametrize("code", MENDED)
def test_what_is_found_is_mended_once_and_written_down(alone, lifecycle, conn, batch_id, code):
    break_rule(code, lifecycle, conn, batch_id)

    first, second = swept(lifecycle), swept(lifecycle)

    assert first == [(code, batch_id, True)]
    assert second == []
    assert noted(conn, batch_id) == [code]
    relay(lifecycle.pool, [batch_id], ignored)
    assert looks.broken(conn, batch_id, at_rest=True, slots=lifecycle.slots) == []


@pytest.mark.parametrize("code", ALARMS)
def test_an_alarm_stays_until_a_person_acts(alone, lifecycle, conn, batch_id, code):
    break_rule(code, lifecycle, conn, batch_id)
    before = looks.everything(conn, batch_id)

    first, second = swept(lifecycle), swept(lifecycle)

    assert first == second == [(code, batch_id, False)]
    assert noted(conn, batch_id) == []
    assert looks.everything(conn, batch_id) == before


@pytest.mark.parametrize("code", CODES)
def test_a_dry_run_mends_nothing(alone, lifecycle, conn, slots, batch_id, code):
    break_rule(code, lifecycle, conn, batch_id)
    before = looks.everything(conn, batch_id), slots.free(batch_id)

    first, second = swept(lifecycle, dry_run=True), swept(lifecycle, dry_run=True)

    assert first == second == [(code, batch_id, False)]
    assert (looks.everything(conn, batch_id), slots.free(batch_id)) == before
    assert noted(conn, batch_id) == []


def test_a_sweep_after_a_dry_run_mends_what_that_found(alone, lifecycle, conn, monkeypatch):
    monkeypatch.setattr("core.checks.DRIFT_PAGE", 2)
    batches = sorted(new_batch() for _ in range(4))
    for batch_id in batches:
        break_slot_drift(lifecycle, conn, batch_id)
    swept(lifecycle)

    looked, mended = swept(lifecycle, dry_run=True), swept(lifecycle)

    assert [batch_id for _, batch_id, _ in looked] == batches[2:]
    assert [batch_id for _, batch_id, _ in mended] == batches[2:]


@pytest.mark.parametrize("code", CODES)
def test_a_sweep_of_one_batch_looks_at_no_other(alone, lifecycle, conn, batch_id, code):
    other = new_batch()
    break_rule(code, lifecycle, conn, other)
    register(lifecycle, batch_id, 2)
    before = looks.everything(conn, other)

    found = swept(lifecycle, batch_id)

    assert found == []
    assert looks.everything(conn, other) == before


def test_one_sweep_mends_what_waits_and_announces_the_batch_that_it_fills(
    alone, lifecycle, conn, batch_id
):
    register(lifecycle, batch_id, 1)
    leave_waiting(conn, batch_id)

    found = swept(lifecycle, batch_id)

    assert [code for code, _, _ in found] == ["pending_though_registered", "full_not_announced"]
    assert looks.batch(conn, batch_id)["status"] == "ready_for_pipeline_execution"


# --- pending though registered -------------------------------------------------------------------


def test_a_waiting_content_is_drained_into_a_slot(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 2)
    leave_waiting(conn, batch_id)

    swept(lifecycle, batch_id)

    assert set(looks.placed(conn, batch_id)) == {"text-by-hand"}
    assert looks.waiting(conn, batch_id) == []


def test_a_waiting_content_that_finds_the_batch_full_is_excess(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 2)
    lifecycle.complete(batch_id)
    leave_waiting(conn, batch_id)

    swept(lifecycle, batch_id)

    assert looks.excess(conn, batch_id) == ["text-by-hand"]
    assert looks.types(conn, batch_id).count("ExcessContentProvisioned") == 1
    assert looks.waiting(conn, batch_id) == []


def test_a_waiting_content_of_a_cancelled_batch_is_closed(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 2)
    cancel(lifecycle, batch_id)
    leave_waiting(conn, batch_id)

    swept(lifecycle, batch_id)

    (kept,) = looks.rows(conn, "excess_content", batch_id)
    assert (kept["text_storage_id"], kept["reason"]) == ("text-by-hand", "BATCH_CANCELLED")


def test_a_waiting_content_that_has_a_slot_already_keeps_that(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    held = assign(lifecycle, batch_id, "text-by-hand")
    leave_waiting(conn, batch_id)

    swept(lifecycle, batch_id)

    assert looks.placed(conn, batch_id) == {"text-by-hand": held["essay_id"]}
    assert looks.waiting(conn, batch_id) == []
    assert looks.batch(conn, batch_id)["available_slots"] == 2
    assert looks.broken(conn, batch_id) == []


# --- slot drift ----------------------------------------------------------------------------------


def flush(slots, batch_id):
    slots.client.flushdb()


def offer_a_stale_slot(slots, batch_id):
    taken = set(essay_ids(4)) - slots.free(batch_id)
    slots.client.sadd(free_key(batch_id), *taken)


def offer_a_ghost(slots, batch_id):
    slots.client.sadd(free_key(batch_id), "essay-ghost")


def offer_a_ghost_instead(slots, batch_id):
    slots.client.spop(free_key(batch_id))
    slots.client.sadd(free_key(batch_id), "essay-ghost")


def lose_one(slots, batch_id):
    slots.client.spop(free_key(batch_id))


def die_after_a_claim(slots, batch_id):
    slots.claim({batch_id: ["text-of-the-dead"]})[batch_id]
    age_claims(slots.client, batch_id)


def give_keys_another_type(slots, batch_id):
    for key in _keys(batch_id):
        slots.client.set(key, "no set, no hash")


DRIFTS = [
    give_keys_another_type,
    flush,
    offer_a_stale_slot,
    offer_a_ghost,
    offer_a_ghost_instead,
    lose_one,
    die_after_a_claim,
]


@pytest.mark.parametrize("drift", DRIFTS)
def test_free_slots_are_rebuilt_from_postgres(alone, lifecycle, slots, conn, batch_id, drift):
    register(lifecycle, batch_id, 4)
    assign(lifecycle, batch_id)
    drift(slots, batch_id)

    found = swept(lifecycle, batch_id)

    assert found == [("slot_drift", batch_id, True)]
    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)
    assert swept(lifecycle, batch_id) == []


@pytest.mark.parametrize("drift", [d for d in DRIFTS if d is not offer_a_ghost_instead])
def test_drift_is_found_among_all(alone, lifecycle, slots, batch_id, drift):
    register(lifecycle, batch_id, 4)
    assign(lifecycle, batch_id)
    drift(slots, batch_id)

    assert swept(lifecycle) == [("slot_drift", batch_id, True)]


def test_keys_of_another_type_hide_no_other_batch(alone, lifecycle, slots, batch_id):
    other = new_batch()
    for each, drift in ((batch_id, lose_one), (other, give_keys_another_type)):
        register(lifecycle, each, 4)
        drift(slots, each)

    assert {batch for _, batch, mended in swept(lifecycle) if mended} == {batch_id, other}


@pytest.mark.parametrize("number", range(3))
def test_a_key_of_another_type_costs_no_content_its_slot(lifecycle, slots, batch_id, number):
    register(lifecycle, batch_id, 2)
    slots.client.delete(_keys(batch_id)[number])
    slots.client.lpush(_keys(batch_id)[number], "a list")

    placed = [assign(lifecycle, batch_id, text)["outcome"] for text in texts(3)]

    assert placed == ["assigned", "assigned", "excess"]


def test_a_key_that_another_process_has_rebuilt_stays(lifecycle, slots, batch_id):
    register(lifecycle, batch_id, 2)
    slots.claim({batch_id: ["text-1"]})

    slots._drop_other_types([batch_id])

    assert len(slots.free(batch_id)) == len(slots.assignments(batch_id)) == 1


def test_a_ghost_that_is_not_noticed_costs_no_content_its_slot(alone, lifecycle, slots, conn):
    batch_id = new_batch()
    register(lifecycle, batch_id, 4)
    offer_a_ghost_instead(slots, batch_id)
    swept(lifecycle)

    for text in texts(4):
        assign(lifecycle, batch_id, text)

    assert set(looks.placed(conn, batch_id)) == set(texts(4))
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_a_claim_that_may_still_commit_is_left_alone(alone, lifecycle, slots, batch_id):
    register(lifecycle, batch_id, 3)
    slots.claim({batch_id: ["text-on-its-way"]})[batch_id]

    found = swept(lifecycle)

    assert found == []
    assert len(slots.free(batch_id)) == 2


def test_the_slot_of_a_dead_claim_goes_to_the_next_content(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 1)
    die_after_a_claim(slots, batch_id)

    swept(lifecycle, batch_id)

    assert assign(lifecycle, batch_id, "text-of-the-living")["outcome"] == "assigned"
    assert assign(lifecycle, batch_id, "text-of-the-dead")["outcome"] == "excess"
    assert looks.broken(conn, batch_id) == []


def test_a_closed_batch_does_not_drift(alone, lifecycle, slots, batch_id):
    register(lifecycle, batch_id, 2)
    cancel(lifecycle, batch_id)
    slots.client.flushdb()

    assert swept(lifecycle) == []


def test_the_look_for_drift_goes_on_where_it_ended_and_begins_anew(
    alone, lifecycle, slots, conn, monkeypatch
):
    monkeypatch.setattr("core.checks.DRIFT_PAGE", 3)
    batches = sorted(new_batch() for _ in range(7))
    for batch_id in batches:
        register(lifecycle, batch_id, 1)
    swept(lifecycle)
    slots.forget(batches)  # the first three have been looked at already

    rounds = [[batch_id for _, batch_id, _ in swept(lifecycle)] for _ in range(4)]

    assert rounds == [batches[3:6], batches[6:], batches[:3], []]


def test_a_look_takes_no_more_than_its_limit_and_skips_none(alone, lifecycle, slots, conn):
    batches = sorted(new_batch() for _ in range(5))
    for batch_id in batches:
        break_slot_drift(lifecycle, conn, batch_id)
    look = CheckContext(conn, slots, limit=2, moves_on=True)

    rounds = [[finding.batch_id for finding in slot_drift(look)] for _ in range(4)]

    assert rounds == [batches[:2], batches[2:4], batches[4:], batches[:2]]


def test_a_look_that_does_not_move_on_leaves_the_sweep_where_it_is(alone, slots, conn, lifecycle):
    break_slot_drift(lifecycle, conn, new_batch())

    slot_drift(CheckContext(conn, slots))

    assert slots.client.get(CURSOR) is None


# --- a counter that is wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contents", "counter"),
    [
        (3, "available_slots = 1, full_at = NULL"),
        (1, "available_slots = 3"),
        (1, "available_slots = 0, full_at = now()"),
    ],
    ids=["full in truth", "too high", "full by mistake"],
)
def test_a_batch_with_a_wrong_counter_is_counted_anew_and_goes_on(
    alone, lifecycle, conn, slots, batch_id, contents, counter
):
    register(lifecycle, batch_id, 3)
    upload(lifecycle, batch_id, texts(contents))
    conn.execute(f"UPDATE batch_essay_trackers SET {counter} WHERE batch_id = %s", [batch_id])

    swept(lifecycle)
    upload(lifecycle, batch_id, texts(3))
    swept(lifecycle)

    assert looks.types(conn, batch_id).count("BatchEssaysReady") == 1
    assert looks.broken(conn, batch_id, slots=slots) == []


@pytest.mark.parametrize("round_", range(3))
def test_a_count_amid_contents_is_exact(alone, lifecycle, conn, slots, batch_id, round_):
    register(lifecycle, batch_id, 12)
    conn.execute(
        "UPDATE batch_essay_trackers SET available_slots = 11 WHERE batch_id = %s", [batch_id]
    )
    steps = [lambda t=t: assign(lifecycle, batch_id, t) for t in texts(8)]
    steps[round_ * 2 : round_ * 2] = [
        lambda: sweep(RepairContext(lifecycle, ignored), batch_id)
    ] * 2

    at_once(*steps)
    swept(lifecycle, batch_id)

    assert looks.broken(conn, batch_id, slots=slots) == []


def test_the_count_goes_on_where_it_ended_and_begins_anew(
    alone, lifecycle, conn, slots, monkeypatch
):
    monkeypatch.setattr("core.checks.COUNTED_SLOTS", 5)
    batches = sorted(new_batch() for _ in range(5))
    for batch_id in batches:
        break_counter_wrong(lifecycle, conn, batch_id)
    looks_on = (CheckContext(conn, slots, moves_on=True) for _ in range(5))

    rounds = [[finding.batch_id for finding in counter_wrong(look)] for look in looks_on]

    assert rounds == [batches[:2], batches[2:4], batches[4:], [], batches[:2]]


# --- deadlines and events ------------------------------------------------------------------------


def test_a_passed_deadline_times_the_batch_out(lifecycle, conn, batch_id):
    break_deadline_passed(lifecycle, conn, batch_id)

    swept(lifecycle, batch_id)

    assert looks.batch(conn, batch_id)["status"] == "timed_out"
    assert looks.types(conn, batch_id) == ["BatchReadinessTimeout"]


def test_an_event_is_given_some_time_to_be_delivered(lifecycle, batch_id):
    fill(lifecycle, batch_id, 1)
    lifecycle.complete(batch_id)

    assert swept(lifecycle, batch_id) == []


def test_an_undelivered_event_is_relayed(lifecycle, conn, batch_id):
    break_event_not_delivered(lifecycle, conn, batch_id)
    taken = []

    swept(lifecycle, batch_id, taken.extend)

    assert [event["sequence"] for event in taken] == [1, 2]
    assert all(row["published_at"] for row in looks.events(conn, batch_id))


def test_a_broker_that_is_away_is_noted_on_the_event_and_is_no_repair(
    alone, lifecycle, conn, batch_id
):
    break_event_not_delivered(lifecycle, conn, batch_id)

    found = [swept(lifecycle, send=away), swept(lifecycle, send=away)]

    assert found == [[("event_not_delivered", batch_id, False)]] * 2
    assert noted(conn, batch_id) == []
    first, _ = looks.events(conn, batch_id)
    assert (first["attempts"], first["last_error"]) == (2, "the broker is away")
    (finding,) = BY_CODE["event_not_delivered"].check(CheckContext(conn, lifecycle.slots))
    assert finding.detail == "2 events; the broker is away"


def test_an_event_that_cannot_be_sent_hinders_no_other_batch(alone, lifecycle, conn):
    stuck, fine = new_batch(), new_batch()
    for batch_id in (stuck, fine):
        break_event_not_delivered(lifecycle, conn, batch_id)

    found = swept(lifecycle, send=refusing(stuck))

    assert set(found) == {
        ("event_not_delivered", stuck, False),
        ("event_not_delivered", fine, True),
    }
    assert all(row["published_at"] for row in looks.events(conn, fine))


# --- what cannot be mended -----------------------------------------------------------------------


def test_a_batch_that_cannot_be_timed_out_hinders_no_other(alone, lifecycle, conn):
    crooked, fine, full = new_batch(), new_batch(), new_batch()
    for batch_id in (crooked, fine):
        break_deadline_passed(lifecycle, conn, batch_id)
    break_full_not_announced(lifecycle, conn, full)
    conn.execute(  # the place that the event of timing out would have
        "INSERT INTO event_outbox (id, batch_id, type, generation, sequence, correlation_id, data,"
        " published_at) VALUES (gen_random_uuid(), %s, 'ByHand', '1', 1,"
        " gen_random_uuid(), '{}', now())",
        [crooked],
    )

    found = swept(lifecycle)

    assert set(found) == {
        ("full_not_announced", full, True),
        ("deadline_passed", crooked, False),
        ("deadline_passed", fine, True),
    }
    assert noted(conn, crooked) == []
    assert looks.batch(conn, crooked)["status"] == "awaiting_content_validation"
    assert looks.batch(conn, fine)["status"] == "timed_out"


def test_a_page_of_batches_that_cannot_be_mended_hides_no_other(
    alone, lifecycle, conn, monkeypatch
):
    monkeypatch.setattr("core.sweep.PAGE", 3)
    batches = [new_batch() for _ in range(8)]
    for batch_id in batches:
        break_event_not_delivered(lifecycle, conn, batch_id)
    fine = batches[-1]

    rounds = [swept(lifecycle, send=refusing(*batches[:-1])) for _ in range(4)]

    seen = [{batch_id for _, batch_id, _ in found} for found in rounds]
    assert seen == [
        {*batches[:3]},
        {*batches[3:6]},
        {*batches[6:], batches[0]},
        {*batches[1:4]},
    ]
    assert ("event_not_delivered", fine, True) in rounds[2]


def test_without_redis_the_rules_that_do_not_need_it_go_on(alone, pool, lifecycle, conn, closed):
    late, undelivered = new_batch(), new_batch()
    break_deadline_passed(lifecycle, conn, late)
    break_event_not_delivered(lifecycle, conn, undelivered)

    found = swept(Lifecycle(pool, Slots(closed)))

    assert ("event_not_delivered", undelivered, True) in found
    assert looks.batch(conn, late)["status"] == "timed_out"


@pytest.fixture
def closed():
    """A client of a Redis that is not there."""
    client = redis.Redis(port=9, decode_responses=True, retry=Retry(NoBackoff(), 0))
    yield client
    client.close()


# --- sweeps at once ------------------------------------------------------------------------------


def test_of_two_sweeps_at_once_one_gives_way(alone, lifecycle, conn, batch_id):
    break_event_not_delivered(lifecycle, conn, batch_id)
    began, may_go_on = Event(), Event()

    def slow(event):
        began.set()
        assert may_go_on.wait(DEADLINE_S)

    with ThreadPoolExecutor(1) as other:
        first = other.submit(swept, lifecycle, None, slow)
        assert began.wait(DEADLINE_S)
        second = sweep(RepairContext(lifecycle, ignored))
        may_go_on.set()

        assert second is None
        assert first.result(DEADLINE_S) == [("event_not_delivered", batch_id, True)]
    assert swept(lifecycle) == []


def test_many_sweeps_at_once_mend_everything_once(alone, lifecycle, conn):
    broken = {code: new_batch() for code in MENDED}
    for code, batch_id in broken.items():
        break_rule(code, lifecycle, conn, batch_id)

    at_once(*[lambda: sweep(RepairContext(lifecycle, ignored))] * 5)

    assert {code: noted(conn, batch_id) for code, batch_id in broken.items()} == {
        code: [code] for code in MENDED
    }


def test_a_sweep_that_fails_lets_the_next_one_in(alone, lifecycle, conn, batch_id):
    break_event_not_delivered(lifecycle, conn, batch_id)

    def wrong(event):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        swept(lifecycle, send=wrong)

    assert swept(lifecycle) == [("event_not_delivered", batch_id, True)]


@pytest.mark.parametrize("round_", range(3))
def test_sweeps_amid_contents_leave_every_one_in_its_place(
    lifecycle, slots, conn, batch_id, round_
):
    register(lifecycle, batch_id, 12)
    leave_waiting(conn, batch_id)
    steps = [lambda t=t: assign(lifecycle, batch_id, t) for t in texts(6)]
    steps += [lambda: upload(lifecycle, batch_id, texts(4, start=6))]
    steps += [lambda: reject(lifecycle, batch_id)]
    steps[round_:round_] = [lambda: sweep(RepairContext(lifecycle, ignored), batch_id)] * 3

    at_once(*steps)
    swept(lifecycle, batch_id)

    assert set(looks.placed(conn, batch_id)) == {"text-by-hand", *texts(10)}
    relay(lifecycle.pool, [batch_id], ignored)
    assert looks.broken(conn, batch_id, at_rest=True, slots=slots) == []
    assert looks.types(conn, batch_id).count("BatchEssaysReady") == 1


# --- many batches --------------------------------------------------------------------------------


def test_ten_thousand_healthy_batches_hide_no_broken_one(crowd, lifecycle, conn, valkey):
    crowd(CROWD)
    with valkey.pipeline(transaction=False) as pipe:
        for number in range(1, CROWD + 1):
            pipe.sadd(free_key(f"crowd-{number}"), "essay-1")
        pipe.execute()
    broken = {code: f"the-last-{code}" for code in CODES}
    for code, batch_id in broken.items():
        break_rule(code, lifecycle, conn, batch_id)

    first = swept(lifecycle)
    later = [found for _ in range(CROWD // 2_000) for found in swept(lifecycle)]

    wanted = {(code, batch_id, code in MENDED) for code, batch_id in broken.items()}
    paged = {"slot_drift"} | {rule.code for rule in RULES if rule.paged} - {"status_wrong"}
    assert set(first) == {each for each in wanted if each[0] not in paged}
    assert set(later) == {each for each in wanted if each[0] in {*paged, *ALARMS}}


@pytest.fixture
def many(crowd, conn):
    """Many open batches; delivered events, handled letters, contents that wait for others."""
    crowd(MANY)
    conn.execute(
        "INSERT INTO event_outbox (id, batch_id, type, generation, sequence, correlation_id, data,"
        " published_at) SELECT gen_random_uuid(), batch_id, 'EssaySlotAssigned', '1', 1,"
        " correlation_id, '{}', now() FROM batch_essay_trackers LIMIT 20000"
    )
    conn.execute(
        "INSERT INTO dead_letters (task, task_id, batch_id, body, code, message, replayed_at)"
        " SELECT 'els.assign_content', batch_id, batch_id, '{}', 'UNKNOWN_BATCH', '', now()"
        " FROM batch_essay_trackers LIMIT 20000"
    )
    conn.execute(
        "INSERT INTO batch_pending_content (batch_id, kind, essay_file_id, text_storage_id)"
        " SELECT format('nobody-%s', n), 'content', 'file-1', 'text-1'"
        " FROM generate_series(1, 1000) n"
    )
    conn.execute(f"ANALYZE {TABLES}")


class Planned:
    """A connection that keeps the plan of each statement."""

    def __init__(self, conn):
        self.conn, self.plans = conn, []

    def execute(self, query, wanted=None):
        rows = self.conn.execute(f"EXPLAIN {query.strip()}", wanted)
        self.plans.append("\n".join(row["QUERY PLAN"] for row in rows))
        return self.conn.execute(query, wanted)


@pytest.mark.parametrize("code", [rule.code for rule in RULES if rule.paged])
def test_a_rule_that_looks_at_pages_reads_no_table_through(crowd, conn, slots, code):
    crowd(CROWD)
    conn.execute(f"ANALYZE {TABLES}")
    planned = Planned(conn)

    BY_CODE[code].check(CheckContext(planned, slots))

    big = ("batch_essay_trackers", "essay_states", "event_outbox")
    assert planned.plans
    assert [p for p in planned.plans if any(f"Seq Scan on {t}" in p for t in big)] == []


def test_no_rule_reads_every_batch(many, conn, slots):
    of_all = [rule for rule in RULES if not rule.paged and rule.code != "slot_drift"]
    planned = Planned(conn)

    for rule in of_all:
        rule.check(CheckContext(planned, slots))

    big = ("batch_essay_trackers", "event_outbox", "dead_letters")
    assert len(planned.plans) == len(of_all)
    assert [p for p in planned.plans if any(f"Seq Scan on {t}" in p for t in big)] == []
