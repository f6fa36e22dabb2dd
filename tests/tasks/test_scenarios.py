"""`fake_els` of the Python kit has the values and the events of the service."""

import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.catalogue import OPT_IN
from core.events import cloud_event
from core.repairs import RepairContext
from core.settings import Route
from core.sweep import sweep
from tasks import dead_letters, upstream
from tasks import resources as tasks_resources
from tasks.app import app
from tasks.resources import resources
from tests.clients.python.service import FakeService, held
from tests.core import looks
from tests.factories import (
    a_content,
    amendment,
    association,
    cancellation,
    confirmation,
    content,
    contents,
    new_batch,
    now,
    registration,
    rejection,
)
from tests.scenarios import (
    AMEND,
    ASSIGN,
    CANCEL,
    CONFIRM,
    NAMED,
    OTHERWISE,
    REGISTER,
    REJECT,
    UPLOAD,
    Pass,
    Send,
    play,
)


class RealService:
    """The tasks in this process, on the real stores."""

    def __init__(self, conn):
        self.conn, self.letters = conn, []

    def send(self, task, event, task_id):
        named = {"task_id": task_id} if task_id else {}
        value = app.tasks[task].apply(kwargs={"event": event}, **named).get()
        if value["outcome"] == "dead_letter":
            self.letters.append(value["dead_letter"])
        return value

    def advance(self, batch_id, seconds):
        """Move the moments of the batch into the past, and let the sweep look."""
        self.conn.execute(
            "UPDATE batch_essay_trackers SET registered_at = registered_at - d, deadline_at ="
            " deadline_at - d FROM make_interval(secs => %s) AS d WHERE batch_id = %s",
            [seconds, batch_id],
        )
        found = sweep(
            RepairContext(resources().lifecycle, tasks_resources.publish_events), batch_id
        )
        assert found is not None
        assert [each for each in found if not each.mended and each.error] == []

    def slots(self, batch_id):
        rows = looks.essays(self.conn, batch_id).values()
        return {held(row): row["essay_id"] for row in rows if held(row)}

    def events(self, batch_id):
        without = self.conn.execute(
            "SELECT * FROM event_outbox WHERE batch_id IS NULL"
            " AND (data->>'dead_letter')::bigint = ANY(%s) ORDER BY sequence",
            [self.letters],
        ).fetchall()
        of_batch = looks.events(self.conn, batch_id)
        return [cloud_event(row) for row in of_batch], [cloud_event(row) for row in without]


@pytest.fixture(scope="module", params=[frozenset(), OPT_IN], ids=["usual", "asked for all"])
def opt_in(request):
    """Play on a service without routes of opt-in events, and on one with all of them."""
    with pytest.MonkeyPatch.context() as patch:
        routes = {name: [Route(task="receiver.event", queue="receiver")] for name in request.param}
        changed = upstream.settings.model_copy(update={"event_routes": routes})
        for module in (tasks_resources, dead_letters):
            patch.setattr(module, "settings", changed)
        resources().pool.close()
        resources.cache_clear()
        yield request.param
    resources().pool.close()
    resources.cache_clear()


@pytest.mark.parametrize("name", NAMED)
def test_the_fake_plays_it_as_the_service_does(conn, batch_id, opt_in, name):
    steps = NAMED[name](batch_id)

    real = play(steps, RealService(conn), batch_id)
    fake = play(steps, FakeService(*opt_in), batch_id)

    assert fake == real
    assert looks.broken(conn, batch_id) == []


# --- at random ------------------------------------------------------------------------------------

