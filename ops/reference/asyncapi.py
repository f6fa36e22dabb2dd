"""The AsyncAPI 3 document: queues, and each message on the wire (Celery protocol 2)."""

from typing import Any

from core.catalogue import EVENTS, TASKS, event_task
from core.settings import Settings
from ops.reference.schemas import Schema, event_schema, task_schema

ASYNCAPI = "3.0.0"
MESSAGES = "1"  # the `schema_version` of the events
Json = dict[str, Any]  # Any: JSON


def asyncapi(settings: Settings) -> Json:
    """Describe the service with these settings' queues."""
    of_tasks = {name: task_schema(task) for name, task in TASKS.items()}
    of_events = {event_task(name): event_schema(event) for name, event in EVENTS.items()}
    tasks = {schema["title"]: _message(name, schema) for name, schema in of_tasks.items()}
    events = {
        f"{schema['title']}Event": _message(name, schema) for name, schema in of_events.items()
    }
    parts = [schema.get("$defs", {}) for schema in (*of_tasks.values(), *of_events.values())]
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Essay Lifecycle Service",
            "version": MESSAGES,
            "description": "Gives each stored essay text a slot of its batch, and says exactly once"
            " that the batch is ready. Messages are Celery's, protocol 2, in JSON.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "tasks": _channel(settings.queue, tasks, "What upstream services enqueue."),
            "events": _channel(
                settings.events_queue,
                events,
                "What downstream services receive, unless ELS_EVENT_ROUTES says otherwise.",
            ),
        },
        "operations": {
            "executeTask": {"action": "receive", "channel": {"$ref": "#/channels/tasks"}},
            "deliverEvent": {"action": "send", "channel": {"$ref": "#/channels/events"}},
        },
        "components": {
            "messages": {**tasks, **events},
            "schemas": _shared({name: part for each in parts for name, part in each.items()}),
        },
    }


def _channel(address: str, messages: Json, description: str) -> Json:
    refs = {name: {"$ref": f"#/components/messages/{name}"} for name in messages}
    return {"address": address, "description": description, "messages": refs}


def _message(task: str, schema: Schema) -> Json:
    event = {
        key: _shared(value) for key, value in schema.items() if key not in {"$schema", "$defs"}
    }
    del event["examples"]
    payload = {
        "type": "array",
        "description": "Positional arguments (none), keyword arguments, and what Celery embeds.",
        "prefixItems": [
            {"type": "array", "maxItems": 0},
            {
                "type": "object",
                "properties": {"event": event},
                "required": ["event"],
                "additionalProperties": False,
            },
            {"type": "object"},
        ],
        "minItems": 3,
        "maxItems": 3,
    }
    return {
        "name": task,
        "title": event["title"],
        "summary": event["description"],
        "contentType": "application/json",
        "headers": _headers(task),
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": payload,
        },
        "examples": [{"payload": [[], {"event": each}, {}]} for each in schema["examples"]],
    }


def _shared(part: Any) -> Any:  # Any: JSON
    """Point references at the document's own schemas."""
    match part:
        case list():
            return [_shared(each) for each in part]
        case {"$ref": str(ref), **rest}:
            return {"$ref": ref.replace("#/$defs/", "#/components/schemas/"), **rest}
        case dict():
            return {key: _shared(value) for key, value in part.items()}
    return part


def _headers(task: str) -> Schema:
    return {
        "type": "object",
        "properties": {
            "task": {"const": task},
            "id": {"type": "string", "format": "uuid", "description": "The id of this call."},
            "lang": {"type": "string", "description": "The sender's language, such as `py`."},
        },
        "required": ["task", "id"],
    }
