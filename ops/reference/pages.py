"""The pages `docs/reference/tasks.md` and `events.md`: a table of fields and an example of each."""

import json
from collections.abc import Iterator, Mapping

from core.catalogue import EVENTS, TASKS, Task, event_task
from core.messages import IDENTIFIER, NAME, STORAGE_KEY
from ops.reference.event_bodies import CloudEvent
from ops.reference.outcomes import ANY_TASK, CODES, OUTCOMES
from ops.reference.schemas import Schema, event_schema, of_model, task_schema

Schemas = Mapping[str, Schema]
LEAST = ("minimum", "minLength", "minItems")
MOST = ("maximum", "maxLength", "maxItems")
FORMATS = {"uuid": "UUID", "date-time": "RFC 3339, UTC"}
NAMED = {"string": "text"}
KINDS = {IDENTIFIER: "identifier", NAME: "name", STORAGE_KEY: "storage key"}
MADE = "<!-- `make reference` writes this page from the code; change the code. -->"
TASKS_HEAD = f"""{MADE}
# Tasks: fields, outcomes, codes

What upstream services send; [tasks.md](../tasks.md) tells how, and what each leads to. The body
is the keyword argument `event`. An optional field may be absent or `null`; an unknown field is
refused.
`els schema TASK` prints the JSON Schema, which [schemas](schemas) has as a file.

An *identifier* is 1 to 64 of `A` to `Z`, `a` to `z`, `0` to `9`, `_` and `-`. A *name* is 1 to 255
characters without control characters. A *storage key* is 1 to 255 visible ASCII characters.
"""
EVENTS_HEAD = f"""{MADE}
# Events: fields

What downstream services receive; [events.md](../events.md) tells how. An optional field is absent
where it does not apply. Later versions may add fields: accept those that you do not know.
`els schema EVENT` prints the JSON Schema, which [schemas](schemas) has as a file.
"""


def tasks_page() -> str:
    return "\n".join([TASKS_HEAD, *map(_task, TASKS.values()), _codes()])


def events_page() -> str:
    envelope = _table(of_model(CloudEvent))
    head = f"{EVENTS_HEAD}\n## The envelope\n\nA CloudEvents 1.0 object.\n\n{envelope}\n"
    return "\n".join([head, *map(_event, EVENTS)])


def _task(task: Task) -> str:
    schema = task_schema(task)
    rows = "\n".join(
        f"| `{o}` | {fields} | {means} |" for o, fields, means in (*OUTCOMES[task.name], ANY_TASK)
    )
    about = f"`{task.model.__name__}`: {schema['description']}"
    return (
        f"## `{task.name}`\n\n{about}\n\n{_table(schema)}\n\n"
        f"| outcome | with | meaning |\n| --- | --- | --- |\n{rows}\n\n{_example(schema)}"
    )


def _event(name: str) -> str:
    event, schema = EVENTS[name], event_schema(EVENTS[name])
    when = "Only where a route asks for it. " if event.opt_in else ""
    about = f"{schema['description']} {when}By default the task `{event_task(name)}`."
    data = schema["properties"]["data"] | {"$defs": schema.get("$defs", {})}
    return f"## `{name}`\n\n{about}\n\n{_table(data)}\n\n{_example(schema)}"


def _codes() -> str:
    rows = "\n".join(f"| `{code}` | {cause} |" for code, cause in CODES.items())
    return f"## Codes of dead letters\n\n| code | cause |\n| --- | --- |\n{rows}\n"


def _example(schema: Schema) -> str:
    text = json.dumps(schema["examples"][0], indent=2, ensure_ascii=False)
    return f"```json\n{text}\n```\n"


def _table(schema: Schema) -> str:
    head = "| field | type | required | meaning |\n| --- | --- | --- | --- |\n"
    return head + "\n".join(_rows(schema, schema.get("$defs", {}), ""))


def _rows(part: Schema, definitions: Schemas, within: str) -> Iterator[str]:
    for name, field in part.get("properties", {}).items():
        needed = "yes" if name in part.get("required", ()) else "no"
        yield f"| {within}`{name}` | {_type(field, definitions)} | {needed} | {_meaning(field)} |"
        inner = _target(field, definitions)
        if inner.get("type") == "array":
            inner = _target(inner["items"], definitions)
        if "properties" in inner:
            yield from _rows(inner, definitions, f"{within}… ")


def _meaning(field: Schema) -> str:
    default = field.get("default")
    described: str = field.get("description", "")
    return described if default is None else f"{described} Default: `{json.dumps(default)}`."


def _target(field: Schema, definitions: Schemas) -> Schema:
    """Follow a reference; of an optional field, describe what it is when it is not null."""
    match field.get("anyOf"):
        case [only, {"type": "null"}]:
            return _target(only, definitions)
    if "$ref" in field:
        return definitions.get(field["$ref"].rpartition("/")[2], {})
    return field


def _type(field: Schema, definitions: Schemas) -> str:
    found = _target(field, definitions)
    match found:
        case {"enum": values}:
            kind = " or ".join(f"`{each}`" for each in values)
        case {"const": value}:
            kind = f"`{value}`"
        case {"pattern": str(pattern)} if pattern in KINDS:
            return KINDS[pattern]
        case {"format": str(form)}:
            kind = FORMATS[form]
        case {"type": "array", "items": items}:
            kind = f"list of {_type(items, definitions)}"
        case _:
            plain: str = found.get("type", "object")
            kind = NAMED.get(plain, plain)
    return kind + _size(found)


def _size(found: Schema) -> str:
    """Write the limits of a number, of a text's length or of a list's."""
    match [found[n] for n in LEAST if n in found], [found[n] for n in MOST if n in found]:
        case [least], [most] if least == most:
            return f", always {_spaced(least)}"
        case [least], [most]:
            return f", {_spaced(least)} to {_spaced(most)}"
        case [least], []:
            return f", {_spaced(least)} or more"
        case [], [most]:
            return f", at most {_spaced(most)}"
    return ""


def _spaced(number: float) -> str:
    """Write a number with a blank between thousands."""
    return f"{number:,}".replace(",", " ")
