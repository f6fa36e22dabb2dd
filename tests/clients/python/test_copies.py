"""The kit shares models and rules with the service, and nothing of it can drift away."""

import inspect
import json
from pathlib import Path

import pytest

from els_client import Upstream, correlation_id, event_id
from els_client._service.catalogue import EVENTS, TASKS
from els_client.events import TASKS_BY_TYPE, read_event
from ops.reference.examples import EVENT_EXAMPLES, TASK_EXAMPLES
from ops.reference.python_kit import FOLDER, files

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text())
COMMON = {"event_id", "correlation_id", "timestamp", "schema_version", "batch_id"}
FROM_THE_IDS = {"expected_essay_count"}


def test_the_copies_are_what_the_code_generates():
    there = {path.name for path in FOLDER.glob("*.py")}
    made = files()

    assert there == made.keys()
    stale = [name for name, text in made.items() if (FOLDER / name).read_text() != text]
    assert stale == [], "run `make reference`"


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_each_task_is_a_method_with_its_fields(task):
    method = getattr(Upstream, task.name.removeprefix("els."))

    parameters = inspect.signature(method).parameters
    assert parameters.keys() - {"self"} - COMMON == (
        task.model.model_fields.keys() - COMMON - FROM_THE_IDS
    )
    assert {"batch_id", "correlation_id", "event_id"} <= parameters.keys()
    for name, parameter in parameters.items():
        if name in task.model.model_fields and name not in COMMON | {"timeout_triggered"}:
            required = parameter.default is inspect.Parameter.empty
            assert required == task.model.model_fields[name].is_required(), name


@pytest.mark.parametrize("name", EVENTS)
def test_each_event_is_read_with_fields_that_a_later_release_adds(name):
    event = EVENT_EXAMPLES[name]
    newer = {**event, "later": 1, "data": {**event["data"], "later": {"a": 1}}}

    read = read_event(newer)

    assert type(read.body).__name__ == name
    assert str(read.envelope.id) == event["id"]
    assert read.body == read_event(event).body
    assert read.envelope.data["later"] == {"a": 1}
    assert TASKS_BY_TYPE[name].startswith("els.events.")


def test_an_event_of_a_later_release_has_no_body():
    read = read_event(EVENT_EXAMPLES["BatchCancelled"] | {"type": "BatchReopened"})

    assert read.body is None
    assert read.envelope.type == "BatchReopened"


# --- ids ------------------------------------------------------------------------------------------

ASSIGN, EXAMPLE = "els.assign_content", TASK_EXAMPLES["els.assign_content"]


def test_an_id_is_always_the_same():
    """The rule is public: another release, or another language, computes the same."""
    assert str(event_id(ASSIGN, EXAMPLE)) == "b1f8b595-17d7-507c-970a-1126a15a6993"
    assert str(correlation_id("batch-1")) == "9846dca9-ce31-50a0-9cd5-6961ed375d17"


@pytest.mark.parametrize("vector", VECTORS["event_ids"], ids=lambda vector: vector["case"])
def test_an_id_is_that_of_the_other_kits(vector):
    assert str(event_id(vector["task"], vector["event"])) == vector["event_id"]


@pytest.mark.parametrize("change", [{"timestamp": "later"}, {"event_id": "another"}])
def test_what_the_service_does_not_compare_changes_no_id(change):
    assert event_id(ASSIGN, EXAMPLE | change) == event_id(ASSIGN, EXAMPLE)


def test_the_order_of_keys_changes_no_id():
    assert event_id(ASSIGN, dict(reversed(EXAMPLE.items()))) == event_id(ASSIGN, EXAMPLE)


@pytest.mark.parametrize("name", sorted(EXAMPLE.keys() - {"timestamp", "event_id"}))
def test_any_other_difference_makes_another_id(name):
    assert event_id(ASSIGN, EXAMPLE | {name: "other"}) != event_id(ASSIGN, EXAMPLE)
    assert event_id("els.reject_content", EXAMPLE) != event_id(ASSIGN, EXAMPLE)
