"""JSON Schemas (2020-12) of the tasks' events and of the events that receivers get."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from core.catalogue import EVENTS, TASKS, EventType, Task
from core.errors import ELSError
from ops.reference.event_bodies import BODIES, CloudEvent
from ops.reference.examples import EVENT_EXAMPLES, TASK_EXAMPLES

Schema = dict[str, Any]  # Any: JSON
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class UnknownSchema(ELSError):
    """No task or event has this name."""


def schema(name: str) -> Schema:
    """Return the schema of a task's event, by task, or of an event, by type.

    Raises UnknownSchema, with the nearest name if there is one.
    """
    if name in TASKS:
        return task_schema(TASKS[name])
    if name in EVENTS:
        return event_schema(EVENTS[name])
    near = get_close_matches(name, [*TASKS, *EVENTS], n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    raise UnknownSchema(f"there is no task or event {name}; {meant}`els schema` lists all")


def task_schema(task: Task) -> Schema:
    """Describe the keyword argument `event` of a task. Optional fields may be null."""
    made = of_model(task.model)
    return {
        "$schema": DIALECT,
        "title": task.model.__name__,
        "description": f"{made.pop('description')} The event of {task.name},"
        f" at most {task.limit} bytes of canonical JSON.",
        **made,
        "examples": [TASK_EXAMPLES[task.name]],
    }


def event_schema(event: EventType) -> Schema:
    """Describe an event as receivers get it. It allows unknown fields, which later versions add."""
    envelope, data = _open(of_model(CloudEvent)), _open(of_model(BODIES[event.name]))
    definitions = data.pop("$defs", {})
    envelope["properties"] |= {
        "type": {"const": event.name, "description": "The type of the event."},
        "data": data,
    }
    return {
        "$schema": DIALECT,
        "title": event.name,
        "description": f"{data['description']} Written {event.when}.",
        **{key: value for key, value in envelope.items() if key not in {"title", "description"}},
        **({"$defs": definitions} if definitions else {}),
        "examples": [EVENT_EXAMPLES[event.name]],
    }


def event_faults(event: Mapping[str, Any]) -> list[str]:  # Any: JSON
    """Name the fields in which an event differs from its schema, unknown ones included."""
    found: list[str] = []
    for model, part in ((CloudEvent, event), (BODIES[event["type"]], event["data"])):
        try:
            model.model_validate_json(json.dumps(part))
        except ValidationError as error:
            found += [".".join(map(str, each["loc"])) for each in error.errors()]
    return found


def of_model(model: type[BaseModel]) -> Schema:
    """Return pydantic's schema of a model, without titles."""
    made: Schema = _without_titles(model.model_json_schema())
    return made


def _without_titles(part: Any) -> Any:  # Any: JSON
    """Drop pydantic's titles, which repeat the names, and unfold what docstrings wrap."""
    if isinstance(part, list):
        return [_without_titles(each) for each in part]
    if not isinstance(part, Mapping):
        return part
    kept = {key: value for key, value in part.items() if not _is_title(key, value)}
    return {
        key: " ".join(value.split())
        if key == "description" and isinstance(value, str)
        else _without_titles(value)
        for key, value in kept.items()
    }


def _is_title(key: str, value: object) -> bool:
    return key == "title" and isinstance(value, str)


def _open(part: Any) -> Any:  # Any: JSON
    """Allow unknown fields; an optional field is absent and never null."""
    if isinstance(part, list):
        return [_open(each) for each in part]
    if not isinstance(part, Mapping):
        return part
    opened = {
        key: _open(value)
        for key, value in part.items()
        if not (key == "additionalProperties" and value is False)
        and not (key == "default" and value is None)
    }
    match opened.get("anyOf"):
        case [only, {"type": "null"}]:
            del opened["anyOf"]
            return only | opened
    return opened
