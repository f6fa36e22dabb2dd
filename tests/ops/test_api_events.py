"""A reader of `/v1/events` misses no event, whatever transactions are open; messages, essays."""

import json
import re
import threading
import urllib.parse
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import psycopg
import pytest
from jsonschema import Draft202012Validator
from psycopg import Rollback

from core.db.dead_letters import DeadLetter, add
from core.outbox import relay
from ops import pages
from ops.explain import held_back
from ops.reference.event_bodies import CloudEvent
from tests.core import story
from tests.factories import new_batch
from tests.live.conftest import until
from tests.ops.test_api import answer_of, problem_of, schema_of

ROOT = Path(__file__).parents[2]


class Follower:
    """Reads every event from now on, a page at a time."""

    def __init__(self, served, limit=3):
        self.served, self.limit, self.after = served, limit, None
        self.read()

    def read(self):
        """Return what came since the last time."""
        found = []
        while True:
            more = f"&after={urllib.parse.quote(self.after)}" if self.after else ""
            page = answer_of(self.served, f"/v1/events?limit={self.limit}{more}", "Events")
            found += page["items"]
            self.after = page["next"]
            if not page["more"]:
                return found


@pytest.fixture
def batch_id():
    return new_batch()


@pytest.fixture
def follower(served):
    return Follower(served)


def cancelled(served, batch_id):
    """Give a batch an event."""
    story.register(served.lifecycle, batch_id, 1)
    story.cancel(served.lifecycle, batch_id)
    return batch_id


@contextmanager
def an_open_event(served, batch_id):
    """Write an event in a transaction that stays open until the end."""
    story.register(served.lifecycle, batch_id, 1)
    with served.pool.connection() as conn, conn.transaction():
        conn.execute(
            "INSERT INTO event_outbox (id, batch_id, type, generation, sequence, correlation_id,"
            " data) VALUES (%s, %s, 'BatchCancelled', 'open', 1, %s, '{}')",
            [uuid4(), batch_id, uuid4()],
        )
        yield


def subjects(events):
    return [each["subject"] for each in events]


def test_a_follower_reads_every_event_once_and_in_order(served, follower):
    made = [cancelled(served, new_batch()) for _ in range(7)]

    assert subjects(follower.read()) == made
    assert follower.read() == []


def test_an_event_that_is_committed_late_is_not_missed(served, follower):
    late, early = new_batch(), new_batch()
    with an_open_event(served, late):
        cancelled(served, early)
        assert subjects(follower.read()) == [], "the early one has the larger key"

    assert subjects(follower.read()) == [late, early]


def test_an_event_that_is_rolled_back_holds_nothing_back(served, follower):
    early = new_batch()
    with an_open_event(served, new_batch()):
        cancelled(served, early)
        assert follower.read() == []
        raise Rollback

    assert subjects(follower.read()) == [early]


def test_a_follower_beside_many_writers_misses_nothing_and_reads_nothing_twice(served, follower):
    batches = [[new_batch() for _ in range(10)] for _ in range(3)]
    writers = [
        threading.Thread(target=lambda mine=mine: [cancelled(served, each) for each in mine])
        for mine in batches
    ]
    wanted, found = {each for mine in batches for each in mine}, []
    for each in writers:
        each.start()

    def all_read():
        found.extend(subjects(follower.read()))
        return len(found) >= len(wanted)

    until(all_read, 60, "every event is read")
    for each in writers:
        each.join()
    found.extend(subjects(follower.read()))

    assert len(found) == len(wanted)
    assert set(found) == wanted


def test_a_delivery_changes_no_event_and_no_order(served, follower):
    made = [cancelled(served, new_batch()) for _ in range(3)]
    relay(served.pool, made[:2], lambda events: None)
    first = follower.read()
    relay(served.pool, made, lambda events: None)

    assert subjects(first) == made
    assert follower.read() == []


def test_events_are_those_that_receivers_get(served, follower, batch_id):
    story.fill(served.lifecycle, batch_id, 2)
    served.lifecycle.complete(batch_id)
    sent = []
    relay(served.pool, [batch_id], sent.extend)

    found = follower.read()

    assert found == sent
    for each in found:
        CloudEvent.model_validate_json(json.dumps(each))


def test_events_of_another_server_come_before_all_others(served, batch_id):
    """A dump brings events whose transactions have numbers that this server has not reached."""
    old = cancelled(served, batch_id)
    with served.pool.connection() as conn:
        conn.execute("UPDATE event_outbox SET xact_id = 2 ^ 40 WHERE batch_id = %s", [old])
    follower = Follower.__new__(Follower)
    follower.served, follower.limit, follower.after = served, 3, None
    page = answer_of(served, "/v1/events?limit=1", "Events")
    follower.after = page["next"]

    rest = follower.read()
    new = cancelled(served, new_batch())

    assert subjects(page["items"]) == [old]
    assert old not in subjects(rest)
    assert subjects(follower.read()) == [new]


def test_a_page_of_large_events_is_shorter(served, follower, monkeypatch):
    monkeypatch.setattr(pages, "EVENT_BYTES", 1_000)
    made = [new_batch() for _ in range(3)]
    for each in made:
        story.register(served.lifecycle, each, 1)
        story.cancel(served.lifecycle, each, reason="x" * 900)

    page = answer_of(served, f"/v1/events?after={urllib.parse.quote(follower.after)}", "Events")

    assert subjects(page["items"]) == made[:1]
    assert page["more"]
    assert subjects(follower.read()) == made


