"""Why a batch is not ready: the right reason, first, in words that say what happens next."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core import db
from core.db.dead_letters import DeadLetter
from core.errors import NotSent
from core.outbox import relay
from core.repairs import RepairContext
from core.signs import heartbeat
from core.signs.heartbeat import FORGOTTEN, FRESH
from core.signs.pauses import Outage, Pause
from core.slots import CLAIM_LEASE, Slots
from core.sweep import sweep
from ops.alarms import all_rules
from ops.explain.causes import BROKEN_RULES, CAUSES, PLAIN
from ops.explain.explanation import explain
from ops.explain.service_causes import BACKLOG
from ops.heartbeat import NO_HEARTBEAT, SWEEP_LATE, Heartbeat, read_heartbeat
from ops.queries import dead_letters, outbox
from ops.receivers import NO_RECEIVERS, Receivers
from tests.core import looks
from tests.core.story import assign, cancel, fill, register, reject, texts, upload
from tests.ops.explain import test_service_causes
from tests.ops.explain.receivers import event_queue

WAITING = "waiting_for_contents"


def alive():
    """The signs of life of a service that runs."""
    return Heartbeat(["worker@one"], datetime.now(UTC), 0)


def closed_port():
    return redis.Redis(port=9, decode_responses=True, retry=Retry(NoBackoff(), 0))


class Scene:
    """One batch on the stores of the test, and what was seen of the service."""

    def __init__(self, lifecycle, conn, batch_id):
        self.lifecycle, self.conn, self.batch_id = lifecycle, conn, batch_id
        self.slots, self.pulse = lifecycle.slots, alive()
        self.valkey = lifecycle.slots.client
        self.receivers = NO_RECEIVERS

    def key(self, name):
        return f"batch:{{{self.batch_id}}}:{name}"

    def set(self, assignments, table="batch_essay_trackers"):
        """Edit the rows of the batch by hand."""
        query = f"UPDATE {table} SET {assignments} WHERE batch_id = %s"
        assert self.conn.execute(query, [self.batch_id]).rowcount > 0

    def register(self, essays=3, **fields):
        register(self.lifecycle, self.batch_id, essays, **fields)

    def assign(self, text="text-1"):
        return assign(self.lifecycle, self.batch_id, text)

    def reject(self, file="file-1"):
        return reject(self.lifecycle, self.batch_id, file)

    def fill(self, essays=2, **fields):
        fill(self.lifecycle, self.batch_id, essays, **fields)

    def announce(self):
        self.lifecycle.complete(self.batch_id)

    def make_ready(self):
        self.fill()
        self.announce()
        self.relay()

    def relay(self, send=lambda events: None):
        relay(self.lifecycle.pool, [self.batch_id], send)

    def sweep(self):
        sweep(RepairContext(self.lifecycle, lambda events: None), self.batch_id)

    def park(self, code="VALIDATION_ERROR", task="els.assign_content"):
        letter = DeadLetter(task, f"{self.batch_id}-{code}", self.batch_id, "{}", code, "why")
        return db.dead_letters.add(self.conn, letter)

    def explain(self):
        return explain(self.conn, self.slots, self.batch_id, self.pulse, self.receivers)

    def codes(self):
        return [cause.code for cause in self.explain().causes]


@pytest.fixture
def scene(lifecycle, conn, batch_id):
    return Scene(lifecycle, conn, batch_id)


# --- causes, each made for real ------------------------------------------------------------------


def nothing_has_come(s):
    s.register()


def some_contents_have_come(s):
    s.register()
    s.assign()


def redis_was_flushed(s):
    s.register()
    s.valkey.flushdb()
    s.pulse = read_heartbeat(s.valkey, 0)


def a_stale_slot_is_offered(s):
    s.register()
    taken = s.assign()["essay_id"]
    s.valkey.sadd(s.key("available_slots"), taken)


def a_ghost_is_offered(s):
    s.register()
    s.valkey.sadd(s.key("available_slots"), "essay-ghost")


def a_worker_died_after_its_claim(s):
    s.register()
    s.slots.claim({s.batch_id: ["text-1"]})
    (essay,) = s.valkey.zrange(s.key("claims"), 0, -1)
    s.valkey.zincrby(s.key("claims"), -(CLAIM_LEASE.total_seconds() + 2) * 1000, essay)


def a_content_is_on_its_way(s):
    s.register()
    s.slots.claim({s.batch_id: ["text-1"]})


def a_full_batch_is_not_announced(s):
    s.fill()


def no_worker_seals_it(s):
    s.fill()
    s.pulse = replace(alive(), workers=[])


def a_row_waits_by_hand(s):
    s.register()
    s.conn.execute(
        "INSERT INTO batch_pending_content (batch_id, kind, essay_file_id, text_storage_id)"
        " VALUES (%s, 'content', 'file-1', 'text-1')",
        [s.batch_id],
    )


def the_deadline_has_passed(s):
    s.register()
    s.set("deadline_at = now() - interval '1 second'")


def the_deadline_is_near(s):
    s.register()
    s.set("deadline_at = now() + interval '5 minutes'")


def the_deadline_of_the_students_is_near(s):
    s.fill(class_id="class-1")
    s.announce()
    s.set("deadline_at = now() + interval '5 minutes'")


def students_are_not_confirmed(s):
    s.fill(class_id="class-1")
    s.announce()


def the_students_are_late(s):
    students_are_not_confirmed(s)
    s.set("deadline_at = now() - interval '1 second'")


def the_broker_refuses_events(s):
    s.fill()
    s.announce()

    def away(events):
        raise NotSent("the broker is away", 0)

    s.relay(away)
    s.set("created_at = created_at - interval '1 minute'", "event_outbox")


def nobody_relays(s):
    s.fill()
    s.announce()
    s.set("created_at = created_at - interval '1 minute'", "event_outbox")
    s.pulse = replace(alive(), workers=[])


def a_dead_letter_waits(s):
    s.register()
    s.park()


def two_dead_letters_wait(s):
    s.register()
    s.park("VALIDATION_ERROR")
    s.park("RETRIES_EXHAUSTED")


def a_ready_batch_has_a_dead_letter(s):
    s.make_ready()
    s.park("WRONG_BATCH_STATE")


def a_handled_dead_letter_is_no_reason(s):
    s.register()
    dead_letters.mark_replayed(s.conn, s.park("VALIDATION_ERROR"))
    dead_letters.mark_discarded(s.conn, s.park("RETRIES_EXHAUSTED"))


def nobody_has_registered_it(s):
    s.assign()


def its_registration_is_a_dead_letter(s):
    s.assign()
    s.park(task="els.register_batch")


def only_a_dead_letter_names_it(s):
    s.park(task="els.register_batch")


def nobody_has_heard_of_it(s):
    pass


def its_registration_waits_in_the_queue(s):
    s.assign()
    s.pulse = replace(alive(), workers=[], waiting=1)


def the_counter_is_too_high(s):
    s.register()
    s.assign()
    s.set("available_slots = 3")


def the_counter_says_full(s):
    s.register()
    s.assign()
    s.set("available_slots = 0, full_at = now()")


def its_status_was_set_back(s):
    s.make_ready()
    s.set("status = 'awaiting_content_validation', ready_at = NULL")


def a_slot_was_deleted(s):
    s.register()
    taken = s.assign()["essay_id"]
    s.conn.execute(
        "DELETE FROM essay_states WHERE batch_id = %s AND essay_id = %s", [s.batch_id, taken]
    )


def a_slot_was_inserted(s):
    s.register()
    s.conn.execute(
        "INSERT INTO essay_states (batch_id, essay_id, current_status, validation_error_code)"
        " VALUES (%s, 'essay-extra', 'content_ingestion_failed', 'EMPTY_CONTENT')",
        [s.batch_id],
    )


def its_slots_were_cancelled(s):
    s.fill()
    s.set("current_status = 'cancelled'", "essay_states")


def its_deadline_never_comes(s):
    s.register()
    s.set("deadline_at = 'infinity'")


def its_readiness_event_was_deleted(s):
    s.make_ready()
    s.conn.execute(
        "DELETE FROM event_outbox WHERE batch_id = %s AND type = 'BatchEssaysReady'", [s.batch_id]
    )


def no_worker_runs(s):
    s.register()
    s.pulse = replace(alive(), workers=[])


def servers_refuse(s):
    s.register()
    since = datetime.now(UTC)
    outages = [Outage("postgres", "read-only", "25006"), Outage("broker", "OOM")]
    pauses = [Pause(f"host:{n}", outages[n % 2], since - timedelta(hours=4 - n)) for n in range(4)]
    s.pulse = replace(alive(), pauses=pauses)


def beat_does_not_run(s):
    s.register()
    s.pulse = replace(alive(), swept_at=datetime.now(UTC) - SWEEP_LATE - timedelta(seconds=5))


def the_sweep_has_never_run(s):
    s.register()
    s.pulse = replace(alive(), swept_at=None)


def nothing_runs(s):
    s.register()
    s.pulse = NO_HEARTBEAT


def much_is_waiting(s):
    s.register()
    s.pulse = replace(alive(), waiting=BACKLOG + 1)


def some_is_waiting(s):
    s.register()
    s.pulse = replace(alive(), waiting=BACKLOG)


def the_broker_does_not_answer(s):
    s.register()
    s.pulse = replace(alive(), waiting=None)


def redis_is_down(s):
    s.register()
    s.slots, s.pulse = Slots(closed_port()), NO_HEARTBEAT


def redis_is_down_at_the_deadline(s):
    the_deadline_has_passed(s)
    s.slots, s.pulse = Slots(closed_port()), NO_HEARTBEAT


def every_file_was_rejected(s):
    s.register(2)
    s.reject("file-1")
    s.reject("file-2")
    s.announce()


def it_was_timed_out(s):
    the_deadline_has_passed(s)
    s.lifecycle.time_out(s.batch_id)


def it_was_cancelled(s):
    s.register()
    cancel(s.lifecycle, s.batch_id)


def it_ended_long_ago_and_nothing_runs(s):
    it_was_cancelled(s)
    s.relay()
    s.pulse = NO_HEARTBEAT


def it_is_ready(s):
    s.make_ready()


def it_is_ready_and_nothing_runs(s):
    s.make_ready()
    s.pulse = NO_HEARTBEAT


def nobody_takes_its_events(s):
    s.make_ready()
    its_events_wait(s)


def its_events_wait(s):
    s.set("published_at = published_at - interval '2 minutes'", "event_outbox")
    head = looks.events(s.conn, s.batch_id)[0]["id"]
    s.receivers = Receivers([event_queue(messages=2, oldest=head)])


def its_students_are_late_as_nobody_takes_its_events(s):
    students_are_not_confirmed(s)
    s.relay()
    its_events_wait(s)


def its_readiness_goes_nowhere(s):
    s.make_ready()
    s.receivers = Receivers(nowhere=frozenset({"BatchEssaysReady"}))


SCENES = [
    (nothing_has_come, [WAITING]),
    (some_contents_have_come, [WAITING]),
    (redis_was_flushed, ["slot_drift", "no_worker", "beat_silent", WAITING]),
    (a_stale_slot_is_offered, ["slot_drift", WAITING]),
    (a_ghost_is_offered, ["slot_drift", WAITING]),
    (a_worker_died_after_its_claim, ["slot_drift", WAITING]),
    (a_content_is_on_its_way, ["claims_in_flight", WAITING]),
    (a_full_batch_is_not_announced, ["full_not_announced"]),
    (no_worker_seals_it, ["no_worker", "full_not_announced"]),
    (a_row_waits_by_hand, ["pending_though_registered", WAITING]),
    (the_deadline_has_passed, ["deadline_passed", WAITING]),
    (the_deadline_is_near, ["deadline_near", WAITING]),
    (the_deadline_of_the_students_is_near, ["deadline_near", "waiting_for_students"]),
    (students_are_not_confirmed, ["waiting_for_students"]),
    (the_students_are_late, ["deadline_passed", "waiting_for_students"]),
    (the_broker_refuses_events, ["event_not_delivered"]),
    (nobody_relays, ["no_worker", "event_not_delivered"]),
    (a_dead_letter_waits, ["dead_letter_waiting", WAITING]),
    (two_dead_letters_wait, ["dead_letter_waiting", WAITING]),
    (a_ready_batch_has_a_dead_letter, []),
    (a_handled_dead_letter_is_no_reason, [WAITING]),
    (nobody_has_registered_it, ["pending_not_registered"]),
    (its_registration_is_a_dead_letter, ["dead_letter_waiting", "pending_not_registered"]),
    (only_a_dead_letter_names_it, ["dead_letter_waiting", "unknown_batch"]),
    (nobody_has_heard_of_it, ["unknown_batch"]),
    (its_registration_waits_in_the_queue, ["no_worker", "pending_not_registered"]),
    (the_counter_is_too_high, ["counter_wrong", WAITING]),
    (the_counter_says_full, ["counter_wrong", "full_not_announced", WAITING]),
    (its_status_was_set_back, ["status_wrong"]),
    (a_slot_was_deleted, ["slot_missing", WAITING]),
    (a_slot_was_inserted, ["slot_extra", WAITING]),
    (its_slots_were_cancelled, ["slot_cancelled", "full_not_announced"]),
    (its_deadline_never_comes, ["deadline_never", WAITING]),
    (its_readiness_event_was_deleted, ["event_missing"]),
    (no_worker_runs, ["no_worker", WAITING]),
    (servers_refuse, ["server_refuses", "server_refuses", WAITING]),
    (beat_does_not_run, ["beat_silent", WAITING]),
    (the_sweep_has_never_run, ["beat_silent", WAITING]),
    (nothing_runs, ["no_worker", "beat_silent", WAITING]),
    (much_is_waiting, ["queue_backlog", WAITING]),
    (some_is_waiting, [WAITING]),
    (the_broker_does_not_answer, ["broker_unreachable", WAITING]),
    (redis_is_down, ["redis_unreachable", WAITING]),
    (redis_is_down_at_the_deadline, ["redis_unreachable", "deadline_passed", WAITING]),
    (every_file_was_rejected, ["all_slots_failed"]),
    (it_was_timed_out, ["timed_out"]),
    (it_was_cancelled, ["cancelled"]),
    (it_ended_long_ago_and_nothing_runs, ["cancelled"]),
    (nobody_takes_its_events, ["event_not_taken"]),
    (
        its_students_are_late_as_nobody_takes_its_events,
        ["event_not_taken", "waiting_for_students"],
    ),
    (its_readiness_goes_nowhere, ["readiness_goes_nowhere"]),
    (it_is_ready, []),
    (it_is_ready_and_nothing_runs, []),
]


@pytest.mark.parametrize(("make", "codes"), SCENES, ids=[make.__name__ for make, _ in SCENES])
def test_a_cause_is_named_and_the_first_is_first(scene, make, codes):
    make(scene)

    told = scene.explain()

    assert [cause.code for cause in told.causes] == codes
    for cause in told.causes:
        sentences = [cause.title, cause.reason, cause.by_itself, cause.command]
        assert all(sentences), cause
        assert "{" not in "".join(sentences)
        assert cause.command.startswith("els ")
        assert cause.since is None or cause.since <= datetime.now(UTC) + timedelta(minutes=1)
    json.dumps(asdict(told), default=str, allow_nan=False)


def test_every_code_is_made_by_some_cause():
    named = {code for _, codes in SCENES for code in codes}
    named |= {"being_sealed", "sweep_lock_held", "lock_held"}  # each has a test of its own
    named |= {code for _, code, _ in test_service_causes.SEEN} | test_service_causes.OF_POSTGRES
    named |= {"event_deleted", "event_under_way", "foreign_consumer", "worker_other_redis"}
    named |= {"worker_limited", "worker_restarts", "worker_crashes", "broker_lacks"}

    assert named == CAUSES.keys()
    assert [cause.code for cause in BROKEN_RULES] == [rule.code for rule in all_rules()]
    assert len(CAUSES) == len(BROKEN_RULES) + len(PLAIN)


# --- what a cause says ---------------------------------------------------------------------------


def first(scene):
    return scene.explain().causes[0]


def test_a_waiting_batch_says_for_how_many_since_when_and_until_when(scene):
    scene.register(3, on_deadline="proceed")
    scene.assign()
    row = looks.batch(scene.conn, scene.batch_id)

    cause = first(scene)

    assert cause.title == "The batch waits for contents (2 of 3 slots are open)"
    last = max(
        essay["assigned_at"]
        for essay in looks.essays(scene.conn, scene.batch_id).values()
        if essay["assigned_at"]
    )
    assert cause.since == last
    assert f"{row['deadline_at']:%Y-%m-%d %H:%M:%S} UTC" in cause.by_itself
    assert "proceeds with what is there" in cause.by_itself


def test_a_batch_that_fails_at_its_deadline_says_so(scene):
    scene.register()

    cause = first(scene)

    assert "is timed out" in cause.by_itself
    assert cause.since == looks.batch(scene.conn, scene.batch_id)["registered_at"]


def test_an_undelivered_event_says_why(scene):
    the_broker_refuses_events(scene)

    cause = first(scene)

    assert "2 events; the broker is away" in cause.title
    assert cause.since == looks.events(scene.conn, scene.batch_id)[0]["created_at"]


def test_a_republished_event_was_tried(scene):
    scene.make_ready()
    scene.set("created_at = created_at - interval '1 minute'", "event_outbox")

    an_hour_ago, now = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC)
    outbox.republish(scene.conn, outbox.Events(an_hour_ago, now, scene.batch_id), 9)

    assert "to be delivered again" in first(scene).title


def test_dead_letters_say_their_codes_and_how_to_list_them(scene):
    two_dead_letters_wait(scene)

    cause = first(scene)

    assert "RETRIES_EXHAUSTED, VALIDATION_ERROR" in cause.title
    assert cause.command == f"els dead-letters list --batch {scene.batch_id}"


def test_braces_in_an_error_are_told_as_they_are(scene):
    scene.fill()
    scene.announce()

    def refuse(events):
        raise NotSent("{deadline} {batch}", 0)

    scene.relay(refuse)
    scene.set("created_at = created_at - interval '1 minute'", "event_outbox")

    assert "{deadline} {batch}" in first(scene).title


def test_drift_says_what_is_missing_and_what_is_stale(scene):
    scene.register(3)
    scene.valkey.delete(scene.key("available_slots"))
    scene.valkey.sadd(scene.key("available_slots"), "essay-ghost")

    told = scene.explain()

    assert "3 open and not offered, 1 offered and not open" in told.causes[0].title
    assert told.disagreements == ["redis: 1 free and 0 just claimed, open slots: 3"]


def test_a_command_is_for_this_batch(scene):
    a_full_batch_is_not_announced(scene)

    assert first(scene).command == f"els reconcile {scene.batch_id}"


def test_the_sweep_mends_what_explain_named(scene):
    redis_was_flushed(scene)
    scene.pulse = alive()

    scene.sweep()

    assert scene.codes() == [WAITING]


# --- states and sides ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (nothing_has_come, "awaiting_content_validation"),
        (students_are_not_confirmed, "awaiting_student_validation"),
        (it_is_ready, "ready_for_pipeline_execution"),
        (every_file_was_rejected, "content_ingestion_failed"),
        (it_was_timed_out, "timed_out"),
        (it_was_cancelled, "cancelled"),
        (nobody_has_registered_it, "not_registered"),
        (only_a_dead_letter_names_it, "not_registered"),
        (nobody_has_heard_of_it, "unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_state_is_told(scene, make, state):
    make(scene)

    assert scene.explain().state == state


def test_postgres_stands_beside_redis(scene):
    scene.register(4)
    scene.assign()
    scene.reject()
    scene.slots.claim({scene.batch_id: ["text-on-its-way"]})

    told = scene.explain()

    postgres, redis_side = told.sides["postgres"], told.sides["redis"]
    counts = ("slots", "open", "assigned", "failed", "cancelled", "pending", "excess")
    assert [postgres[name] for name in counts] == [4, 2, 1, 1, 0, 0, 0]
    assert (redis_side["free"], redis_side["claimed"]) == (1, 3)
    assert len(redis_side["recent_claims"]) == 3
    assert told.disagreements == []


def test_a_wrong_counter_is_a_disagreement(scene):
    the_counter_is_too_high(scene)

    assert "tracker: available_slots is 3, open slots: 2" in scene.explain().disagreements


def test_rows_that_wait_for_a_registered_batch_are_a_disagreement(scene):
    a_row_waits_by_hand(scene)

    assert scene.explain().disagreements == ["pending: 1 row waits for a registered batch"]


def test_without_redis_its_side_is_the_error(scene):
    redis_is_down(scene)

    told = scene.explain()

    assert "refused" in told.sides["redis"]["error"]
    assert told.disagreements == []


def test_an_unknown_batch_has_an_empty_story(scene):
    told = scene.explain()

    assert (told.timeline, told.disagreements, told.sides["postgres"]) == ([], [], {})


def test_programs_read_the_claims_as_a_list(scene):
    a_content_is_on_its_way(scene)

    told = json.loads(json.dumps(asdict(scene.explain()), default=str))

    assert told["sides"]["redis"]["recent_claims"] == sorted(
        scene.slots.recent_claims(scene.batch_id)
    )
    assert told["causes"][0]["code"] == "claims_in_flight"


# --- the timeline --------------------------------------------------------------------------------


def lines(scene):
    return [what for _, what in scene.explain().timeline]


def move(scene, seconds, *columns):
    """Set moments of the batch back in time, so that the order does not hang on a fast machine."""
    for table, column in columns:
        scene.set(f"{column} = {column} - interval '{seconds} seconds'", table)


def test_the_timeline_tells_the_whole_story_in_order(scene):
    submissions = ("essay_states", "assigned_at")
    scene.assign("early")
    scene.register(4, class_id="class-1")
    move(scene, 90, ("batch_essay_trackers", "registered_at"), submissions)
    upload(scene.lifecycle, scene.batch_id, texts(2))
    scene.reject()
    scene.assign("late")
    scene.conn.execute(
        "UPDATE essay_states SET assigned_at = registered_at + interval '30 seconds'"
        " FROM batch_essay_trackers t WHERE t.batch_id = essay_states.batch_id"
        " AND t.batch_id = %s AND assigned_at > registered_at",
        [scene.batch_id],
    )
    scene.set("received_at = received_at - interval '50 seconds'", "excess_content")
    scene.set("created_at = created_at - interval '50 seconds'", "event_outbox")
    scene.sweep()
    letter, other = scene.park("WRONG_BATCH_STATE"), scene.park("UNKNOWN_ESSAY")
    dead_letters.mark_replayed(scene.conn, letter)
    dead_letters.mark_discarded(scene.conn, other)
    cancel(scene.lifecycle, scene.batch_id, "enough")

    told = scene.explain().timeline

    moments = [at for at, _ in told]
    assert moments == sorted(moments)
    story = [what for _, what in told]
    expected = [
        "registered with 4 slots",
        "contents assigned: 1, files rejected: 0",
        "contents assigned: 2, files rejected: 1",
        "arrived without a slot: 1, NO_AVAILABLE_SLOT",
        "event written: ExcessContentProvisioned",
        "every slot accounted for and sealed",
        "event written: BatchContentProvisioningCompleted",
        "event written: BatchValidationErrors",
        "mended by the sweep: All slots are accounted for, but the batch was not announced",
        "event delivered: ExcessContentProvisioned",
        "event delivered: BatchContentProvisioningCompleted",
        "event delivered: BatchValidationErrors",
        "mended by the sweep: An event of the batch has not been delivered",
        f"dead letter {letter}: els.assign_content, WRONG_BATCH_STATE",
        f"dead letter {other}: els.assign_content, UNKNOWN_ESSAY",
        f"dead letter {letter} replayed",
        f"dead letter {other} discarded",
        "cancelled: enough",
        "event written: BatchCancelled",
    ]
    assert sorted(story) == sorted(expected)
    assert story == expected


def test_the_timeline_of_a_ready_batch_ends_with_its_delivery(scene):
    scene.make_ready()

    assert lines(scene) == [
        "registered with 2 slots",
        "contents assigned: 2, files rejected: 0",
        "every slot accounted for and sealed",
        "ready",
        "event written: BatchContentProvisioningCompleted",
        "event written: BatchEssaysReady",
        "event delivered: BatchContentProvisioningCompleted",
        "event delivered: BatchEssaysReady",
    ]


def test_what_waits_for_a_registration_is_told(scene):
    scene.assign("one")
    scene.reject("two")
    scene.set("received_at = date_trunc('second', now())", "batch_pending_content")

    assert lines(scene) == ["arrived before the registration: 2"]


def test_a_timeout_is_told(scene):
    it_was_timed_out(scene)

    assert lines(scene)[-2:] == ["timed_out: deadline", "event written: BatchReadinessTimeout"]


def test_many_events_of_a_second_are_one_line(telling, conn, batch_id):
    scene = Scene(telling, conn, batch_id)
    scene.register(20)
    upload(telling, batch_id, texts(20))

    assert "event written: EssaySlotAssigned \u00d7 20" in lines(scene)


def test_repairs_and_letters_that_repeat_are_one_line(scene):
    scene.register()
    scene.conn.execute(
        "UPDATE batch_essay_trackers SET registered_at = '2026-01-01Z' WHERE batch_id = %s",
        [scene.batch_id],
    )
    scene.conn.execute(
        "INSERT INTO repairs (batch_id, rule, repaired_at) SELECT %s, CASE WHEN n = 3 THEN"
        " 'event_missing' ELSE 'slot_drift' END, '2026-01-31 08:00Z'::timestamptz"
        " + n * interval '1 second' FROM generate_series(1, 1500) n",
        [scene.batch_id],
    )
    ids = [f"{scene.batch_id}-{n}" for n in range(3)]
    alike = [
        DeadLetter("els.assign_content", each, scene.batch_id, "{}", "UNKNOWN_ESSAY", "why")
        for each in ids
    ]
    letters = [db.dead_letters.add(scene.conn, each) for each in alike]
    other = scene.park("WRONG_BATCH_STATE")

    drift = "mended by the sweep: Redis offers other slots than Postgres has open"
    assert lines(scene) == [
        "registered with 3 slots",
        f"{drift}, and 1 more such, the last at 2026-01-31 08:00:02 UTC",
        "mended by the sweep: The outbox lacks an event of the batch",
        f"{drift}, and 1496 more such, the last at 2026-01-31 08:25:00 UTC",
        f"dead letter {letters[0]}: els.assign_content, UNKNOWN_ESSAY, and 2 more such, the last at"
        f" {parked(scene, letters[-1])}",
        f"dead letter {other}: els.assign_content, WRONG_BATCH_STATE",
    ]


def parked(scene, number):
    row = scene.conn.execute("SELECT parked_at FROM dead_letters WHERE id = %s", [number])
    return f"{row.fetchone()['parked_at']:%Y-%m-%d %H:%M:%S} UTC"


def test_of_a_long_story_the_newest_part_is_told(scene):
    scene.register()
    scene.conn.execute(
        "INSERT INTO repairs (batch_id, rule, repaired_at)"
        " SELECT %s, 'rule-' || n, now() + n * interval '1 second' FROM generate_series(1, 1100) n",
        [scene.batch_id],
    )

    told = lines(scene)

    assert len(told) == 1000
    assert (told[0], told[-1]) == (
        "mended by the sweep: rule-101",
        "mended by the sweep: rule-1100",
    )


# --- signs of life -------------------------------------------------------------------------------


def test_the_pulse_knows_who_lives_and_when_the_sweep_ran(slots, valkey):
    heartbeat.note_worker(valkey, "worker@one")
    heartbeat.note_sweep(valkey)

    seen = read_heartbeat(valkey, 7)

    assert (seen.workers, seen.waiting, seen.beat_silent) == (["worker@one"], 7, False)


@pytest.mark.parametrize(
    ("silent_for", "kept"),
    [(FRESH * 2, True), (FORGOTTEN * 2, False)],
    ids=["lately", "long ago"],
)
def test_a_worker_without_a_sign_is_not_counted(slots, valkey, silent_for, kept):
    heartbeat.note_worker(valkey, "worker@gone")
    valkey.zincrby(heartbeat.WORKERS, -silent_for.total_seconds(), "worker@gone")

    heartbeat.note_worker(valkey, "worker@one")

    assert read_heartbeat(valkey, 0).workers == ["worker@one"]
    assert (valkey.zscore(heartbeat.WORKERS, "worker@gone") is not None) == kept


def test_a_flushed_pulse_is_silent(slots, valkey):
    seen = read_heartbeat(valkey, 0)

    assert (seen.workers, seen.swept_at, seen.beat_silent, seen.silent) == ([], None, True, True)


def test_without_an_answer_of_redis_nobody_says_that_no_worker_is_there(lifecycle, batch_id):
    """Redis may refuse one connection, and take the next: too many clients."""
    with lifecycle.pool.connection() as conn:
        told = explain(
            conn, lifecycle.slots, batch_id, NO_HEARTBEAT, redis_error="max number of clients"
        )

    codes = [cause.code for cause in told.causes]
    assert codes[0] == "redis_unreachable"
    assert "no_worker" not in codes