TEXT = st.sampled_from([f"text-{number}" for number in range(1, 6)])
FILE = st.sampled_from(["file-1", "file-2"])
CLASS = "class-1"
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "on_deadline": st.sampled_from(["fail", "proceed"]),
        "student_prompt_ref": st.sampled_from([{}, {"storage_id": "p"}]),
    },
)
TERMS = st.fixed_dictionaries(
    {},
    optional={
        "on_deadline": st.sampled_from(["fail", "proceed"]),
        "student_prompt_ref": st.sampled_from([{}, {"storage_id": "p"}]),
        "deadline_s": st.sampled_from([20, 1000]),
    },
)
OTHER = {  # what makes another message of one: a field, and its value
    REGISTER: {"course_code": "SWE1"},
    ASSIGN: {"text_storage_id": "text-9"},
    UPLOAD: {"contents": [a_content("text-9")]},
    REJECT: {"validation_error_code": "CONTENT_TOO_LONG"},
    AMEND: {"deadline_s": 77},
    CANCEL: {"reason": "another"},
}
ODD = st.sampled_from(
    ["", "två ord", "\0", "\ud800", "x" * 300, -1, 1.5, 2**70, float("nan"), True, [], {}, [[]]]
)
FIELD = st.integers(0, 30)  # of an event, counted round
EARLIER = st.integers(0, 20)  # one of the messages before, if there are as many
MOVES = st.one_of(  # what happens next, and with what
    st.tuples(st.just(REGISTER), OPTIONS),
    st.tuples(st.just(REGISTER), st.sampled_from(OTHERWISE)),
    st.tuples(st.just(ASSIGN), TEXT),
    st.tuples(st.just(ASSIGN), TEXT),
    st.tuples(st.just(UPLOAD), st.lists(TEXT, min_size=1, max_size=4)),
    st.tuples(st.just(REJECT), FILE),
    st.tuples(st.just(CONFIRM), st.lists(TEXT, unique=True, max_size=2)),
    st.tuples(st.just(AMEND), TERMS.filter(bool)),
    st.tuples(st.just(CANCEL), st.none()),
    st.tuples(st.just("pass"), st.sampled_from([10, 30, 101])),
    st.tuples(st.just("deliver again"), EARLIER),
    st.tuples(st.just("send again"), EARLIER),
    st.tuples(st.just("make another of"), EARLIER),
    st.tuples(st.just("spoil"), st.tuples(EARLIER, FIELD, ODD)),
)


def step(batch, name, what, fields):
    """Write one move as a step; `fields` are of every registration."""
    if name == "pass":
        return Pass(what)
    events = {
        REGISTER: lambda: registration(batch, **{**fields, **what}),
        ASSIGN: lambda: content(batch, what),
        UPLOAD: lambda: contents(batch, what),
        REJECT: lambda: rejection(batch, what),
        AMEND: lambda: amendment(batch, **what),
        CANCEL: lambda: cancellation(batch),
        CONFIRM: lambda: students(batch, what),
    }
    return Send(name, events[name]())


def students(batch, texts):
    at = now()

    def event(slot):
        given = {slot(text): f"of {text}" for text in texts}
        told = [association(essay, student, validated_at=at) for essay, student in given.items()]
        return confirmation(batch, told, CLASS, timestamp=at)

    return event


def steps_of(batch, moves, fields):
    taken = []
    for number, (name, what) in enumerate(moves):
        match name, what:
            case "spoil", (earlier, field, value):
                taken += [spoilt(each, field, value) for each in written(taken, earlier)]
            case "deliver again", int():
                taken += written(taken, what)
            case "send again", int():
                taken += [replace(each, task_id=None) for each in written(taken, what)]
            case "make another of", int():
                taken += [
                    replace(each, event=each.event | OTHER[each.task])
                    for each in written(taken, what)
                ]
            case _:
                taken.append(step(batch, name, what, fields))
                if isinstance(taken[-1], Send):
                    taken[-1] = replace(taken[-1], task_id=f"task-{number}")
    return taken


def written(taken, number):
    """List the message of a number, if it is one whose event names no slot."""
    found = [each for each in taken if isinstance(each, Send) and isinstance(each.event, dict)]
    return found[number : number + 1]


def spoilt(message, field, value):
    names = sorted(message.event)
    return replace(message, event=message.event | {names[field % len(names)]: value}, task_id=None)


@settings(max_examples=int(os.environ.get("EXAMPLES", "40")))  # on each of the two services
@given(
    moves=st.lists(MOVES, min_size=3, max_size=14),
    regular=st.booleans(),
    count=st.integers(1, 4),
)
def test_whatever_happens_they_agree(conn, opt_in, moves, regular, count):
    batch_id = new_batch()
    fields = {"essays": count, "deadline_s": 100} | ({"class_id": CLASS} if regular else {})
    steps = steps_of(batch_id, moves, fields)

    real = play(steps, RealService(conn), batch_id)
    fake = play(steps, FakeService(*opt_in), batch_id)

    assert fake == real