def test_a_refusal_without_a_batch_is_an_event_too(served, follower):
    with served.pool.connection() as conn:
        add(conn, DeadLetter("els.x", str(uuid4()), None, "{}", "C", "m"), announced=True)

    [event] = follower.read()

    assert (event["type"], event["subject"]) == ("MessageRefused", "unknown")


def test_a_page_reads_an_index_and_nothing_else(served):
    with served.pool.connection() as conn, conn.transaction():
        conn.execute("SET LOCAL enable_seqscan = off")
        key = dict(zip(pages.EVENT_KEY, pages.BEFORE_ALL, strict=True))
        plan = conn.execute(
            "EXPLAIN " + pages.PAGE_OF_EVENTS, {**key, "until": 10, "limit": 3}
        ).fetchall()

    lines = "\n".join(row["QUERY PLAN"] for row in plan)
    assert "Index Scan using ix_event_outbox_written" in lines
    assert "Index Cond: ((ROW(xact_id, created_at, sequence, id) >" in lines
    assert "Sort" not in lines


def test_the_reader_of_the_documentation_reads_every_event(served, follower):
    """The block of Python in docs/api.md, which pauses once it has read all."""

    class Paused(Exception):
        pass

    def pause(seconds):
        raise Paused

    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    made, taken, saved = [cancelled(served, new_batch()) for _ in range(3)], [], []
    given = {
        "els": served.url,
        "load": lambda: follower.after,
        "take": taken.append,
        "save": saved.append,
        "time": SimpleNamespace(sleep=pause),
    }

    with pytest.raises(Paused):
        exec(block, given)

    assert subjects(taken) == made
    follower.after = saved[-1]
    assert follower.read() == []


# --- messages and essays --------------------------------------------------------------------------


def test_a_message_has_its_outcome(served, batch_id):
    story.register(served.lifecycle, batch_id, 1)
    with served.pool.connection() as conn:
        row = conn.execute(
            "SELECT key, outcome FROM idempotency_keys WHERE batch_id = %s", [batch_id]
        ).fetchone()

    found = answer_of(served, f"/v1/messages/{row['key']}", "MessageOutcome")

    assert (found["state"], found["task"], found["batch_id"]) == (
        "executed",
        "els.register_batch",
        batch_id,
    )
    assert found["outcome"] == row["outcome"]
    assert found["dead_letters"] == []


@pytest.mark.parametrize("written", [str, lambda u: u.hex, lambda u: f"urn:uuid:{u}"])
def test_a_refused_message_has_its_dead_letters(served, batch_id, written):
    event_id = uuid4()
    body = json.dumps({"event_id": written(event_id), "essay": "secret text"})
    with served.pool.connection() as conn:
        numbers = [
            add(conn, DeadLetter("els.x", str(uuid4()), batch_id, body, code, "m"))
            for code in ("VALIDATION_ERROR", "EXPIRED")
        ]

    found = answer_of(served, f"/v1/messages/{event_id}", "MessageOutcome")

    assert (found["state"], found["batch_id"]) == ("dead_letter", batch_id)
    assert [each["id"] for each in found["dead_letters"]] == numbers[::-1]
    assert "secret" not in json.dumps(found)


def test_an_unknown_message_is_a_problem_that_says_what_to_do(served):
    problem = problem_of(served.get(f"/v1/messages/{uuid4()}"))

    assert problem["type"].endswith(":unknown-message")
    assert "els status" in problem["detail"]


@pytest.mark.parametrize("event_id", ["no-uuid", "0" * 32, "%7B0%7D", "%00"])
def test_what_is_no_uuid_is_a_problem(served, event_id):
    answer = served.get(f"/v1/messages/{event_id}")

    assert problem_of(answer)["status"] in (404, 422)


def test_an_essay_is_found_in_every_batch_that_has_it(served):
    batches = sorted(new_batch() for _ in range(3))
    essay = "essay-" + new_batch()
    for each in batches:
        story.register(served.lifecycle, each, [essay])

    first = answer_of(served, f"/v1/essays/{essay}?limit=2", "EssayInBatches")
    second = answer_of(served, f"/v1/essays/{essay}?after={first['next']}", "EssayInBatches")

    found = [*first["items"], *second["items"]]
    assert [each["batch_id"] for each in found] == batches
    assert second["next"] is None
    assert {each["essay_id"] for each in found} == {essay}


def test_an_unknown_essay_is_a_problem(served):
    assert problem_of(served.get("/v1/essays/nobody-knows-it"))["type"].endswith("unknown-essay")


def test_the_document_has_a_schema_for_every_answer():
    for name in ("Events", "MessageOutcome", "EssayInBatches", "Problem"):
        Draft202012Validator.check_schema(schema_of(name))


def test_whoever_holds_events_back_is_named_with_a_step_that_ends_it(
    served, database_url, batch_id, monkeypatch
):
    monkeypatch.setattr(held_back, "PATIENCE", timedelta(0))
    elsewhere = urllib.parse.urlsplit(database_url)._replace(path="/postgres").geturl()
    other = psycopg.connect(elsewhere, application_name="payroll")
    other.execute("SELECT pg_current_xact_id()")
    cancelled(served, batch_id)
    with served.lifecycle.pool.connection() as conn:
        said, step = held_back.held_back(conn, batch_id)
        conn.execute(step)
        until(lambda: held_back.held_back(conn, batch_id) is None, 10, "nobody holds it back")
    other.close()

    assert "payroll, database postgres" in said
    assert "1 event since" in said
