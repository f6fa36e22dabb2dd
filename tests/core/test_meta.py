"""The tests are tested: faults that a system like this one had are put back, and are caught.

A scenario plays a story in which something goes wrong and tells which promises were broken. On
the code as it is that is none; with its fault put back, it is the promise that the fault breaks.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core import db
from core.errors import ELSError
from core.lifecycle import Lifecycle
from core.slots import Slots
from migrations import upgrade
from tests.core import faults, looks
from tests.core.crowd import at_once, blocked_by, until, waiting_to_register
from tests.core.faults import Stage
from tests.core.story import fill, register, reject, texts
from tests.core.test_schema import a_database
from tests.factories import content, essay_ids, new_batch, registration, take

TOLD_ONCE = ["BatchContentProvisioningCompleted", "BatchEssaysReady"]

# Promises that `ops/sql/invariants.sql` does not state.
OFFERED = "Redis offers every slot that is open"
SPOKEN_ONCE = "Who announces later finds nothing to do"
COMPLETED = "A batch whose every slot is accounted for is complete"
# Promises that it states, by their titles.
TRULY_EXCESS = "A content is excess only where no slot is open"
ALL_SLOTS = "A batch has exactly the slots that were registered"
COUNTED = "The counter equals the open slots"
KEPT_WORD = "What a sender got as the outcome still holds"
NONE_WAITS = "Nothing waits for a batch that is registered"
ONE_COMPLETION = "One completion event a complete batch, and none else"
ONE_READINESS = "One readiness event a ready batch, and none else"


@dataclass(frozen=True)
class Ending:
    """How a scenario ended: what was told, in the story's order, and the promises broken."""

    batch_id: str
    told: list[str]
    broken: list[str]


class Deaf(redis.Connection):
    """A connection that, when told to, loses the answer to a claim: the server has done it."""

    loses_next = False

    def read_response(self, *args, **options):
        answer = super().read_response(*args, **options)
        if Deaf.loses_next and isinstance(answer, list):  # of all scripts only a claim tells one
            Deaf.loses_next = False
            raise redis.ConnectionError("the answer is lost")
        return answer


@pytest.fixture(scope="module")
def pool(database_url):
    """A database of our own, for what is broken here must not be swept elsewhere."""
    with a_database(database_url) as url:
        upgrade(url)
        with db.connect(url, size=12) as opened:
            yield opened


@pytest.fixture
def slots(valkey):
    valkey.flushdb()
    Deaf.loses_next = False
    url = os.environ["ELS_REDIS_URL"]
    with redis.Redis.from_url(url, connection_class=Deaf, decode_responses=True) as client:
        yield Slots(client)


@pytest.fixture
def stage(pool, conn, slots):
    return Stage(pool, conn, slots, Lifecycle(pool, slots))


def heard(step):
    """Take a step; return its outcome, or the name of the error that it raised."""
    try:
        return step()["outcome"]
    except (ELSError, psycopg.Error, redis.RedisError) as error:
        return type(error).__name__


def assigning(stage, event):
    return lambda: take(stage.lifecycle, "els.assign_content", event).value


def ending(stage, batch_id, told, promises=None):
    """Look at the invariants and, beside them, at promises that are kept or not."""
    broken = looks.broken(stage.conn, batch_id, slots=stage.slots)
    broken += [promise for promise, kept in (promises or {}).items() if not kept]
    return Ending(batch_id, told, broken)


# --- the scenarios --------------------------------------------------------------------------------


def an_answer_of_redis_is_lost(stage, *, retries=0):
    """Redis answers a claim, and the answer is lost; redis-py or the sender asks again."""
    batch_id = new_batch()
    register(stage.lifecycle, batch_id, 2)
    first, last = (content(batch_id, text) for text in texts(2))
    stage.slots.client.set_retry(Retry(NoBackoff(), retries))
    Deaf.loses_next = True

    told = [heard(assigning(stage, event)) for event in (first, first, last)]

    assert not Deaf.loses_next
    offered = stage.slots.free(batch_id) == looks.open_slots(stage.conn, batch_id)
    return ending(stage, batch_id, told, {OFFERED: offered})


