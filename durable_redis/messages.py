"""What a message must look like, so that no message can end a worker.

Celery ends a worker, or leaks a process slot, at some messages that no Celery client writes.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from types import NoneType
from typing import Any, cast

from celery.utils.time import maybe_iso8601
from kombu.exceptions import DecodeError
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str

MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)  # by what they say


class Misshapen(TypeError):
    """A part of a message is not what Celery expects; its text quotes nothing of the message."""


TAG = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\+*")
LONGEST_ID = 255  # of a task; it becomes a part of keys
FIRST_YEAR, LAST_YEAR = 1970, 9998  # Celery cannot convert the rest to every time zone

Shape = Mapping[str, tuple[type, ...]]  # a union of types takes three times as long
MESSAGE: Shape = {
    "properties": (dict,),
    "headers": (dict, NoneType),
    "body": (str,),
    "content-type": (str, NoneType),
    "content-encoding": (str, NoneType),
}
PROPERTIES: Shape = {
    "delivery_tag": (str, int, float),
    "delivery_info": (dict, NoneType),
    "priority": (int, NoneType),
}
HEADERS: Shape = {  # those with which another type ends a worker
    "task": (str,),
    "id": (str,),
    "eta": (str, NoneType),
    "expires": (str, NoneType),
    "retries": (int, NoneType),
    "timelimit": (list, NoneType),
    "stamped_headers": (list, NoneType),
}
CALL: Shape = {"args": (list,), "kwargs": (dict,), "embed": (dict, NoneType)}


def parse(payload: bytes) -> dict[str, Any]:  # Any: JSON
    """Parse a message as far as Celery trusts it. Raises one of MALFORMED."""
    raw = json.loads(bytes_to_str(payload))
    _check(raw, MESSAGE)
    headers = raw.get("headers") or {}
    _check(raw["properties"], PROPERTIES)
    if "task" in headers:
        check_headers(headers)
    return cast("dict[str, Any]", raw)


def check_headers(headers: object) -> None:
    """Check the headers of a message that calls a task. Raises one of MALFORMED."""
    _check(headers, HEADERS)
    headers = cast("dict[str, Any]", headers)
    if len(headers.get("timelimit") or "12") != 2:
        raise Misshapen("timelimit is no pair")
    if not (headers["id"].isprintable() and 0 < len(headers["id"]) <= LONGEST_ID):
        raise Misshapen(f"id must be 1 to {LONGEST_ID} printable characters")
    for name in ("eta", "expires"):
        if headers.get(name):
            _check_moment(name, headers[name])


def _check_moment(name: str, text: str) -> None:
    try:
        moment = maybe_iso8601(text)
        year = moment.year if moment else 0
    except (ValueError, OverflowError):
        year = 0
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise Misshapen(f"{name} is no moment between {FIRST_YEAR} and {LAST_YEAR}")


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
            names = " or ".join(each.__name__ for each in due)
            raise Misshapen(f"{name} is {type(thing.get(name)).__name__}, not {names}")
