"""What cannot be carried out is kept whole, with the reason, and changes nothing."""

import base64
import json
from uuid import uuid4

import pytest
import structlog
from celery.app.task import Context

from core.errors import NotExecuted
from tasks import dead_letters as keeping
from tasks.app import app
from tests.core import looks
from tests.core.story import texts
from tests.factories import (
    a_content,
    association,
    cancellation,
    confirmation,
    content,
    contents,
    essay_ids,
    registration,
    rejection,
)

REGISTER, ASSIGN, UPLOAD = "els.register_batch", "els.assign_content", "els.assign_contents"
REJECT, CONFIRM, CANCEL = "els.reject_content", "els.confirm_students", "els.cancel_batch"
TASKS = {
    REGISTER: registration,
    ASSIGN: content,
    UPLOAD: lambda b: contents(b, texts(2)),
    REJECT: rejection,
    CONFIRM: lambda b: confirmation(b, [association("essay-1")]),
    CANCEL: cancellation,
}


def registered(send, batch_id, **fields):
    send(REGISTER, registration(batch_id, 2, **fields))


def ready(send, batch_id):
    registered(send, batch_id)
    send(UPLOAD, contents(batch_id, texts(2)))


def awaiting_students(send, batch_id):
    registered(send, batch_id, class_id="class-1")
    send(UPLOAD, contents(batch_id, texts(2)))


def nothing(send, batch_id):
    pass