def redis_is_flushed_before_25_contents(stage):
    batch_id = new_batch()
    register(stage.lifecycle, batch_id, 25)
    stage.slots.client.flushdb()

    told = [heard(assigning(stage, content(batch_id, text))) for text in texts(25)]

    return ending(stage, batch_id, told)


def five_see_a_full_batch_at_once(stage):
    batch_id = new_batch()
    fill(stage.lifecycle, batch_id, 3)

    told = at_once(*[lambda: heard(lambda: stage.lifecycle.complete(batch_id).value)] * 5)

    once = sorted(told) == ["announced"] + ["nothing_to_announce"] * 4
    return ending(stage, batch_id, sorted(told), {SPOKEN_ONCE: once})


@contextmanager
def an_essay_refused(conn, essay_id):
    """Let Postgres refuse this essay."""
    table = "ALTER TABLE essay_states"
    conn.execute(f"{table} ADD CONSTRAINT refused CHECK (essay_id <> '{essay_id}') NOT VALID")
    try:
        yield
    finally:
        conn.execute(f"{table} DROP CONSTRAINT refused")


def an_essay_of_a_registration_is_refused(stage):
    """Postgres does not take one of the essays, as if an enum lacked a value; then it does."""
    batch_id = new_batch()
    event = registration(batch_id, 3)

    def step():
        return take(stage.lifecycle, "els.register_batch", event).value

    with an_essay_refused(stage.conn, essay_ids(3)[-1]):
        told = [heard(step)]
    told += [heard(step)]

    return ending(stage, batch_id, told)


@contextmanager
def parking_held(stage, batch_id):
    """Hold whoever is about to write "text-1" down as pending; yield the session that does."""
    with stage.pool.connection() as twin, twin.transaction(force_rollback=True):
        twin.execute(
            "INSERT INTO batch_pending_content (batch_id, kind, essay_file_id, text_storage_id)"
            " VALUES (%s, 'content', 'twin', 'text-1')",
            [batch_id],
        )
        yield twin.info.backend_pid


def a_batch_is_registered_while_a_content_is_parked(stage):
    """The content has found no batch and is not yet written down, when the registration comes."""
    batch_id = new_batch()

    with ThreadPoolExecutor(2) as crowd:
        with parking_held(stage, batch_id) as holder:
            submission = crowd.submit(heard, assigning(stage, content(batch_id, "text-1")))
            until(lambda: blocked_by(stage.conn, holder))
            batch = crowd.submit(heard, lambda: register(stage.lifecycle, batch_id, 2))
            until(lambda: batch.done() or waiting_to_register(stage.conn, batch_id))
        told = [submission.result(), batch.result()]

    return ending(stage, batch_id, told)


@contextmanager
def counter_held(stage, batch_id):
    """Hold whoever is about to count a slot down; yield the session that does."""
    with stage.pool.connection() as holder, holder.transaction():
        holder.execute(
            "SELECT FROM batch_essay_trackers WHERE batch_id = %s FOR UPDATE", [batch_id]
        )
        yield holder.info.backend_pid


def a_connection_is_lost_amid_the_work(stage):
    """Postgres ends the session that is giving a content its slot; the event comes again."""
    batch_id = new_batch()
    register(stage.lifecycle, batch_id, 2)
    step = assigning(stage, content(batch_id))

    with ThreadPoolExecutor(1) as crowd, counter_held(stage, batch_id) as holder:
        first = crowd.submit(heard, step)
        until(lambda: blocked_by(stage.conn, holder))
        stage.conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE %s = ANY(pg_blocking_pids(pid))",
            [holder],
        )
        told = [first.result()]
    told += [heard(step)]

    return ending(stage, batch_id, told)


def one_file_of_25_fails(stage, *, at=0):
    """24 good essays and, in the place `at`, a rejected file."""
    batch_id = new_batch()
    register(stage.lifecycle, batch_id, 25)
    steps = [assigning(stage, content(batch_id, text)) for text in texts(24)]
    steps.insert(at, lambda: reject(stage.lifecycle, batch_id))
    steps.append(lambda: stage.lifecycle.complete(batch_id).value)

    told = [heard(step) for step in steps]

    accounted = not looks.open_slots(stage.conn, batch_id)
    complete = looks.batch(stage.conn, batch_id)["completed_at"] is not None
    return ending(stage, batch_id, told, {COMPLETED: complete or not accounted})


