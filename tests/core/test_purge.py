"""A batch that ended long ago is deleted with all that belongs to it, and nothing else is."""

import pytest

from core import db, retention
from core.db.dead_letters import DeadLetter
from core.outbox import relay
from core.repairs import RepairContext
from core.retention import Purge
from core.sweep import sweep
from ops.queries import actions, batches, dead_letters
from ops.queries.retention import count, kept_until
from tests.core import looks
from tests.core.story import assign, cancel, confirm, fill, register, reject
from tests.factories import essay_ids, new_batch

TABLES = [*looks.TABLES, "dead_letters", "repairs", "operator_actions"]
EVERY = 1_000_000


@pytest.fixture
def story(lifecycle, conn):
    """Give ways to bring batches to their end, with every event delivered."""
    return Story(lifecycle, conn)


class Story:
    def __init__(self, lifecycle, conn):
        self.lifecycle, self.conn = lifecycle, conn

    def end(self, how, days=10):
        """Bring a new batch to this end, so many days ago."""
        batch_id = new_batch()
        getattr(self, how)(batch_id)
        relay(self.lifecycle.pool, [batch_id], lambda events: None)
        self.age(batch_id, days)
        return batch_id

    def age(self, batch_id, days):
        self.conn.execute(
            "UPDATE batch_essay_trackers SET completed_at = completed_at - age,"
            " ready_at = ready_at - age, closed_at = closed_at - age,"
            " registered_at = registered_at - age"
            " FROM make_interval(secs => %s * 86400) AS age WHERE batch_id = %s",
            [days, batch_id],
        )

    def ready(self, batch_id):
        fill(self.lifecycle, batch_id, 2)
        assign(self.lifecycle, batch_id, "one-too-many")
        self.lifecycle.complete(batch_id)

    def ready_regular(self, batch_id):
        self.awaiting_students(batch_id)
        confirm(self.lifecycle, batch_id, {essay_ids(1)[0]: "student-1"})

    def failed(self, batch_id):
        register(self.lifecycle, batch_id, 1)
        reject(self.lifecycle, batch_id)
        self.lifecycle.complete(batch_id)

    def cancelled(self, batch_id):
        register(self.lifecycle, batch_id)
        cancel(self.lifecycle, batch_id)

    def timed_out(self, batch_id):
        register(self.lifecycle, batch_id)
        self.conn.execute(
            "UPDATE batch_essay_trackers SET deadline_at = now() WHERE batch_id = %s", [batch_id]
        )
        self.lifecycle.time_out(batch_id)

    def awaiting_contents(self, batch_id):
        register(self.lifecycle, batch_id)
        assign(self.lifecycle, batch_id)

    def awaiting_students(self, batch_id):
        fill(self.lifecycle, batch_id, 2, class_id="class-1")
        self.lifecycle.complete(batch_id)

    def full(self, batch_id):
        fill(self.lifecycle, batch_id, 2)

    def park(self, batch_id):
        letter = DeadLetter("els.cancel_batch", f"task-{batch_id}", batch_id, "{}", "WRONG", "why")
        return db.dead_letters.add(self.conn, letter)


ENDED = ["ready", "ready_regular", "failed", "cancelled", "timed_out"]
OPEN = ["awaiting_contents", "awaiting_students", "full"]


def purgeable(conn, days=7):
    return set(db.retention.purgeable(conn, days, EVERY))


def purge(conn, *batches):
    db.retention.purge(conn, [*batches], "anna")


def counts(conn, batch_id):
    """How many rows each table has of a batch."""
    return {
        table: conn.execute(
            f"SELECT count(*) AS n FROM {table} WHERE batch_id = %s", [batch_id]
        ).fetchone()["n"]
        for table in TABLES
    }


@pytest.mark.parametrize("how", ENDED)
def test_a_batch_that_ended_long_enough_ago_may_go(story, conn, how):
    old, young = story.end(how, days=7.01), story.end(how, days=6.99)

    found = purgeable(conn)

    assert old in found
    assert young not in found


@pytest.mark.parametrize("how", OPEN)
def test_an_open_batch_stays_however_old(story, conn, how):
    batch_id = story.end(how, days=1000)

    assert batch_id not in purgeable(conn)


def test_the_last_thing_that_happened_counts(story, conn):
    batch_id = story.end("ready_regular", days=10)
    conn.execute("UPDATE batch_essay_trackers SET ready_at = now() WHERE batch_id = %s", [batch_id])

    assert batch_id not in purgeable(conn)


@pytest.mark.parametrize("how", ENDED)
def test_a_batch_with_an_undelivered_event_stays(story, conn, how):
    batch_id = story.end(how)
    conn.execute(
        "UPDATE event_outbox SET published_at = NULL WHERE id = (SELECT id FROM event_outbox"
        " WHERE batch_id = %s ORDER BY sequence DESC LIMIT 1)",
        [batch_id],
    )

    assert batch_id not in purgeable(conn)


def test_a_batch_with_a_waiting_dead_letter_stays(story, conn):
    batch_id = story.end("ready")
    story.park(batch_id)

    assert batch_id not in purgeable(conn)


