"""The published schemas accept what the service accepts, and describe what it sends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from core.catalogue import EVENTS, TASKS
from core.errors import Refusal
from core.parsing import parse
from ops.cli.main import app
from ops.reference.__main__ import files
from ops.reference.examples import EVENT_EXAMPLES, TASK_EXAMPLES
from ops.reference.outcomes import CODES
from ops.reference.schemas import event_faults, schema
from tests.core.test_events import BAD, BAD_COMMON, OPTIONAL
from tests.factories import EXAMPLES

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
# What JSON Schema cannot say, or JSON cannot hold: the service refuses it all the same.
UNSAID = {
    "count too low", "count too high", "an essay twice", "NaN in metadata", "infinity in metadata",
    "surrogate in metadata", "surrogate in a key", "bytes in metadata", "a set in metadata",
    "keys that do not sort", "digits without end", "deadline is NaN", "confidence is NaN",
    "surrogate in a file name",
}  # fmt: skip


def fits(name, message):
    validator = Draft202012Validator(
        schema(name), format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    return validator.is_valid(message)


def test_the_files_are_what_the_code_generates():
    there = {str(p.relative_to(REFERENCE)) for p in REFERENCE.rglob("*") if p.is_file()}
    made = files()

    assert there == made.keys()
    stale = [name for name, text in made.items() if (REFERENCE / name).read_text() != text]
    assert stale == [], "run `make reference`"


@pytest.mark.parametrize("name", [*TASKS, *EVENTS])
def test_each_schema_is_one_and_accepts_its_example(name):
    Draft202012Validator.check_schema(schema(name))

    assert fits(name, {**TASK_EXAMPLES, **EVENT_EXAMPLES}[name])


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_service_takes_each_example(task):
    event, _ = parse(task.model, task.name, TASK_EXAMPLES[task.name], task.limit)

    assert event.batch_id == TASK_EXAMPLES[task.name]["batch_id"]


@pytest.mark.parametrize("name", EVENTS)
def test_each_example_of_an_event_is_whole(name):
    assert event_faults(EVENT_EXAMPLES[name]) == []
    assert event_faults(EVENT_EXAMPLES[name] | {"surprise": 1}) != []


@pytest.mark.parametrize("task", TASKS)
def test_a_schema_accepts_what_the_tests_send(task):
    for change in ({}, OPTIONAL[task], dict.fromkeys(OPTIONAL[task], None)):
        taken = {k: v for k, v in change.items() if v is not None or nullable(task, k)}
        assert fits(task, EXAMPLES[task] | taken)


@pytest.mark.parametrize("name", [n for n in BAD if n not in UNSAID and "NUL" not in n])
def test_a_schema_refuses_what_the_service_refuses(name):
    task, change = BAD[name]

    assert not fits(task, EXAMPLES[task] | change)


@pytest.mark.parametrize(
    "name", sorted(BAD_COMMON.keys() - {"timestamp: 30 February"})
)  # no calendar
@pytest.mark.parametrize("task", TASKS)
def test_a_schema_refuses_bad_common_fields(task, name):
    assert not fits(task, EXAMPLES[task] | BAD_COMMON[name])


def test_every_code_of_a_refusal_is_listed():
    raised = {each.code for each in Refusal.__subclasses__()}

    assert raised <= CODES.keys()


def test_els_schema_prints_one_or_lists_all():
    one = CliRunner().invoke(app, ["schema", "els.assign_content"])
    every = CliRunner().invoke(app, ["schema", "--json"])

    assert json.loads(one.stdout) == schema("els.assign_content")
    assert json.loads(every.stdout) == {"tasks": [*TASKS], "events": [*EVENTS]}


def test_els_schema_names_the_nearest():
    ran = subprocess.run(
        [sys.executable, "-m", "ops", "schema", "BatchReady"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 1
    assert "did you mean BatchEssaysReady?" in ran.stderr


def nullable(task, name):
    return {"type": "null"} in schema(task)["properties"][name].get("anyOf", ())