@contextmanager
def trackers_unreadable(conn):
    """Let every look at a tracker fail, as it does beside a schema that is not migrated."""
    table = "ALTER TABLE batch_essay_trackers RENAME COLUMN"
    conn.execute(f"{table} student_prompt_ref TO renamed")
    try:
        yield
    finally:
        conn.execute(f"{table} renamed TO student_prompt_ref")


def a_look_at_the_tracker_fails(stage):
    """Redis has forgotten the batch, Postgres fails to tell of it; later the event comes again."""
    batch_id = new_batch()
    register(stage.lifecycle, batch_id, 2)
    stage.slots.client.flushdb()
    step = assigning(stage, content(batch_id))

    with trackers_unreadable(stage.conn):
        told = [heard(step)]
    told += [heard(step)]

    return ending(stage, batch_id, told)


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Caught:
    """A fault, the scenario that catches it, and the promises that it breaks there."""

    fault: Callable[[Stage], AbstractContextManager[None]]
    scenario: Callable[[Stage], Ending]
    breaks: list[str]


KNOWN = {
    "a claim pops without looking for an earlier one": Caught(
        faults.pop_without_looking, an_answer_of_redis_is_lost, [OFFERED]
    ),
    "Redis alone decides what is excess": Caught(
        faults.excess_without_asking_postgres, redis_is_flushed_before_25_contents, [TRULY_EXCESS]
    ),
    "whoever sees a full batch announces it": Caught(
        faults.announcing_without_anything,
        five_see_a_full_batch_at_once,
        [ONE_COMPLETION, ONE_READINESS, SPOKEN_ONCE],
    ),
    "tracker and slots are written in two transactions": Caught(
        faults.registration_in_two_transactions,
        an_essay_of_a_registration_is_refused,
        [ALL_SLOTS, COUNTED],
    ),
    "parking does not exclude a registration": Caught(
        faults.parking_without("share_registration_lock", "hold_registration_lock"),
        a_batch_is_registered_while_a_content_is_parked,
        [NONE_WAITS],
    ),
    "the key is committed before the work": Caught(
        faults.key_before_the_work, a_connection_is_lost_amid_the_work, [KEPT_WORD]
    ),
    "failures do not count toward completion": Caught(
        faults.failures_not_counted, one_file_of_25_fails, [COUNTED, COMPLETED]
    ),
    'an error is read as "not registered"': Caught(
        faults.errors_read_as_not_registered, a_look_at_the_tracker_fails, [NONE_WAITS]
    ),
}


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN.keys())
def test_a_known_fault_breaks_a_promise_that_the_code_as_it_is_keeps(stage, known):
    healthy = known.scenario(stage)

    with known.fault(stage):
        faulty = known.scenario(stage)

    assert healthy.broken == []
    assert faulty.broken == known.breaks


# --- how each shows -------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1], ids=["sender-asks-again", "redis-py-asks-again"])
def test_a_pop_that_does_not_look_for_an_earlier_claim_is_caught(stage, retries):
    healthy = an_answer_of_redis_is_lost(stage, retries=retries)
    with faults.pop_without_looking(stage):
        faulty = an_answer_of_redis_is_lost(stage, retries=retries)

    first = "assigned" if retries else "ConnectionError"
    assert healthy.told == [first, "assigned", "assigned"]
    assert faulty.told == [first, "assigned", "SlotsInFlight"]
    assert faulty.broken == [OFFERED]
    assert stage.slots.free(faulty.batch_id) == set()
    assert len(looks.open_slots(stage.conn, faulty.batch_id)) == 1
    assert stage.slots.recent_claims(faulty.batch_id) == set(essay_ids(2))  # of one content


def test_an_excess_that_redis_alone_decides_is_caught(stage):
    healthy = redis_is_flushed_before_25_contents(stage)
    with faults.excess_without_asking_postgres(stage):
        faulty = redis_is_flushed_before_25_contents(stage)

    assert healthy.told == ["assigned"] * 25
    assert faulty.told == ["excess"] * 25
    assert looks.open_slots(stage.conn, faulty.batch_id) == set(essay_ids(25))


@pytest.mark.parametrize("guard", faults.GUARDS)
def test_readiness_can_do_without_any_one_of_its_guards(stage, guard):
    with faults.announcing_without(guard)(stage):
        ended = five_see_a_full_batch_at_once(stage)

    assert ended.broken == []