@pytest.mark.parametrize("handled", [dead_letters.mark_replayed, dead_letters.mark_discarded])
def test_a_handled_dead_letter_keeps_nothing(story, conn, handled):
    batch_id = story.end("ready")
    handled(conn, story.park(batch_id))

    assert batch_id in purgeable(conn)


def test_no_more_are_listed_than_asked_for(story, conn):
    for _ in range(3):
        story.end("cancelled")

    assert len(db.retention.purgeable(conn, 7, 2)) == 2


def test_a_purged_batch_leaves_nothing_behind(story, conn, slots):
    batch_id = story.end("full")
    sweep(RepairContext(story.lifecycle, lambda events: None), batch_id)
    assign(story.lifecycle, batch_id, "one-too-many")
    relay(story.lifecycle.pool, [batch_id], lambda events: None)
    dead_letters.mark_discarded(conn, story.park(batch_id))
    actions.record(conn, actions.By("anna", "why").action("cancel", "batch", batch_id))
    story.age(batch_id, 10)
    before = counts(conn, batch_id)

    assert batch_id in purgeable(conn)
    purge(conn, batch_id)
    slots.forget([batch_id])

    assert {table for table, count in before.items() if not count} == {"batch_pending_content"}
    assert set(counts(conn, batch_id).values()) == {0}
    assert slots.client.keys(f"batch:{{{batch_id}}}:*") == []


def test_other_batches_are_not_touched(story, conn, slots):
    batch_id, others = story.end("ready"), [story.end(how) for how in (*ENDED, *OPEN)]
    before = [looks.everything(conn, other) for other in others]
    keys = {key for key in slots.client.keys("batch:*") if batch_id not in key}

    purge(conn, batch_id)
    slots.forget([batch_id])

    assert [looks.everything(conn, other) for other in others] == before
    assert set(slots.client.keys("batch:*")) == keys


def test_nothing_to_forget_is_fine(slots):
    slots.forget([])


def test_a_purged_batch_may_be_registered_again(story, conn, slots):
    batch_id = story.end("ready")
    purge(conn, batch_id)
    slots.forget([batch_id])

    assert register(story.lifecycle, batch_id, 2)["outcome"] == "registered"
    assert assign(story.lifecycle, batch_id)["outcome"] == "assigned"


# --- contents that nobody registers --------------------------------------------------------------


def waits_since(conn, batch_id, days):
    conn.execute(
        "UPDATE batch_pending_content SET received_at = now() - make_interval(secs => %s * 86400)"
        " WHERE batch_id = %s",
        [days, batch_id],
    )


def test_contents_that_nobody_registers_expire(lifecycle, conn):
    old, young = new_batch(), new_batch()
    for batch_id, days in ((old, 7.01), (young, 6.99)):
        assign(lifecycle, batch_id)
        reject(lifecycle, batch_id)
        waits_since(conn, batch_id, days)

    counted = len(db.retention.without_batch(conn, "pending", 7))
    there = [len(looks.waiting(conn, batch_id)) for batch_id in (old, young)]
    deleted = db.retention.purge_without_batch(conn, "pending", 7, EVERY)

    assert counted == deleted
    assert there == [2, 2]
    assert looks.waiting(conn, old) == []
    assert len(looks.waiting(conn, young)) == 2


def test_a_content_that_waits_for_a_registered_batch_does_not_expire(lifecycle, conn, batch_id):
    register(lifecycle, batch_id)
    conn.execute(
        "INSERT INTO batch_pending_content (batch_id, kind, essay_file_id, text_storage_id)"
        " VALUES (%s, 'content', 'file-1', 'text-by-hand')",
        [batch_id],
    )
    waits_since(conn, batch_id, 100)

    db.retention.purge_without_batch(conn, "pending", 7, EVERY)

    assert len(looks.waiting(conn, batch_id)) == 1


def test_a_batch_for_which_a_content_still_waits_is_not_purged(story, conn):
    batch_id = story.end("ready")
    conn.execute(
        "INSERT INTO batch_pending_content (batch_id, kind, essay_file_id, text_storage_id)"
        " VALUES (%s, 'content', 'file-1', 'text-by-hand')",
        [batch_id],
    )

    assert batch_id not in purgeable(conn)


# --- tombstones, and purges in small steps -------------------------------------------------------


@pytest.mark.parametrize("how", ENDED)
def test_a_tombstone_says_how_a_batch_ended_and_who_purged_it(story, conn, how):
    batch_id = story.end(how)
    ended = looks.batch(conn, batch_id)

    purge(conn, batch_id)

    row = conn.execute("SELECT * FROM purged_batches WHERE batch_id = %s", [batch_id]).fetchone()
    assert (row["status"], row["purged_by"]) == (ended["status"], "anna")
    assert row["expected_count"] == ended["expected_count"]
    moments = [ended[name] for name in ("completed_at", "ready_at", "closed_at") if ended[name]]
    assert row["ended_at"] == max(moments) < row["purged_at"]


