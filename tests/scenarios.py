"""Scenarios that the service and `fake_els` must play alike, and how to compare them.

A scenario is a list of steps on one batch. The service gives a content any open slot, and the fake
the first one: so both are compared up to the names of slots, which are replaced by what they hold.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from els_client.events import CloudEvent, manifest_sha256
from tests.factories import (
    a_content,
    amendment,
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
AMEND = "els.amend_batch"
DAY = 86_400
IDS = ("event_id", "correlation_id")


@dataclass(frozen=True)
class Send:
    """A message. `event` may be a function of the slots by what they hold: `slot("text-1")`."""

    task: str
    event: Any
    task_id: str | None = None  # the same: the message is delivered again


@dataclass(frozen=True)
class Pass:
    """Time passes, and deadlines have their effects."""

    seconds: float


Step = Send | Pass
NAMED: dict[str, Callable[[str], list[Step]]] = {}


def scenario(steps):
    NAMED[steps.__name__] = steps
    return steps


def texts(count, start=1):
    return [f"text-{number}" for number in range(start, start + count)]


def fill(batch, count):
    return [Send(ASSIGN, content(batch, text)) for text in texts(count)]


def twice(steps):
    return [*steps, *steps]


# --- guest batches --------------------------------------------------------------------------------


@scenario
def a_guest_batch(batch):
    return [Send(REGISTER, registration(batch, 3, metadata={"ö": [1]})), *fill(batch, 3)]


@scenario
def a_batch_with_a_rejected_file(batch):
    detail = {"limit": 50, "åäö": None}
    bad = rejection(batch, "file-9", validation_error_detail=detail, file_size_bytes=3)
    return [Send(REGISTER, registration(batch, 3)), Send(REJECT, bad), *fill(batch, 2)]


@scenario
def every_file_rejected(batch):
    return [
        Send(REGISTER, registration(batch, 2)),
        Send(REJECT, rejection(batch, "file-1")),
        Send(REJECT, rejection(batch, "file-2", validation_error_code="CONTENT_TOO_LONG")),
        Send(ASSIGN, content(batch, "text-1")),
    ]


@scenario
def contents_before_the_registration(batch):
    return [
        *fill(batch, 2),
        Send(ASSIGN, content(batch, "text-1")),
        Send(REJECT, rejection(batch)),
        Send(REGISTER, registration(batch, 4)),
        Send(ASSIGN, content(batch, "text-1")),
        Send(ASSIGN, content(batch, "text-4")),
    ]


@scenario
def more_waits_than_there_are_slots(batch):
    return [
        *fill(batch, 4),
        Send(REJECT, rejection(batch)),
        Send(REGISTER, registration(batch, 3)),
        Send(ASSIGN, content(batch, "text-4")),
        Send(REJECT, rejection(batch)),
    ]


@scenario
def excess(batch):
    again = content(batch, "text-9")
    return [
        Send(REGISTER, registration(batch, 1)),
        *fill(batch, 1),
        *twice([Send(ASSIGN, again)]),
        Send(ASSIGN, content(batch, "text-9")),
        Send(REJECT, rejection(batch)),
        Send(UPLOAD, contents(batch, ["text-9", "text-8", "text-1"])),
    ]


@scenario
def an_upload(batch):
    return [
        Send(REGISTER, registration(batch, 4)),
        *fill(batch, 1),
        Send(UPLOAD, contents(batch, ["text-1", "text-2", "text-3", "text-2"])),
        Send(UPLOAD, contents(batch, ["text-3", "text-4", "text-5", "text-6"])),
    ]


@scenario
def an_upload_before_the_registration(batch):
    upload = contents(batch, texts(3))
    return [Send(UPLOAD, upload), Send(REGISTER, registration(batch, 2)), Send(UPLOAD, upload)]


@scenario
def every_message_twice(batch):
    return twice(
        [
            Send(ASSIGN, content(batch, "text-1")),
            Send(REGISTER, registration(batch, 3)),
            Send(REJECT, rejection(batch)),
            Send(UPLOAD, contents(batch, ["text-2", "text-3"])),
        ]
    )


@scenario
def large_objects(batch):
    large = {"student_prompt_ref": {"p": "x" * 300_000}, "metadata": {"m": "y" * 310_000}}
    return [Send(REGISTER, registration(batch, 2, **large)), *fill(batch, 2)]


@scenario
def names_to_the_letter(batch):
    fields = {"user_id": "lärare_åsa_123", "org_id": "A\u030a", "course_language": "sv"}
    odd = content(batch, "a/b=c:1", original_file_name="Uppsats 📝 \u2028.docx")
    return [Send(REGISTER, registration(batch, ["B", "a", "_", "-"], **fields)), Send(ASSIGN, odd)]


# --- regular batches ------------------------------------------------------------------------------


def regular(batch, count=2, **fields):
    return [Send(REGISTER, registration(batch, count, class_id="class-1", **fields))]


def confirms(batch, *students, **fields):
    """Confirm the students of texts: `confirms(batch, ("text-1", "student-1"))`."""

    def event(slot):
        given = [association(slot(text), student) for text, student in students]
        return confirmation(batch, given, **fields)

    return Send(CONFIRM, event)


BOTH = ("text-1", "student-1"), ("text-2", None)


@scenario
def a_regular_batch(batch):
    prompt = {"student_prompt_ref": {"storage_id": "p"}, "org_id": "org-1"}
    confirmed = confirms(batch, *BOTH)
    return [
        *regular(batch, **prompt),
        *fill(batch, 2),
        confirmed,
        confirmed,
        confirms(batch, *BOTH),
    ]


@scenario
def other_students_once_it_is_ready(batch):
    return [
        *regular(batch),
        *fill(batch, 2),
        confirms(batch, *BOTH),
        confirms(batch, ("text-1", "student-9")),
    ]


@scenario
def students_of_a_rejected_file_too(batch):
    rejected = Send(REJECT, rejection(batch))
    students = ("rejected file-1", "student-2"), ("text-1", "student-1")
    return [*regular(batch), rejected, *fill(batch, 1), confirms(batch, *students)]


@scenario
def students_too_early(batch):
    early = Send(CONFIRM, confirmation(batch, [association(essay) for essay in essay_ids(2)]))
    return [early, *regular(batch), early, *fill(batch, 1), early, *fill(batch, 2), early]


@scenario
def students_of_nobody(batch):
    unknown = confirmation(batch, [association("essay-9"), association("essay-8")])
    return [
        *regular(batch),
        *fill(batch, 2),
        Send(CONFIRM, unknown),
        confirms(batch, class_id="class-2"),
        confirms(batch),
    ]


@scenario
def a_regular_batch_without_an_essay(batch):
    rejected = [Send(REJECT, rejection(batch, file)) for file in ("file-1", "file-2")]
    return [*regular(batch), *rejected, confirms(batch)]


@scenario
def students_of_a_guest_batch(batch):
    return [Send(REGISTER, registration(batch, 1)), *fill(batch, 1), confirms(batch)]


# --- registered again, amended, cancelled ---------------------------------------------------------

OTHERWISE = [
    {"user_id": "teacher-2"},
    {"course_code": "SWE1"},
    {"class_id": "class-9"},
    {"org_id": "org-9"},
    {"course_language": "sv"},
    {"metadata": {"a": True}},
    {"student_prompt_ref": {}},
    {"deadline_s": 60},
    {"on_deadline": "proceed"},
    {"on_deadline": "proceed", "deadline_s": 60},
    {"on_deadline": "proceed", "user_id": "teacher-2"},
]


@scenario
def registered_again(batch):
    first = {"metadata": {"a": 1}, "deadline_s": 3600}
    others = [Send(REGISTER, registration(batch, 3, **fields)) for fields in OTHERWISE]
    return [
        Send(REGISTER, registration(batch, 3, **first)),
        Send(REGISTER, registration(batch, 3)),
        Send(REGISTER, registration(batch, essay_ids(3)[::-1], metadata={"a": 1.0}, org_id=None)),
        Send(REGISTER, registration(batch, 2)),
        *others,
        *fill(batch, 3),
        Send(REGISTER, registration(batch, 3)),
        Send(REGISTER, registration(batch, 3, deadline_s=7)),
    ]


@scenario
def amended(batch):
    change = amendment(batch, student_prompt_ref={"storage_id": "new"}, deadline_s=50)
    return [
        Send(AMEND, change),
        Send(REGISTER, registration(batch, 2, student_prompt_ref={"storage_id": "old"})),
        *twice([Send(AMEND, change)]),
        Send(AMEND, {**change, "deadline_s": 51}),
        Send(REGISTER, registration(batch, 2, student_prompt_ref={}, deadline_s=9)),
        Send(REGISTER, registration(batch, 2, user_id="x", student_prompt_ref={}, deadline_s=9)),
        *fill(batch, 2),
        Send(AMEND, amendment(batch)),
    ]


@scenario
def an_amended_deadline(batch):
    return [
        Send(REGISTER, registration(batch, 2, deadline_s=100)),
        Send(AMEND, amendment(batch, deadline_s=1000, on_deadline="proceed")),
        Pass(500),
        *fill(batch, 1),
        Pass(600),
        Send(AMEND, amendment(batch)),
    ]


@scenario
def cancelled(batch):
    gone = Send(CANCEL, cancellation(batch))
    return [
        gone,
        Send(REGISTER, registration(batch, 3)),
        *fill(batch, 1),
        Send(REJECT, rejection(batch)),
        gone,
        gone,
        Send(CANCEL, cancellation(batch, "again")),
        Send(ASSIGN, content(batch, "text-1")),
        *twice([Send(ASSIGN, content(batch, "text-2"))]),
        Send(ASSIGN, content(batch, "text-2")),
        Send(UPLOAD, contents(batch, texts(3))),
        Send(REJECT, rejection(batch)),
        Send(REJECT, rejection(batch, "file-2")),
        Send(REGISTER, registration(batch, 3, deadline_s=5)),
        Send(AMEND, amendment(batch)),
        Pass(DAY * 2),
    ]


@scenario
def cancelled_too_late(batch):
    return [
        Send(REGISTER, registration(batch, 1)),
        *fill(batch, 1),
        Send(CANCEL, cancellation(batch)),
    ]


@scenario
def cancelled_while_it_awaits_students(batch):
    late = confirms(batch, ("text-1", "student-1"))
    return [*regular(batch), *fill(batch, 2), Send(CANCEL, cancellation(batch)), late]


@scenario
def excess_and_then_cancelled(batch):
    return [
        *regular(batch, 1),
        *fill(batch, 2),
        Send(CANCEL, cancellation(batch)),
        *fill(batch, 3),
    ]


# --- deadlines ------------------------------------------------------------------------------------


def partly(batch, **fields):
    return [
        Send(REGISTER, registration(batch, 4, deadline_s=100, **fields)),
        *fill(batch, 1),
        Send(REJECT, rejection(batch)),
        Pass(60),  # a busy machine takes its time between the steps
        Send(ASSIGN, content(batch, "text-2")),
        Pass(50),
    ]


@scenario
def a_deadline_that_fails(batch):
    late = [Send(ASSIGN, content(batch, "text-9")), Send(ASSIGN, content(batch, "text-1"))]
    return [*partly(batch), *late, Send(CANCEL, cancellation(batch)), Pass(DAY)]


@scenario
def a_deadline_that_proceeds(batch):
    late = [Send(ASSIGN, content(batch, "text-9")), Send(REJECT, rejection(batch))]
    return [*partly(batch, on_deadline="proceed"), *late, Pass(DAY)]


@scenario
def a_deadline_with_nothing(batch):
    return [Send(REGISTER, registration(batch, 2, on_deadline="proceed")), Pass(DAY + 1)]


@scenario
def a_deadline_that_a_full_batch_has_met(batch):
    return [Send(REGISTER, registration(batch, 1, deadline_s=10)), *fill(batch, 1), Pass(11)]


@scenario
def students_after_a_deadline(batch):
    proceeds = partly(batch, on_deadline="proceed", class_id="class-1")
    return [*proceeds, confirms(batch, ("text-1", "student-1"))]


@scenario
def students_never_come(batch):
    return [
        *regular(batch, deadline_s=100),
        Pass(50),
        *fill(batch, 2),
        Pass(60),
        Pass(50),
        Pass(200),
    ]


@scenario
def students_never_come_and_it_proceeds(batch):
    given = {"deadline_s": 100, "on_deadline": "proceed"}
    late = confirms(batch, ("text-1", "student-1"))
    return [*regular(batch, **given), *fill(batch, 2), Pass(101), late]


@scenario
def two_deadlines(batch):
    proceeds = partly(batch, on_deadline="proceed", class_id="class-1")
    return [*proceeds, Pass(60), Pass(50), confirms(batch)]


# --- refusals -------------------------------------------------------------------------------------


@scenario
def bad_bodies(batch):
    good = content(batch)
    bad = [
        {**good, "file_size_bytes": -1},
        {**good, "surprise": 1, "original_file_nam": "x"},
        {**good, "batch_id": "two words"},
        {**good, "event_id": "none"},
        {**good, "text_storage_id": "two words"},
        {key: value for key, value in good.items() if key != "timestamp"},
        {**good, "original_file_name": "x" * 300_000},
        {},
        None,
        "text",
        [good],
        {**{key: value for key, value in good.items() if key != "batch_id"}, "batchId": batch},
        {"batch": {"id": batch}},
        {**good, "batch_id": float("nan")},
        {**good, "correlation_id": good["correlation_id"].upper(), "file_size_bytes": -1},
    ]
    before = [Send(ASSIGN, body) for body in bad]
    return [*before, Send(REGISTER, registration(batch, 1)), *before, Send(ASSIGN, good)]


@scenario
def an_event_id_with_another_body(batch):
    first = content(batch, "text-1")
    return [
        Send(REGISTER, registration(batch, 2)),
        Send(ASSIGN, first),
        Send(ASSIGN, {**first, "timestamp": "2026-01-01T00:00:00Z"}),
        Send(ASSIGN, {**first, "text_storage_id": "text-2"}),
        Send(REJECT, rejection(batch, event_id=first["event_id"])),
        Send(UPLOAD, contents(batch, ["text-1"], event_id=first["event_id"])),
        Send(ASSIGN, content(batch, "text-2")),
    ]


@scenario
def a_refused_message_that_is_delivered_again(batch):
    gone, other = cancellation(batch), cancellation(batch, "another")
    redelivered = [
        Send(CANCEL, gone, "task-1"),
        Send(CANCEL, gone, "task-1"),
        Send(CANCEL, other, "task-1"),
        Send(CANCEL, gone, "task-2"),
    ]
    return [*redelivered, Send(REGISTER, registration(batch, 1)), Send(CANCEL, gone, "task-1")]


@scenario
def one_content_of_an_upload_is_bad(batch):
    upload = contents(batch, ["text-1"])
    upload["contents"].append(a_content("text 2"))
    return [Send(REGISTER, registration(batch, 2)), Send(UPLOAD, upload)]


# --- to play and compare --------------------------------------------------------------------------


def play(steps, service, batch_id):
    """Play a scenario; return what can be compared: each value, and the events that were written.

    `service` has `send(task, event, task_id)`, `advance(batch_id, seconds)`, `slots(batch_id)` (by
    what they hold) and `events(batch_id)`: those of the batch, and the refusals of no batch.
    """
    values = []
    for step in steps:
        match step:
            case Pass(seconds):
                service.advance(batch_id, seconds)
            case Send(task, event, task_id):
                body = event
                if callable(event):
                    first = f"{batch_id} {steps.index(step)}"  # of the step: later ones repeat it
                    body = _with_slots(event, service.slots(batch_id), first)
                values.append(service.send(task, body, task_id and f"{batch_id} {task_id}"))
    names = {essay: held for held, essay in service.slots(batch_id).items()}
    of_batch, of_none = service.events(batch_id)
    assert [event["sequence"] for event in of_batch] == [*range(1, len(of_batch) + 1)]
    for event in of_none:
        assert event["sequence"] == event["data"]["dead_letter"]
    return (
        [_named(value, names) for value in values],
        _sorted_runs([_comparable(event, names) for event in of_batch]),
        [_comparable(event, names) for event in of_none],
    )


def _with_slots(event, slots, seed):
    """Write an event that names slots; its id is the same wherever it is played."""
    body = event(lambda held: slots.get(held, "no-slot"))
    ids = {name: str(uuid5(UUID(int=0), f"{name} {seed}")) for name in IDS}
    return {**body, **ids}


def _sorted_runs(events):
    """Sort events of slots that follow one another: slots have no order of their own."""
    runs = itertools.groupby(events, lambda event: event["type"] == "EssaySlotAssigned")
    return [each for slots, run in runs for each in (sorted(run, key=str) if slots else run)]


def _comparable(event, names):
    """Write an event without what may differ: moments, numbers of letters, names of slots."""
    CloudEvent.model_validate(event)
    data = event["data"]
    for name in ("essays", "ready_essays"):
        essays = data.get(name, [])
        assert essays == sorted(essays, key=lambda essay: essay["essay_id"])
        if name in data and "manifest_sha256" in data:
            assert manifest_sha256(essays) == data["manifest_sha256"]
    without = {"time", "sequence"} | ({"id"} if event["type"] == "MessageRefused" else set())
    return _named({key: event[key] for key in event.keys() - without}, names)


def _named(part, names, key=None):
    """Replace slots by what they hold, and sort lists by it."""
    match part:
        case dict():
            return {name: _named(value, names, name) for name, value in sorted(part.items())}
        case list():
            return sorted((_named(each, names, key) for each in part), key=json.dumps)
        case str() if key in ("essay_id", "missing_essay_ids"):
            return names.get(part, "an open slot")
        case _ if key in ("failed_at", "waited_s", "manifest_sha256", "dead_letter"):
            return f"a value of {key}"
    return part
