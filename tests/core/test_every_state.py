"""Every state that the constraints allow: each has a cause or is finished, and no repair is worse.

The columns of a tracker that constraints speak of, and its slots, are combined in full. What is
independent of these (deadline, class, events, what waits) is dealt out in turn, so that each meets
each of them many times. Every state is inserted for real; what a constraint refuses is counted.
"""

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import count, product
from random import Random
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb
from structlog.testing import capture_logs

from core.repairs import RepairContext
from core.states import BatchStatus, EssayStatus
from core.sweep import sweep
from ops.explain.explanation import explain
from ops.heartbeat import Heartbeat
from tests.core import looks
from tests.core.test_sweep import TABLES
from tests.factories import new_batch

EXPECTED = 2
SHARDS = 5  # tests that share the states, so that several processes can
LETTERS = {
    "o": EssayStatus.AWAITING_CONTENT,
    "a": EssayStatus.READY_FOR_PROCESSING,
    "f": EssayStatus.CONTENT_INGESTION_FAILED,
    "c": EssayStatus.CANCELLED,
    "x": EssayStatus.CANCELLED,  # with the content that it had
}
SLOTS = ["", "o", "a", "oo", "oa", "of", "aa", "af", "ff", "oc", "ac", "xf", "cc", "ooa", "aaa"]
TRACKERS = {
    "status": list(BatchStatus),
    "available_slots": [0, 1, 2],
    "full_at": [None, "now"],
    "completed_at": [None, "sealed", "unsealed"],
    "ready_at": [None, "now"],
    "closed_at": [None, "now"],
}
COMPLETED, READY = "BatchContentProvisioningCompleted", "BatchEssaysReady"
OTHERS = {
    "deadline": [timedelta(days=1), timedelta(seconds=-1), "infinity", "-infinity"],
    "class_id": [None, "class-1"],
    "on_deadline": ["fail", "proceed"],
    "events": [[], [COMPLETED], [COMPLETED, READY], ["BatchCancelled"], ["BatchReadinessTimeout"]],
    "pending": [False, True],
}
FINISHED = {BatchStatus.TIMED_OUT, BatchStatus.CANCELLED, BatchStatus.CONTENT_INGESTION_FAILED}


@pytest.fixture
def alone(conn, slots):
    """No other batch is there, before and after."""
    conn.execute(f"TRUNCATE {TABLES}")
    yield
    conn.execute(f"TRUNCATE {TABLES}")


def states():
    """Deal out every combination, each with one of the others."""
    others = [dict(zip(OTHERS, each, strict=True)) for each in product(*OTHERS.values())]
    Random(13).shuffle(others)
    number = count()
    for each in product(*TRACKERS.values(), SLOTS):
        *tracker, slots = each
        row = dict(zip(TRACKERS, tracker, strict=True))
        yield {**row, "slots": slots, **others[next(number) % len(others)]}