REFUSED = {
    "invalid": (nothing, ASSIGN, lambda b: content(b, file_size_bytes=-1), "VALIDATION_ERROR"),
    "other essays": (
        registered,
        REGISTER,
        lambda b: registration(b, 3),
        "REGISTRATION_CONFLICT",
    ),
    "unknown batch": (nothing, CANCEL, cancellation, "UNKNOWN_BATCH"),
    "students of an unknown batch": (nothing, CONFIRM, TASKS[CONFIRM], "UNKNOWN_BATCH"),
    "unknown essay": (awaiting_students, CONFIRM, TASKS[CONFIRM], "UNKNOWN_ESSAY"),
    "ready already": (ready, CANCEL, cancellation, "WRONG_BATCH_STATE"),
    "a guest's students": (
        registered,
        CONFIRM,
        lambda b: confirmation(b, [association(essay_ids(1)[0])]),
        "WRONG_BATCH_STATE",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_message_is_kept_whole_with_its_reason(send, conn, batch_id, dead_letters, case):
    prepare, task, build, code = REFUSED[case]
    prepare(send, batch_id)
    event, task_id = build(batch_id), str(uuid4())
    before = looks.everything(conn, batch_id)

    value = send(task, event, task_id=task_id)

    (letter,) = dead_letters(task_id)
    assert value == {
        "outcome": "dead_letter",
        "batch_id": batch_id,
        "code": code,
        "dead_letter": letter["id"],
        "message": letter["message"],
    }
    assert letter["body"] == event
    expected = (task, batch_id, code, 1, None, None)
    names = ("task", "batch_id", "code", "deliveries", "sqlstate", "replayed_at")
    assert tuple(letter[name] for name in names) == expected
    assert len(letter["message"]) > 20
    assert looks.everything(conn, batch_id) == before


def test_a_conflict_is_kept(send, batch_id, dead_letters):
    registered(send, batch_id)
    event, task_id = content(batch_id), str(uuid4())
    send(ASSIGN, event)

    value = send(ASSIGN, {**event, "text_storage_id": "text-2"}, task_id=task_id)

    assert value["code"] == "IDEMPOTENCY_CONFLICT"
    assert dead_letters(task_id)[0]["body"]["text_storage_id"] == "text-2"


def test_a_dead_letter_may_be_sent_again_when_its_cause_is_mended(send, batch_id):
    event = confirmation(batch_id, [association(essay_ids(1)[0])])
    first = send(CONFIRM, event)
    awaiting_students(send, batch_id)

    again = send(CONFIRM, event)

    assert (first["outcome"], again["outcome"]) == ("dead_letter", "confirmed")


def test_the_same_message_delivered_again_counts_up(send, batch_id, dead_letters):
    event, task_id = cancellation(batch_id), str(uuid4())

    values = [send(CANCEL, event, task_id=task_id) for _ in range(3)]

    assert values == [values[0]] * 3
    (letter,) = dead_letters(task_id)
    assert letter["deliveries"] == 3


def test_another_message_with_the_same_id_is_kept_as_well(send, conn, batch_id):
    task_id = str(uuid4())
    events = [cancellation(batch_id), cancellation(batch_id)]

    numbers = [send(CANCEL, event, task_id=task_id)["dead_letter"] for event in events * 2]

    assert numbers[2:] == numbers[:2]
    rows = conn.execute(
        "SELECT body, deliveries FROM dead_letters WHERE id = ANY(%s) ORDER BY id", [numbers]
    ).fetchall()
    assert [(row["body"], row["deliveries"]) for row in rows] == [(event, 2) for event in events]


SHAPES = {
    "nothing": {},
    "a positional event": {"args": [{"a": 1}]},
    "an event and more": {"kwargs": {"event": {"a": 1}, "more": 1}},
    "another name": {"kwargs": {"evnt": {"a": 1}}},
    "both": {"args": [1], "kwargs": {"event": {"a": 1}}},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("task", TASKS)
def test_a_message_of_another_shape_is_kept(task, dead_letters, shape):
    task_id = str(uuid4())

    value = app.tasks[task].apply(**shape, task_id=task_id).get()

    assert value["code"] == "VALIDATION_ERROR"
    assert "kwargs={'event'" in value["message"]
    (letter,) = dead_letters(task_id)
    assert letter["body"] == {
        "args": shape.get("args", []),
        "kwargs": shape.get("kwargs", {}),
    }


BODIES = {
    "null": None,
    "text": "text",
    "number": 7,
    "list": [1, 2],
    "empty": {},
    "NUL": {"reason": "a\0b"},
    "NUL in a key": {"a\0b": 1},
    "lone surrogate": {"reason": "a\ud800b"},
    "big number": {"n": 10**300},
    "no batch": {"batch_id": None},
    "odd batch": {"batch_id": "'; DROP TABLE dead_letters --"},
    "long batch": {"batch_id": "x" * 65},
    "batch with NUL": {"batch_id": "\0"},
    "batch is a list": {"batch_id": ["b", "c"]},
    "batch is an object": {"batch_id": {"b": 1}},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("task", TASKS)
def test_whatever_json_comes_is_kept_to_the_letter(send, conn, task, body):
    task_id = str(uuid4())

    value = send(task, body, task_id=task_id)

    assert (value["code"], value["batch_id"]) == ("VALIDATION_ERROR", None)
    query = "SELECT body::text AS body, batch_id FROM dead_letters WHERE task_id = %s"
    letter = conn.execute(query, [task_id]).fetchone()
    assert json.loads(letter["body"]) == body
    assert letter["batch_id"] is None


@pytest.mark.parametrize("number", [7, 0, True, 1.5], ids=repr)
def test_a_batch_id_that_is_no_text_is_kept(send, dead_letters, number):
    task_id = str(uuid4())

    value = send(CANCEL, {"batch_id": number}, task_id=task_id)

    assert value["code"] == "VALIDATION_ERROR"
    assert dead_letters(task_id)[0]["body"] == {"batch_id": number}


@pytest.mark.parametrize(
    "depth",
    [
        500,
        900,
        100_000,
    ],
)
def test_a_body_nested_deeply_is_kept(send, dead_letters, depth):
    task_id, body = str(uuid4()), 1
    for _ in range(depth):
        body = [body]

    value = send(CANCEL, {"reason": body}, task_id=task_id)

    assert value["code"] == "VALIDATION_ERROR"
    assert len(dead_letters(task_id)) == 1


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_the_limit_of_the_contract(send, batch_id, task):
    bulk = task in (REGISTER, UPLOAD, CONFIRM)
    limit = (8 * 1024 if bulk else 256) * 1024

    value = send(task, TASKS[task](batch_id) | {"suprise": "x" * limit})
    smaller = send(task, TASKS[task](batch_id) | {"suprise": "x" * (limit - 8_000)})

    assert value["code"] == smaller["code"] == "VALIDATION_ERROR"
    assert str(limit) in value["message"]
    assert "unknown field" in smaller["message"]
    assert "suprise: is an unknown field; is" not in smaller["message"]


def test_a_dead_letter_is_logged_without_what_the_body_says(send, batch_id, logged):
    send(ASSIGN, content(batch_id, original_file_name="Anna Andersson.txt", file_size_bytes=-1))

    (line,) = [line for line in logged if line["event"] == "dead_letter"]
    assert (line["log_level"], line["code"]) == ("error", "VALIDATION_ERROR")
    assert "Anna" not in str(logged)


def test_an_error_of_ours_is_kept_and_raised(send, conn, batch_id, dead_letters):
    task_id, event = str(uuid4()), registration(batch_id, ["essay-with-a-bug"])
    conn.execute(
        "ALTER TABLE essay_states ADD CONSTRAINT ck_essay_states_bug"
        " CHECK (essay_id <> 'essay-with-a-bug') NOT VALID"
    )

    try:
        result = app.tasks[REGISTER].apply(kwargs={"event": event}, task_id=task_id)
    finally:
        conn.execute("ALTER TABLE essay_states DROP CONSTRAINT ck_essay_states_bug")

    assert result.state == "FAILURE"
    (letter,) = dead_letters(task_id)
    assert (letter["code"], letter["sqlstate"]) == ("INTERNAL_ERROR", "23514")
    assert letter["body"] == event
    assert looks.batch(conn, batch_id) is None
    assert send(REGISTER, event)["outcome"] == "registered"


def test_one_bad_content_refuses_the_upload(send, conn, batch_id, dead_letters):
    registered(send, batch_id)
    event, task_id = contents(batch_id, texts(2)), str(uuid4())
    event["contents"].append(a_content("bad", file_size_bytes=-1))

    send(UPLOAD, event, task_id=task_id)

    assert looks.placed(conn, batch_id) == {}
    assert len(dead_letters(task_id)[0]["body"]["contents"]) == 3


def test_no_log_line_and_no_refusal_names_a_person(send, batch_id, logged):
    named = dict.fromkeys(["user_id", "org_id", "class_id", "course_code"], "Åsa")
    of_asa = [association(essay_ids(1)[0], "Åsa", validated_by="Åsa")]
    send(REGISTER, registration(batch_id, 1, **named))
    send(ASSIGN, content(batch_id))

    values = [
        send(CONFIRM, confirmation(batch_id, of_asa, class_id="Åsa too")),
        send(REGISTER, registration(batch_id, 1, user_id="Åsa\n")),
        send(CONFIRM, confirmation(batch_id, of_asa, class_id="Åsa")),
    ]

    assert [value["outcome"] for value in values] == ["dead_letter", "dead_letter", "confirmed"]
    assert "Åsa" not in repr(values)
    assert "Åsa" not in repr(logged)


WITH_A_BATCH = {
    "a positional event": lambda event: {"args": [event]},
    "flat": lambda event: {"kwargs": event},
    "an event and more": lambda event: {"kwargs": {"event": event, "more": 1}},
    "camel case": lambda event: {"kwargs": {"event": {"batchId": event["batch_id"]}}},
    "JSON in a text": lambda event: {"args": [json.dumps(event)]},
}


@pytest.mark.parametrize("shape", WITH_A_BATCH.values(), ids=WITH_A_BATCH.keys())
def test_a_message_of_another_shape_belongs_to_its_batch(batch_id, dead_letters, shape):
    task_id = str(uuid4())

    value = app.tasks[ASSIGN].apply(**shape(content(batch_id)), task_id=task_id).get()

    assert (value["code"], value["batch_id"]) == ("VALIDATION_ERROR", batch_id)
    assert dead_letters(task_id)[0]["batch_id"] == batch_id


@pytest.fixture
def lines(logged):
    """Capture lines with what is bound to them."""
    processors = structlog.get_config()["processors"]
    processors.insert(0, structlog.contextvars.merge_contextvars)
    return logged


def test_a_line_of_a_refused_message_names_no_other_message(send, batch_id, lines):
    other, refused = content(f"other-{batch_id}"), content(batch_id)
    send(ASSIGN, other)
    request = Context(id="1", kwargs={"event": refused})
    letter = keeping.letter_of_call(ASSIGN, request, NotExecuted("late"), "EXPIRED")

    keeping.keep_if_possible(letter)
    send(ASSIGN, other)
    keeping.keep_malformed("els", f"none {batch_id}".encode(), "it is no JSON")

    [kept, malformed] = [line for line in lines if line["event"] == "dead_letter"]
    assert (kept["batch_id"], kept["task"]) == (batch_id, ASSIGN)
    assert "batch_id" not in malformed
    assert not {"correlation_id", "essay_id"} & (kept.keys() | malformed.keys())
    assert structlog.contextvars.get_contextvars() == {}


def test_a_body_that_json_cannot_hold_is_found_by_its_event_id(send, conn, batch_id):
    event = content(batch_id, file_size_bytes=float("nan"))

    value = send(ASSIGN, event)

    query = "SELECT event_id::text, body FROM dead_letters WHERE id = %s"
    letter = conn.execute(query, [value["dead_letter"]]).fetchone()
    assert "NaN" in value["message"]
    assert letter["event_id"] == event["event_id"]
    assert letter["body"]["correlation_id"] == event["correlation_id"]
    assert "nan" in letter["body"]["not_json"]


def test_what_is_sent_beside_the_event_is_named(batch_id):
    kwargs = {"event": content(batch_id), "priority": 1, "Åsa Å": 2}

    value = app.tasks[ASSIGN].apply(args=[1], kwargs=kwargs).get()

    assert "priority, …" in value["message"]
    assert "positional" in value["message"]
    assert "Åsa" not in value["message"]


UNREAD = {
    "headers that are a list": {"headers": [1]},
    "a body that is an object": {"body": {"a": 1}},
    "a body that is no base64": {"body": "***"},
    "no body": {"body": None},
    "a content type that is a list": {"content-type": [1]},
    "a priority that is text": {"properties": {"priority": "x", "body_encoding": "base64"}},
}


@pytest.mark.parametrize("change", UNREAD.values(), ids=UNREAD.keys())
def test_a_malformed_message_keeps_what_of_it_can_be_read(conn, batch_id, change):
    event, task_id = content(batch_id), str(uuid4())
    message = {
        "body": base64.b64encode(json.dumps([[], {"event": event}, {}]).encode()).decode(),
        "content-type": "application/json",
        "headers": {"task": ASSIGN, "id": task_id},
        "properties": {"body_encoding": "base64", "correlation_id": task_id},
        **change,
    }

    assert keeping.keep_malformed("els", json.dumps(message).encode(), "it is wrong")

    query = "SELECT * FROM dead_letters WHERE task_id = %s"
    letter = conn.execute(query, [task_id]).fetchone()
    assert letter["code"] == "MALFORMED_MESSAGE"
    assert letter["task"] == (ASSIGN if "headers" not in change else "unknown")
    if "body" not in change:
        assert (letter["body"], str(letter["event_id"])) == (event, event["event_id"])
    else:
        assert base64.b64decode(letter["body"]["base64"])
