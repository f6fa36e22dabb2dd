"""Every task and event is named in the catalogue, and everything that names one agrees with it."""

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from core.catalogue import BATCHED, EVENTS, OPT_IN, TASKS, event_task
from core.messages import KIB
from core.parsing import parse
from core.settings import Route, Settings
from ops.client import read_events
from ops.reference.event_bodies import BODIES
from tasks import upstream
from tasks.app import QUICK, app
from tests.factories import EXAMPLES

ROOT = Path(__file__).parents[2]
NAMES = TASKS.keys() | EVENTS.keys()
SQL_LITERAL = re.compile(r"'([A-Z][a-z]+(?:[A-Z][a-z]+)+)'")  # in quotes, as BatchEssaysReady


def sources(kind):
    return [path for part in ("core", "tasks") for path in (ROOT / part).rglob(f"*.{kind}")]


def literals(path):
    tree = ast.parse(path.read_text())
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}


def rows(page):
    """Return the cells of the rows of a page's tables that begin with code."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:3] == "| `"]


def test_the_tasks_of_upstream_are_those_of_the_catalogue():
    declared = {name for name, task in app.tasks.items() if task.__module__ == upstream.__name__}

    assert declared == TASKS.keys()


def test_python_names_no_task_and_no_event_by_itself():
    named = {
        (str(path.relative_to(ROOT)), name)
        for path in sources("py")
        if path != ROOT / "core/catalogue.py"
        for name in literals(path) & NAMES
    }

    assert named == set()


def test_receivers_have_a_model_of_each_event():
    assert [*BODIES] == [*EVENTS]


@pytest.mark.parametrize("path", sources("sql") + sources("py"), ids=lambda path: path.name)
def test_statements_name_events_of_the_catalogue(path):
    texts = [path.read_text()] if path.suffix == ".sql" else map(str, literals(path))

    named = {name for text in texts for name in SQL_LITERAL.findall(text)}
    assert {name for name in named if not name.endswith("Lock")} <= EVENTS.keys()  # nor of Postgres


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_each_task_has_a_factory_whose_event_it_takes_and_els_submit_recognises(task):
    event = EXAMPLES[task.name]

    read, idem = parse(task.model, task.name, event, task.limit)

    assert (read.batch_id, idem.task) == (event["batch_id"], task.name)
    assert [found for found, _ in read_events(json.dumps(event))] == [task.name]


def test_workers_take_batched_tasks_several_at_once():
    assert set(BATCHED) <= set(QUICK)


@pytest.mark.parametrize("event_type", EVENTS)
def test_an_event_goes_to_the_task_of_its_name_unless_it_is_opt_in(event_type):
    task = event_task(event_type)

    assert task.replace("_", "") == f"els.events.{event_type.lower()}"
    expected = [] if event_type in OPT_IN else [Route(task=task, queue="els.events")]
    assert Settings().routes(event_type) == expected


def test_the_pages_list_the_tasks_with_their_events_and_limits():
    named = [row for row in rows("tasks.md") if row[0].startswith("`els.") and len(row) == 3]
    listed = {row[0].strip("`"): row[1:] for row in named}

    assert listed == {
        task.name: [f"`{task.model.__name__}`", in_words(task.limit)] for task in TASKS.values()
    }


def test_the_pages_list_each_event_with_its_data_and_with_when_it_is_written():
    listed = [row for row in rows("events.md") if re.match("`[A-Z]", row[0])]

    when = {f"`{e.name}`{' (only where routed)' * e.opt_in}": e.when for e in EVENTS.values()}
    assert Counter(row[0] for row in listed) == dict.fromkeys(when, 2)
    assert dict(row for row in listed if row[1] in when.values()) == when


def in_words(limit):
    return f"{limit // KIB} KiB" if limit < KIB**2 else f"{limit // KIB**2} MiB"