@pytest.mark.parametrize(
    "dropped", [(), *[[name] for name in faults.ONCE]], ids=["none", *faults.ONCE]
)
def test_readiness_without_its_guards_is_stopped_by_a_unique_index_and_is_caught(stage, dropped):
    with (
        faults.announcing_without(*faults.GUARDS)(stage),
        faults.outbox_without(stage.conn, dropped),
    ):
        ended = five_see_a_full_batch_at_once(stage)
        types = looks.types(stage.conn, ended.batch_id)

    assert ended.told == ["UniqueViolation"] * 4 + ["announced"]
    assert types == TOLD_ONCE
    assert ended.broken == [SPOKEN_ONCE]


def test_readiness_without_guards_and_indexes_is_caught(stage):
    with faults.announcing_without_anything(stage):
        ended = five_see_a_full_batch_at_once(stage)
        types = looks.types(stage.conn, ended.batch_id)

    assert ended.told == ["announced"] * 5
    assert types == TOLD_ONCE * 5
    assert ended.broken == [ONE_COMPLETION, ONE_READINESS, SPOKEN_ONCE]


def test_a_registration_in_two_transactions_is_caught(stage):
    healthy = an_essay_of_a_registration_is_refused(stage)
    with faults.registration_in_two_transactions(stage):
        faulty = an_essay_of_a_registration_is_refused(stage)

    assert healthy.told == ["CheckViolation", "registered"]
    assert faulty.told == ["CheckViolation", "already_registered"]
    assert looks.batch(stage.conn, faulty.batch_id)["available_slots"] == 3
    assert looks.essays(stage.conn, faulty.batch_id) == {}


@pytest.mark.parametrize("lock", ["share_registration_lock", "hold_registration_lock"])
def test_a_lock_that_only_one_of_parking_and_registering_takes_is_caught(stage, lock):
    healthy = a_batch_is_registered_while_a_content_is_parked(stage)
    with faults.parking_without(lock)(stage):
        faulty = a_batch_is_registered_while_a_content_is_parked(stage)

    assert healthy.told == faulty.told == ["pending", "registered"]
    assert list(looks.placed(stage.conn, healthy.batch_id)) == ["text-1"]
    assert looks.placed(stage.conn, faulty.batch_id) == {}
    assert faulty.broken == [NONE_WAITS]


def test_a_key_that_is_committed_before_the_work_is_caught(stage):
    healthy = a_connection_is_lost_amid_the_work(stage)
    with faults.key_before_the_work(stage):
        faulty = a_connection_is_lost_amid_the_work(stage)

    assert healthy.told == faulty.told == ["AdminShutdown", "assigned"]
    assert list(looks.placed(stage.conn, healthy.batch_id)) == ["text-1"]
    assert looks.placed(stage.conn, faulty.batch_id) == {}


@pytest.mark.parametrize("at", [0, 24], ids=["first", "last"])
def test_a_failure_that_does_not_count_is_caught(stage, at):
    healthy = one_file_of_25_fails(stage, at=at)
    with faults.failures_not_counted(stage):
        faulty = one_file_of_25_fails(stage, at=at)

    assert healthy.told[-1] == "announced"
    assert faulty.told[-1] == "nothing_to_announce"
    assert looks.open_slots(stage.conn, faulty.batch_id) == set()
    assert looks.batch(stage.conn, faulty.batch_id)["available_slots"] == 1
    assert faulty.broken == [COUNTED, COMPLETED]


def test_an_error_that_is_read_as_not_registered_is_caught(stage):
    healthy = a_look_at_the_tracker_fails(stage)
    with faults.errors_read_as_not_registered(stage):
        faulty = a_look_at_the_tracker_fails(stage)

    assert healthy.told == ["UndefinedColumn", "assigned"]
    assert faulty.told == ["pending", "pending"]
    assert len(looks.waiting(stage.conn, faulty.batch_id)) == 1


def test_an_error_that_is_swallowed_inside_the_transaction_parks_nothing(stage):
    with faults.errors_read_as_not_registered(stage, session_of_its_own=False):
        ended = a_look_at_the_tracker_fails(stage)

    assert ended.told == ["InFailedSqlTransaction", "assigned"]
    assert ended.broken == []
