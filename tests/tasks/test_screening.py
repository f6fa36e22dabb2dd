"""Whatever a sender writes into a message, Celery gets what it can take, or the message is kept."""

import json
import pickle
import re
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from amqp import basic_message, serialization, spec
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Message
from kombu.exceptions import DecodeError

import durable_redis
from tasks import upstream
from tasks.app import app
from tasks.worker import amqp
from tasks.worker.amqp_dropped import why_dropped
from tasks.worker.request import QuietRequest
from tasks.worker.screening import Screen, UnknownTask, unknown_task
from tests.hostile import HEADERS, INFO, PROPERTIES, WRONG, nest

TASK = upstream.ASSIGN_CONTENT.name
CLASS = re.compile(r"\b[A-Z]\w*(Error|Exception)\b")
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
AMQP = st.just(datetime.max.replace(tzinfo=UTC)) | st.just(Decimal("1e-99"))
ANYTHING = st.recursive(
    PLAIN | AMQP | st.sampled_from(list(WRONG.values())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.sampled_from([[[], {"event": {}}, {}], [[], {}, None]]) | ANYTHING
TIMES = st.datetimes(timezones=st.timezones() | st.none()).map(datetime.isoformat)


def taken(headers, properties=None, info=None, body=b'[[], {"event": {}}, {}]'):
    """Take a message as a worker does; return why it is refused, or its request."""
    message = Message(
        body=body,
        headers={"task": TASK, "id": "1", **headers},
        properties=properties,
        delivery_info=info,
        content_type="application/json",
    )
    return screened(message)


def screened(message):
    try:
        if message.errors:
            message._reraise_error()
        Screen(app).check(message)
    except (*durable_redis.MALFORMED, DecodeError) as error:
        return durable_redis.why(error, errors=message.errors)
    return QuietRequest(message, app=app, task=app.tasks[message.headers["task"]], hostname="w")


def assert_is_well(result):
    if isinstance(result, str):
        assert len(result) > 15
        assert not CLASS.search(result), result
    else:
        assert result.info()["id"]
        assert result.eta is None or result.eta.tzinfo
        pickle.dumps(result.request_dict)  # it goes to a process of the pool


@settings(max_examples=300)
@given(
    headers=st.dictionaries(st.sampled_from(HEADERS), ANYTHING | TIMES, max_size=4),
    properties=st.dictionaries(st.sampled_from(PROPERTIES), ANYTHING),
    info=st.dictionaries(st.sampled_from(INFO), ANYTHING),
    call=CALLS,
)
def test_any_message_makes_a_request_or_is_refused_in_words(headers, properties, info, call):
    headers = {name: value for name, value in headers.items() if name != "task"}
    body = json.dumps(call, default=str).encode()

    assert_is_well(taken(headers, properties, info, body))


FROM_A_SENDER = b'[[], {"event": {}}, {}]'
OUR_CALLS = {
    "els.seal_slots": b'[[], {"batches": {"b": ["e1", "e2"]}}, {}]',
    "els.seal_books": b'[[], {"batches": ["b"], "later": 1}, {}]',
    "els.announce_ready": b'[[[{}, {}]], {"batches": ["b"]}, {}]',
    "els.sweep": b"[[], {}, {}]",
    "els.relay": b"[[], {}, {}]",
}


@pytest.mark.parametrize("task", [TASK, "els.seal_slots", "els.sweep"])
@pytest.mark.parametrize("header", sorted({*HEADERS} - {"task"}))
def test_no_wrong_value_of_a_header_raises(task, header):
    for value in WRONG.values():
        call = OUR_CALLS.get(task, FROM_A_SENDER)
        assert_is_well(taken({"task": task, header: value}, body=call))


@pytest.mark.parametrize(
    ("header", "value", "reason"),
    [
        ("eta", "", "header eta: must be an ISO 8601 time from 1970 to 9998"),
        ("expires", 5, "header expires: must be an ISO 8601 time from 1970 to 9998"),
        ("id", "", "header id: must be 1 to 255 printable characters"),
        ("retries", "5", "header retries: must be a whole number"),
        ("task", None, "header task: must be the name of a task"),
        ("timelimit", [1], "header timelimit: must be a list of two times"),
        ("compression", "rot13", "header compression: must be gzip, bzip2 or lzma"),
    ],
)
def test_a_reason_names_the_header_and_what_it_must_be(header, value, reason):
    assert taken({header: value}).startswith(reason)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "it is no JSON: Expecting property name"),
        (b"\xff", "it is no UTF-8: invalid start byte at byte 0"),
        ("[[], {}, {}]".encode("utf-16"), "it is no UTF-8"),
        (b'{"event": {}}', "the body: must be a list of args, kwargs and embed"),
        (b"[null, {}, {}]", "the body args: must be a list"),
        (b"[[], {}, []]", "the body embed: must be an object"),
        (b"[[], {}, {}", "it is no JSON"),
        (b"9" * 5_000, "it holds a number of too many digits"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
    ids=range(9),
)
def test_a_reason_says_what_is_wrong_with_a_body(body, reason):
    assert taken({}, body=body).startswith(reason)


CALLS_OF_NO_SENDER = {
    "els.seal_slots": FROM_A_SENDER,
    "els.seal_books": b'[[], {"batch": "b"}, {}]',
    "els.announce_ready": b"[[], {}, {}]",
    "els.sweep": FROM_A_SENDER,
    "els.relay": FROM_A_SENDER,
    "celery.map": b'[[], {"task": "els.sweep", "it": [[]]}, {}]',
    "celery.backend_cleanup": b"[[], {}, {}]",
}


@pytest.mark.parametrize("task", CALLS_OF_NO_SENDER)
def test_a_senders_call_of_a_task_that_is_not_for_senders_is_refused(task):
    with pytest.raises(UnknownTask, match="the service has no task of this name for senders"):
        taken({"task": task}, body=CALLS_OF_NO_SENDER[task])


@pytest.mark.parametrize("task", OUR_CALLS)
def test_our_own_calls_of_these_tasks_are_taken(task):
    assert taken({"task": task}, body=OUR_CALLS[task]).name == task


@pytest.mark.parametrize("name", ["els.asign_content", "assign_content", "ELS.assign_content"])
def test_the_refusal_of_an_unknown_task_names_the_one_that_may_be_meant(name):
    assert unknown_task(name).endswith("; is els.assign_content meant?")


def test_the_refusal_of_any_other_task_names_those_of_senders():
    assert "els.amend_batch, els.assign_content, " in unknown_task("x" * 1_000_000)


def from_rabbitmq(headers, **properties):
    """Write and read a message as RabbitMQ sends it."""
    headers = {"task": TASK, "id": "1", **headers}
    about = {"content_type": "application/json", **properties}
    sent = basic_message.Message(b"[[], {}, {}]", application_headers=headers, **about)
    written = memoryview(sent._serialize_properties())
    received = basic_message.Message(sent.body)
    received.properties, _ = serialization.PROPERTY_CLASSES[spec.Basic.CLASS_ID](written, 0)
    received.delivery_info = {"exchange": "", "routing_key": "els", "delivery_tag": 1}
    return screened(amqp.Message(received))


@pytest.fixture(scope="module")
def installed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(serialization.PROPERTY_CLASSES, spec.Basic.CLASS_ID, None)
        amqp.install()
        yield


@pytest.mark.parametrize("header", sorted({*HEADERS} - {"task"}))
def test_no_wrong_value_of_a_header_from_rabbitmq_raises(installed, header):
    for value in WRONG.values():
        assert_is_well(from_rabbitmq({header: value}))


UNREADABLE = {
    "no UTF-8": ({}, {"correlation_id": b"\xff\xfe"}),
    "a time beyond all years": ({"eta": datetime.max.replace(tzinfo=UTC)}, {}),
    "a nesting": ({"eta": nest(3_000)}, {}),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_py_amqp_cannot_read_is_refused_in_words(installed, case):
    headers, properties = UNREADABLE[case]
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # of the sender
    try:
        sent = basic_message.Message(b"[]", application_headers=headers, **properties)
        written = memoryview(sent._serialize_properties())
    finally:
        sys.setrecursionlimit(before)

    received = basic_message.Message(b"[]")
    received.properties, _ = serialization.PROPERTY_CLASSES[spec.Basic.CLASS_ID](written, 0)
    received.delivery_info = {}

    assert screened(amqp.Message(received)).startswith(("the headers: must", "header "))


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_rabbitmqs_account_of_a_drop_may_hold_anything(value):
    assert why_dropped({"x-death": value}) == "unknown"
    assert why_dropped({"x-death": [{"reason": value, "queue": value}]}) == "unknown"
