"""Known faults, each put back for as long as its context lasts: a switch that only tests have.

Most were in the system before this one. A fault that cuts a rule out of SQL or Lua fails loudly
when that rule is no longer written as it was, so that no fault quietly does nothing.
"""

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import ConnectionPool

from core import db
from core.db.connection import Conn
from core.lifecycle import Lifecycle
from core.lua import script
from core.model import Location
from core.slots import Slots
from core.tracker import Tracker

LOOK_FOR_A_CLAIM = "redis.call('HMGET', KEYS[2], unpack(ARGV))"
BATCH_IS_FULL = "AND t.available_slots = 0"
FULL = "the look beforehand"
GUARDS = {  # of readiness: what ANNOUNCE says, and None for what Python does
    FULL: None,
    "completed_at": "AND t.completed_at IS NULL",
    "status": "AND t.status = 'awaiting_content_validation'",
}
ONCE = ("uq_event_outbox_once", "pk_event_outbox")  # an event's id follows from what it is about
SLOTS_OF_A_BATCH = "), slot AS ("  # of REGISTER: what comes before it writes the tracker
WAITING_SLOTS = """
    INSERT INTO essay_states (batch_id, essay_id, current_status)
    SELECT %(batch_id)s, string_to_table(%(essay_ids)s, E'\\n'), 'awaiting_content'"""


@dataclass(frozen=True)
class Stage:
    """What a scenario plays on, and a fault is put into."""

    pool: ConnectionPool
    conn: Conn
    slots: Slots
    lifecycle: Lifecycle


def cut(text, rule, instead=""):
    """Take a rule out of a statement that has it once."""
    assert text.count(rule) == 1, f"{rule!r} is written otherwise by now: mend this fault"
    return text.replace(rule, instead)


@contextmanager
def _put(target, **faults):
    with pytest.MonkeyPatch.context() as patch:
        for name, fault in faults.items():
            patch.setattr(target, name, fault)
        yield


def pop_without_looking(stage):
    """`claim.lua` pops for whoever asks, whatever that content holds already."""
    popping = cut(script("claim"), LOOK_FOR_A_CLAIM, "{}")
    return _put(stage.slots, _claim=stage.slots.client.register_script(popping))


def excess_without_asking_postgres(stage):
    """What claimed nothing in Redis is excess, however many slots Postgres has open."""
    return _put(db.slots, RECORD_EXCESS=cut(db.slots.RECORD_EXCESS, BATCH_IS_FULL))


def announcing_without(*guards):
    """Announcing lacks these of its guards."""

    @contextmanager
    def put(stage):
        statement = db.completion.ANNOUNCE
        for rule in filter(None, map(GUARDS.get, guards)):
            statement = cut(statement, rule)
        with ExitStack() as faults:
            faults.enter_context(_put(db.completion, ANNOUNCE=statement))
            if FULL in guards:
                faults.enter_context(_put(Tracker, full=True))
            yield

    return put


@contextmanager
def outbox_without(conn, names):
    """Let the outbox take a second event of a kind: drop these of the indexes that forbid it."""
    unique = conn.execute(
        "SELECT indexdef FROM pg_indexes WHERE indexname = ANY(%s)", [list(names)]
    ).fetchall()
    assert len(unique) == len(names)
    for name in map(sql.Identifier, names):
        conn.execute(sql.SQL("ALTER TABLE event_outbox DROP CONSTRAINT IF EXISTS {}").format(name))
        conn.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(name))
    try:
        yield
    finally:
        conn.execute("TRUNCATE event_outbox")
        for index in unique:
            conn.execute(index["indexdef"])


@contextmanager
def announcing_without_anything(stage):
    """Whoever sees a full batch announces it, and the outbox takes what it is given."""
    with announcing_without(*GUARDS)(stage), outbox_without(stage.conn, ONCE):
        yield


def registration_in_two_transactions(stage):
    """The tracker is committed before the slots are written."""
    head, _ = db.batches.REGISTER.split(SLOTS_OF_A_BATCH)
    tracker_alone = head + ") SELECT available_slots FROM tracker"

    def register(conn, batch, essay_ids):
        slots = {"essay_ids": "\n".join(essay_ids), "expected_count": len(essay_ids)}
        row = {**batch, **slots}
        with stage.pool.connection() as own:
            left = own.execute(tracker_alone, row).fetchone()["available_slots"]
        conn.execute(WAITING_SLOTS, row)
        return left, 0, []

    return _put(db.batches, register=register)


def parking_without(*locks):
    """Parking, or registering, does not take the lock that keeps the two apart."""

    def put(stage):
        return _put(db.batches, **dict.fromkeys(locks, lambda conn, batch_id: None))

    return put


def key_before_the_work(stage):
    """The key is committed first; the work follows in a transaction of its own."""
    place = db.slots.place

    def key_then_place(conn, slots, *, with_keys, slot_events):
        for message, slot_of in slots.items():
            first = Location(slot_of[message.claimants[0]])
            db.idempotency.write_key(conn, message.idem, message.batch_id, message.value(first))
        return place(conn, slots, with_keys=False, slot_events=slot_events)

    return _put(db.slots, place=key_then_place)


def failures_not_counted(stage):
    """The counter of a batch goes down by the contents that took slots, not by the slots taken."""
    statement = db.slots.PLACE
    for rule, instead in {
        "t.available_slots - taken.slots": "t.available_slots - taken.contents",
        "t.available_slots = taken.slots": "t.available_slots = taken.contents",
        "count(*)::int AS slots": "count(*)::int AS slots, count(text_storage_id)::int AS contents",
    }.items():
        statement = cut(statement, rule, instead)
    return _put(db.slots, PLACE=statement)


def errors_read_as_not_registered(stage, *, session_of_its_own=True):
    """A look at the tracker that fails says "not registered".

    In a session of its own, as it was: inside of a transaction Postgres takes nothing more.
    """
    read = db.batches.tracker

    def tracker(conn, batch_id, *, lock=False):
        try:
            if not session_of_its_own:
                return read(conn, batch_id, lock=lock)
            with stage.pool.connection() as own:
                return read(own, batch_id)
        except psycopg.Error:
            return None

    return _put(db.batches, tracker=tracker)
