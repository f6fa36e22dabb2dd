"""What a message must look like, so that no message can end a worker.

Celery ends a worker, or leaks a process slot, at some messages that no Celery client writes.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from types import UnionType
from typing import Any, cast

from kombu.exceptions import DecodeError
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str

MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)  # by what they say


class Misshapen(TypeError):
    """A part of a message has a type that Celery does not expect; its text names only types."""


TAG = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\+*")
Shape = Mapping[str, type | UnionType]
MESSAGE: Shape = {
    "properties": dict,
    "headers": dict | None,
    "body": str,
    "content-type": str | None,
    "content-encoding": str | None,
}
PROPERTIES: Shape = {"delivery_tag": str | int | float, "delivery_info": dict | None}
HEADERS: Shape = {  # those with which another type ends a worker
    "task": str,
    "id": str,
    "eta": str | None,
    "expires": str | int | float | None,
    "timelimit": list | None,
    "stamped_headers": list | None,
}
CALL: Shape = {"args": list, "kwargs": dict, "embed": dict | None}


def parse(payload: bytes) -> dict[str, Any]:  # Any: JSON
    """Parse a message as far as Celery trusts it. Raises one of MALFORMED."""
    raw = json.loads(bytes_to_str(payload))
    _check(raw, MESSAGE)
    headers = raw.get("headers") or {}
    _check(raw["properties"], PROPERTIES)
    if "task" in headers:
        _check(headers, HEADERS)
        if len(headers.get("timelimit") or "12") != 2:
            raise Misshapen("timelimit is no pair")
    return cast("dict[str, Any]", raw)


def check_call(message: virtual.Message) -> None:
    """Check the arguments of a message that calls a task. Raises one of MALFORMED.

    The parsed body stays in the message, so Celery does not parse it again. Celery itself logs and
    passes over a body that it cannot parse.
    """
    if message.errors or "task" not in (message.headers or {}):
        return
    if message.content_type == "application/json":
        with suppress(DecodeError):
            args, kwargs, embed = message.payload
            _check({"args": args, "kwargs": kwargs, "embed": embed}, CALL)


def tag_name(tag: str) -> str:
    """Name a message in a log: its tag, or "…" for one that its sender made up."""
    return tag if TAG.fullmatch(tag) else "…"


def _check(thing: object, shape: Shape) -> None:
    if not isinstance(thing, dict):
        raise Misshapen(f"{type(thing).__name__} where an object is due")
    for name, due in shape.items():
        if not isinstance(thing.get(name), due):
            raise Misshapen(f"{name} is {type(thing.get(name)).__name__}, not {due}")