def insert(conn, state):
    """Insert a batch in this state; None: a constraint refuses it."""
    batch_id = new_batch()
    now = datetime.now(UTC)
    deadline = state["deadline"]
    if isinstance(deadline, timedelta):
        deadline = now + deadline
    row = {
        "batch_id": batch_id,
        "status": state["status"].value,
        "class_id": state["class_id"],
        "user_id": "teacher-1",
        "course_code": "ENG5",
        "correlation_id": uuid4(),
        "expected_count": EXPECTED,
        "available_slots": state["available_slots"],
        "essay_ids_sha256": b"",
        "on_deadline": state["on_deadline"],
        "full_at": state["full_at"] and now,
        "completed_at": state["completed_at"] and now,
        "ready_at": state["ready_at"] and now,
        "closed_at": state["closed_at"] and now,
        "deadline_at": deadline,
        "event_sequence": len(state["events"]),
    }
    essays = [
        {"essay_id": f"essay-{n}", "text_storage_id": f"text-{n}"}
        for n, letter in enumerate(state["slots"])
        if letter in "ax"
    ]
    if state["completed_at"] == "sealed":
        row |= {"provisioned_count": len(essays), "manifest_sha256": looks.manifest(essays)}
    try:
        with conn.transaction():
            conn.execute(
                f"INSERT INTO batch_essay_trackers ({', '.join(row)})"
                f" VALUES ({', '.join(['%s'] * len(row))})",
                list(row.values()),
            )
            for n, letter in enumerate(state["slots"]):
                text = f"text-{n}" if letter in "ax" else None
                conn.execute(
                    "INSERT INTO essay_states (batch_id, essay_id, current_status,"
                    " text_storage_id, file_upload_id, validation_error_code)"
                    " VALUES (%s, %s, %s, %s, %s, %s)",
                    [
                        batch_id,
                        f"essay-{n}",
                        LETTERS[letter],
                        text,
                        f"file-{n}" if letter in "afx" else None,
                        "EMPTY_CONTENT" if letter == "f" else None,
                    ],
                )
            for n, event_type in enumerate(state["events"], start=1):
                data = {"on_deadline": "fail", "provisioned_count": len(essays)}
                conn.execute(
                    "INSERT INTO event_outbox (id, batch_id, type, generation, sequence,"
                    " correlation_id, data, published_at) VALUES"
                    " (gen_random_uuid(), %s, %s, '1', %s, gen_random_uuid(), %s, now())",
                    [
                        batch_id,
                        event_type,
                        n,
                        Jsonb({**data, "manifest_sha256": looks.manifest(essays)}),
                    ],
                )
            if state["pending"]:
                conn.execute(
                    "INSERT INTO batch_pending_content (batch_id, kind, essay_file_id,"
                    " text_storage_id, original_file_name)"
                    " VALUES (%s, 'content', 'file-late', 'text-late', 'a.txt')",
                    [batch_id],
                )
    except (psycopg.errors.CheckViolation, psycopg.errors.NotNullViolation):
        return None
    return batch_id


def unexplained(conn, slots, batches):
    """List the batches that are neither finished nor have a cause."""
    alive = Heartbeat(["worker@one"], datetime.now(UTC), 0)
    found = []
    for batch_id in batches:
        told = explain(conn, slots, batch_id, alive)
        done = (
            told.state == "ready_for_pipeline_execution"
            and not (told.sides["postgres"]["undelivered"])
        )
        if not told.causes and not done:
            found.append(batch_id)
    return found


def contents(conn):
    """Every content that a slot of a batch has."""
    rows = conn.execute(
        "SELECT batch_id, text_storage_id FROM essay_states WHERE text_storage_id IS NOT NULL"
    )
    return {(row["batch_id"], row["text_storage_id"]) for row in rows}


def told_ready(conn):
    rows = conn.execute("SELECT batch_id FROM event_outbox WHERE type = %s", [READY])
    return {row["batch_id"] for row in rows}


def statuses(conn):
    rows = conn.execute("SELECT batch_id, status FROM batch_essay_trackers")
    return {row["batch_id"]: row["status"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_state_has_a_cause_and_no_repair_makes_it_worse(
    alone, lifecycle, conn, slots, monkeypatch, shard
):
    monkeypatch.setattr("core.sweep.PAGE", 10_000)
    for name, value in {"AUDIT_PAGE": 10_000, "COUNTED_SLOTS": 10**6, "DRIFT_PAGE": 10_000}.items():
        monkeypatch.setattr(f"core.checks.{name}", value)
    monkeypatch.setattr("core.checks.RELAY_GRACE", timedelta(0))
    tried = list(states())[shard::SHARDS]
    made = {insert(conn, state): state for state in tried}
    made.pop(None)  # what constraints refused
    assert (len(tried), len(made)) == (6480 // SHARDS, pytest.approx(855 / SHARDS, rel=0.2))
    before, ready = contents(conn), told_ready(conn)

    assert [made[batch_id] for batch_id in unexplained(conn, slots, made)] == []

    with capture_logs():
        rounds = [sweep(RepairContext(lifecycle, lambda events: None)) for _ in range(5)]

    repaired = [Counter(each.rule for each in found if each.mended) for found in rounds]
    last = {each.finding.batch_id: each.rule for each in rounds[-1] if each.mended}
    assert {batch_id: (rule, made[batch_id]) for batch_id, rule in last.items()} == {}, repaired
    assert [made[batch_id] for batch_id in unexplained(conn, slots, made)] == []
    after = statuses(conn)
    assert {b for b in ready if after[b] != "ready_for_pipeline_execution"} == set()
    assert before - contents(conn) == set()
