"""What may pass is tried again, for as long as the settings say; then it is kept."""

from uuid import uuid4

import psycopg
import pytest

from core.backoff import LONGEST_WAIT_S, nominal_wait_s, wait_s, waited_s
from core.faults import sqlstate
from tasks.resources import resources
from tests.core import looks
from tests.core.story import texts
from tests.factories import amendment, cancellation, content, contents, registration, rejection

REGISTER, ASSIGN, UPLOAD = "els.register_batch", "els.assign_content", "els.assign_contents"
TASKS = {
    REGISTER: registration,
    ASSIGN: content,
    UPLOAD: lambda b: contents(b, texts(2)),
    "els.reject_content": rejection,
    "els.cancel_batch": cancellation,
    "els.amend_batch": amendment,
}


@pytest.mark.parametrize("task", TASKS)
def test_a_connection_that_the_server_ended_is_tried_again(
    send, conn, batch_id, break_connections, task
):
    if task != REGISTER:
        send(REGISTER, registration(batch_id))
    break_connections()

    value = send(task, TASKS[task](batch_id))

    assert value["outcome"] not in {"dead_letter", "pending"}
    assert looks.broken(conn, batch_id) == []


def test_a_broken_connection_is_replaced_in_place(send, batch_id, break_connections, logged):
    send(REGISTER, registration(batch_id))
    break_connections()

    send(ASSIGN, content(batch_id))

    again = [line for line in logged if line["event"] == "tried_again"]
    assert [(line["log_level"], line["sqlstate"]) for line in again] == [("warning", "57P01")]


def test_slots_that_others_are_claiming_are_waited_for(send, conn, batch_id, claimed_by_another):
    send(REGISTER, registration(batch_id, 1))

    with claimed_by_another(batch_id):
        value = send(ASSIGN, content(batch_id))

    assert value["outcome"] == "assigned"
    assert looks.batch(conn, batch_id)["status"] == "ready_for_pipeline_execution"


def test_a_redis_connection_that_was_ended_is_made_anew(send, batch_id, valkey):
    send(REGISTER, registration(batch_id))
    ours = resources().slots.client.client_id()

    ended = valkey.client_kill_filter(_id=ours)
    value = send(ASSIGN, content(batch_id))

    assert ended == 1
    assert value["outcome"] == "assigned"


def test_a_message_whose_time_is_over_is_kept(
    send, conn, batch_id, dead_letters, impatient, logged
):
    send(REGISTER, registration(batch_id, 1))
    resources().slots.claim({batch_id: ["text-of-another"]})[batch_id]
    event, task_id = content(batch_id), str(uuid4())

    value = send(ASSIGN, event, task_id=task_id)

    assert (value["outcome"], value["code"]) == ("dead_letter", "RETRIES_EXHAUSTED")
    assert len([line for line in logged if line["event"] == "retried"]) == 2  # 0.5 s and 1 s
    (letter,) = dead_letters(task_id)
    assert letter["body"] == event
    assert batch_id in letter["message"]
    assert looks.excess(conn, batch_id) == []


def test_a_refused_content_is_assigned_when_it_is_sent_again(send, conn, batch_id, impatient):
    send(REGISTER, registration(batch_id, 1))
    others = resources().slots.claim({batch_id: ["text-of-another"]})[batch_id]
    event = content(batch_id)
    send(ASSIGN, event)
    resources().slots.release(batch_id, others, still_open=True)

    assert send(ASSIGN, event)["outcome"] == "assigned"


def test_the_sqlstate_is_found_behind_other_errors():
    error = ValueError()
    error.__cause__ = psycopg.errors.DeadlockDetected()

    assert sqlstate(error) == "40P01"
    assert sqlstate(ValueError()) is None


def test_waits_grow_to_their_longest_and_are_jittered():
    nominal = [nominal_wait_s(n) for n in range(8)]

    assert nominal == [0.5, 1, 2, 4, 8, 15, 15, 15]
    assert nominal_wait_s(10_000) == LONGEST_WAIT_S
    assert all(n / 2 <= wait_s(k) <= n for k, n in enumerate(nominal))
    assert len({wait_s(5) for _ in range(10)}) > 1
    assert waited_s(3) == 3.5
