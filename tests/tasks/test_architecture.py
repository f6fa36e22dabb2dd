"""docs/architecture.md is so: the journeys are run, and the diagram is walked."""

import re
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from core.states import BatchStatus
from tasks import completion
from tasks.app import app
from tasks.worker.batching import run_batch
from tests.core import looks
from tests.core.story import assign, cancel, confirm, register, reject, texts
from tests.factories import content, new_batch, registration
from tests.tasks.conftest import ASSIGN, call

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
OURS = re.compile(r"(core|tasks)\.")


def journey(name):
    """List the functions that a journey of the page names, in order."""
    listed = PAGE.split(f"<!-- journey: {name} -->\n")[1].split("\n\n")[0]
    return [each for line in listed.splitlines() for each in re.findall(r"`((?:\w+\.)+\w+)`", line)]


def code_of(name):
    """Return the code of a function by its dotted name."""
    parts = name.split(".")
    lengths = range(len(parts), 0, -1)
    cut = next(n for n in lengths if Path(*parts[:n]).with_suffix(".py").exists())
    found = import_module(".".join(parts[:cut]))
    for part in parts[cut:]:
        found = getattr(found, part)
    return getattr(found, "run", found).__code__


@contextmanager
def stacks_at(name):
    """Record our frames below each call of a function, the outermost first."""
    code, seen = code_of(name), []

    def profile(frame, event, _):
        if event == "call" and frame.f_code is code:
            names = []
            while frame is not None:
                names.append(f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}")
                frame = frame.f_back
            seen.append([each for each in reversed(names) if OURS.match(each)])

    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("name", re.findall(r"<!-- journey: (.*) -->", PAGE))
def test_every_function_of_a_journey_exists(name):
    assert [code_of(each).co_qualname.split(".")[-1] for each in journey(name)] == [
        each.split(".")[-1] for each in journey(name)
    ]


def test_one_message_takes_the_frames_of_the_page(send, batch_id):
    send("els.register_batch", registration(batch_id, 2))

    with stacks_at("core.db.slots.place") as stacks:
        send(ASSIGN, content(batch_id, "text-1"))

    [stack] = stacks
    assert stack == journey("one message")


def test_many_messages_take_the_frames_of_the_page(send, batch_id):
    send("els.register_batch", registration(batch_id, 5))

    with stacks_at("core.db.slots.place") as stacks:
        run_batch([call(content(batch_id, text)) for text in texts(3)])

    [stack] = stacks
    assert stack == journey("many messages")


def test_one_batch_takes_the_calls_of_the_page(send, batch_id):
    send("els.register_batch", registration(batch_id, 1))
    named = journey("one batch")

    with stacks_at(named[-1]) as stacks:
        send(ASSIGN, content(batch_id, "text-1"))

    [stack] = stacks
    headers = {completion.seal_slots.name, completion.seal_books.name}
    assert headers <= app.tasks.keys()
    assert [each for each in stack if each in named] == [n for n in named if "seal_" not in n]


# --- the diagram -------------------------------------------------------------------------------


def edges():
    body = PAGE.split("stateDiagram-v2\n")[1].split("```")[0]
    return {
        tuple(re.findall(r"[\w\[\]*]+", line.split(":")[0])) for line in body.splitlines() if line
    }


def complete(lifecycle, batch_id):
    lifecycle.complete(batch_id)


def pass_deadline(lifecycle, batch_id):
    with lifecycle.pool.connection() as conn:
        conn.execute(
            "UPDATE batch_essay_trackers SET deadline_at = now() - interval '1 s'"
            " WHERE batch_id = %s",
            [batch_id],
        )
    lifecycle.time_out(batch_id)


def fill(lifecycle, batch_id):
    assign(lifecycle, batch_id, "text-1")


STORIES = {
    "guest": ({}, [fill, complete]),
    "regular": ({"class_id": "class-1"}, [fill, complete, lambda *s: confirm(*s, {})]),
    "failed": ({}, [lambda *s: reject(*s, "file-1"), complete]),
    "late": ({}, [pass_deadline]),
    "given up": ({}, [cancel]),
    "no teacher": ({"class_id": "class-1"}, [fill, complete, pass_deadline]),
    "proceeds": (
        {"class_id": "class-1", "on_deadline": "proceed"},
        [fill, complete, pass_deadline],
    ),
    "given up late": ({"class_id": "class-1"}, [fill, complete, cancel]),
}


def test_the_diagram_shows_every_change_of_state_and_no_other(lifecycle, conn):
    walked = set()
    for fields, steps in STORIES.values():
        batch_id = new_batch()
        register(lifecycle, batch_id, 1, **fields)
        states = ["[*]", looks.batch(conn, batch_id)["status"]]
        for step in steps:
            step(lifecycle, batch_id)
            states.append(looks.batch(conn, batch_id)["status"])
        states = [s for n, s in enumerate(states) if n == 0 or s != states[n - 1]]
        walked |= set(zip(states, [*states[1:], "[*]"], strict=True))

    assert walked == edges()
    assert {state for edge in edges() for state in edge} - {"[*]"} == set(BatchStatus)