def test_an_id_that_is_used_and_purged_again_has_its_last_tombstone(story, conn, slots):
    batch_id = story.end("ready")
    purge(conn, batch_id)
    slots.forget([batch_id])
    story.cancelled(batch_id)

    purge(conn, batch_id)

    rows = conn.execute("SELECT * FROM purged_batches WHERE batch_id = %s", [batch_id]).fetchall()
    assert [row["status"] for row in rows] == ["cancelled"]


def run_purge(story, slots, days=7, **options):
    step = Purge(story.lifecycle.pool, slots, days, "retention")
    options.setdefault("each", lambda: None)
    return step.run(**options), step.done


def test_a_purge_takes_small_steps_and_ends_when_its_time_is_over(story, slots, monkeypatch):
    monkeypatch.setattr(retention, "BATCHES_AT_ONCE", 1)
    for _ in range(3):
        story.end("cancelled", days=500)
    steps = []

    run_purge(story, slots, 499, seconds=0, each=lambda: steps.append(1))
    first = len(steps)
    _, done = run_purge(story, slots, 499)

    assert first >= 1
    assert done["batches"] <= 2
    assert not purgeable(story.conn, 499)


def test_a_step_has_at_most_so_many_slots_and_at_least_one_batch(story, conn):
    for _ in range(4):
        story.end("ready", days=600)  # of two slots each

    sizes = [len(db.retention.purgeable(conn, 599, 50, slots=n)) for n in (1, 2, 3, 4, None)]

    assert sizes == [1, 1, 2, 2, 4]


def test_a_purge_waits_for_nobody(story, conn, slots, pool):
    held, free = story.end("cancelled", days=700), story.end("cancelled", days=700)
    with pool.connection() as other, other.transaction():
        other.execute("SELECT FROM batch_essay_trackers WHERE batch_id = %s FOR UPDATE", [held])

        run_purge(story, slots, 699)

    assert looks.batch(conn, held) is not None
    assert looks.batch(conn, free) is None


def aged(conn, table, column, key, value, days):
    conn.execute(
        f"UPDATE {table} SET {column} = now() - make_interval(days => %s) WHERE {key} = %s",
        [days, value],
    )


def test_keys_letters_and_actions_of_no_batch_go_and_those_of_a_batch_stay(story, conn, slots):
    gone, here = new_batch(), story.end("awaiting_contents", days=800)
    for batch_id in (gone, here):
        letter = story.park(batch_id)
        aged(conn, "dead_letters", "parked_at", "id", letter, 800)
        by = actions.By("anna", "why")
        actions.record(conn, by.action("replay", "x", batch_id), by.action("erase", "a person"))
        conn.execute(
            "INSERT INTO idempotency_keys (key, task, fingerprint, outcome, batch_id)"
            " VALUES (gen_random_uuid(), 'els.assign_content', 'x', '{}', %s)",
            [batch_id],
        )
        aged(conn, "idempotency_keys", "created_at", "batch_id", batch_id, 800)
    conn.execute("UPDATE operator_actions SET acted_at = now() - interval '800 days'")
    counted = count(conn, 799)

    _, done = run_purge(story, slots, 799)

    left = {table: counts(conn, gone)[table] for table in ("idempotency_keys", "dead_letters")}
    assert left == {"idempotency_keys": 0, "dead_letters": 0}
    assert counts(conn, here)["idempotency_keys"] >= 1
    assert counts(conn, here)["dead_letters"] == 1
    assert counts(conn, here)["operator_actions"] == 1
    kept = conn.execute("SELECT action FROM operator_actions WHERE batch_id IS NULL").fetchall()
    assert {row["action"] for row in kept} >= {"erase"}
    assert {name: count for name, count in done.items() if count} == {
        name: count for name, count in counted.items() if count
    }


def test_the_key_of_a_content_that_waits_stays(lifecycle, conn, slots, story):
    waiting = new_batch()
    assign(lifecycle, waiting)
    aged(conn, "idempotency_keys", "created_at", "batch_id", waiting, 900)

    run_purge(story, slots, 899)

    assert counts(conn, waiting)["idempotency_keys"] == 1


def test_keys_are_read_page_by_page_to_their_end(story, conn, slots, monkeypatch):
    monkeypatch.setattr(retention, "KEYS_AT_ONCE", 2)
    of = new_batch()
    for _ in range(5):
        conn.execute(
            "INSERT INTO idempotency_keys (key, task, fingerprint, outcome, batch_id, created_at)"
            " VALUES (gen_random_uuid(), 'x', 'x', '{}', %s, now() - interval '1000 days')",
            [of],
        )

    after, done = run_purge(story, slots, 999)

    assert done["keys"] == 5
    assert after == retention.FIRST_KEY


@pytest.mark.parametrize(
    ("how", "days", "is_kept"), [("ready", 5, True), ("full", 5, False), ("ready", None, False)]
)
def test_a_closed_batch_says_until_when_it_is_kept(story, conn, how, days, is_kept):
    batch_id = story.end(how)

    until = kept_until(batches.facts(conn, batch_id), days)

    assert (until is not None) is is_kept
