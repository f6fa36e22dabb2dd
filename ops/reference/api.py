"""The page `docs/reference/api.md`: each address of the read API, from its OpenAPI document."""

import json
from typing import Any

from ops.reference.pages import MADE
from ops.web.api.openapi import openapi

Json = dict[str, Any]  # Any: JSON
HEAD = f"""{MADE}
# The read API: addresses, parameters, answers

[api.md](../api.md) tells how to use it. `/v1/openapi.json` serves the OpenAPI document, which
[openapi.json](openapi.json) has as a file.
"""


def api_page() -> str:
    document = openapi()
    paths = [_address(path, each["get"]) for path, each in document["paths"].items()]
    models = [_model(name, each) for name, each in _schemas().items() if "properties" in each]
    return "\n".join([HEAD, *paths, "## Models\n", *models])


def _address(path: str, operation: Json) -> str:
    parameters = operation.get("parameters", [])
    rows = [
        f"| `{each['name']}` | {each['in']} | {_kind(each['schema'])} | {each['description']} |"
        for each in parameters
    ]
    table = "\n".join(["| parameter | in | value | meaning |", "| --- | --- | --- | --- |", *rows])
    answers = "\n".join(
        f"- {status}: {answer['description']}{_answer(answer)}"
        for status, answer in operation["responses"].items()
    )
    return "\n\n".join(
        [f"## `GET {path}`", operation["summary"] + ".", *([table] if rows else []), answers, ""]
    )


def _answer(answer: Json) -> str:
    [schema] = [each["schema"] for each in answer.get("content", {}).values()] or [{}]
    return f" ([`{_name(schema)}`](#{_name(schema).lower()}))" if "$ref" in schema else ""


def _model(name: str, schema: Json) -> str:
    rows = [
        f"| `{field}` | {_kind(each)} | {each.get('description', '')} |"
        for field, each in schema["properties"].items()
    ]
    table = "\n".join(["| field | value | meaning |", "| --- | --- | --- |", *rows])
    return f"### {name}\n\n{schema.get('description', '')}\n\n{table}\n"


def _kind(schema: Json) -> str:
    """Say in a few words which values a schema allows."""
    if options := schema.get("anyOf"):
        return " or ".join(map(_kind, options))
    if "$ref" in schema and "enum" in (named := _schemas()[_name(schema)]):
        return _kind(named)
    if "$ref" in schema:
        return f"[{_name(schema)}](#{_name(schema).lower()})"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    kind = {"uuid": "UUID", "date-time": "RFC 3339, UTC"}.get(schema.get("format", ""))
    words = [kind or str({"string": "text"}.get(schema["type"], schema["type"]))]
    if "maximum" in schema:
        words.append(f"{schema['minimum']} to {schema['maximum']}")
    if "default" in schema and schema["default"] != []:
        words.append(f"else {json.dumps(schema['default'])}")
    return ", ".join(words)


def _schemas() -> Json:
    schemas: Json = openapi()["components"]["schemas"]
    return schemas


def _name(schema: Json) -> str:
    return str(schema["$ref"]).rpartition("/")[2]
