"""The OpenAPI 3.1 document of the read API, from its endpoints and models."""

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ops.web.api.endpoints import ENDPOINTS, Endpoint
from ops.web.api.problems import MEDIA_TYPE, PREFIX, Problem

Json = dict[str, Any]  # Any: JSON
DOCUMENT = f"{PREFIX}/openapi.json"
LAG = "ELS-Replica-Lag"
REFERENCES = "#/components/schemas/{model}"
PROBLEMS = {
    "400": "The host in the request is none of this page",
    "401": "The password is missing or wrong",
    "422": "A parameter is not valid",
    "429": "Too many requests wait for a password",
    "503": "Postgres does not answer, or its schema is older than this program",
}
SECURITY = "ELS_OPS_AUTH"
HEADERS: Json = {
    "ETag": {
        "description": "Names this answer; send it in If-None-Match.",
        "schema": {"type": "string"},
    },
    LAG: {
        "description": "Only where a replica answered: for how many seconds, at most, the primary"
        " has held what this answer lacks; `unknown` before the first measurement.",
        "schema": {"type": "string"},
    },
}


@cache
def openapi() -> Json:
    """Write the document; it is the same on every installation."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Essay Lifecycle Service: read API",
            "version": "1",
            "description": "Reads batches, essays, messages and events. It changes nothing. A"
            " client should accept fields that it does not know: later versions may add some.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{SECURITY: []}, {}],
        "paths": {each.path: {"get": _operation(each)} for each in ENDPOINTS}
        | {DOCUMENT: _itself()},
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {SECURITY: {"type": "http", "scheme": "basic"}},
        },
    }


def _operation(endpoint: Endpoint) -> Json:
    answers = {status: _problem(text) for status, text in PROBLEMS.items()}
    if endpoint.unknown:
        answers["404"] = _problem(f"There is no such {endpoint.unknown}")
    return {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": {
            "200": {
                "description": " ".join((endpoint.answers.__doc__ or "").split()),
                "headers": HEADERS,
                "content": {"application/json": {"schema": _reference(endpoint.answers)}},
            },
            "304": {"description": "Nothing has changed", "headers": HEADERS},
            **dict(sorted(answers.items())),
        },
    }


def _itself() -> Json:
    schema = {"type": "object", "required": ["openapi", "info", "paths"]}
    problems = {status: _problem(PROBLEMS[status]) for status in ("400", "401", "422", "429")}
    return {
        "get": {
            "operationId": "readOpenAPI",
            "summary": "Read this document",
            "responses": {
                "200": {
                    "description": "This document",
                    "headers": {"ETag": HEADERS["ETag"]},
                    "content": {"application/json": {"schema": schema}},
                },
                "304": {"description": "Nothing has changed"},
                **problems,
            },
        }
    }


def _parameters(endpoint: Endpoint) -> list[Json]:
    schema = without_titles(endpoint.takes.model_json_schema(ref_template=REFERENCES))
    required = schema.get("required", [])
    inlined = schema.get("$defs", {})
    return [
        {
            "name": name,
            "in": "path" if f"{{{name}}}" in endpoint.path else "query",
            "description": field.pop("description"),
            "required": name in required,
            "schema": _given(field, inlined),
        }
        for name, field in schema["properties"].items()
    ]


def _given(field: Json, inlined: Json) -> Json:
    """Describe the value of a parameter: an optional one is absent, and never null."""
    [schema] = [each for each in field.pop("anyOf", [field]) if each.get("type") != "null"]
    if reference := schema.pop("$ref", None):
        schema = {k: v for k, v in inlined[reference.rpartition("/")[2]].items() if k == "enum"}
    more = {k: v for k, v in field.items() if k == "default" and v is not None}
    return {k: v for k, v in schema.items() if k != "default"} | more


def _problem(description: str) -> Json:
    return {"description": description, "content": {MEDIA_TYPE: {"schema": _reference(Problem)}}}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": REFERENCES.format(model=model.__name__)}


def _schemas() -> Json:
    models: list[type[BaseModel]] = [*dict.fromkeys(each.answers for each in ENDPOINTS), Problem]
    _, made = models_json_schema([(each, "validation") for each in models], ref_template=REFERENCES)
    schemas: Json = without_titles(made["$defs"])
    return schemas


def without_titles(part: Any) -> Any:  # Any: JSON
    """Drop pydantic's titles, which repeat the names, and unfold what docstrings wrap."""
    match part:
        case list():
            return [without_titles(each) for each in part]
        case dict():
            return {
                key: " ".join(value.split())
                if key == "description" and isinstance(value, str)
                else without_titles(value)
                for key, value in part.items()
                if not (key == "title" and isinstance(value, str))
            }
    return part
