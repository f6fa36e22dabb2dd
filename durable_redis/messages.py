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
MOMENT = f"an ISO 8601 time from {FIRST_YEAR} to {LAST_YEAR}"
DUE = {  # in words, for senders
    "task": "the name of a task",
    "id": f"1 to {LONGEST_ID} printable characters",
    "eta": MOMENT,
    "expires": MOMENT,
    "retries": "a whole number",
    "timelimit": "a list of two times",
    "delivery_tag": "text or a number",
}
KINDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}
UNCOMPRESSED = "header compression: must be gzip, bzip2 or lzma, and the body one such stream"


def parse(payload: bytes) -> dict[str, Any]:  # Any: JSON
    """Parse a message as far as Kombu trusts it. Raises one of MALFORMED."""
    raw = json.loads(bytes_to_str(payload))
    _check("the message", raw, MESSAGE)
    _check("property", raw["properties"], PROPERTIES)
    return cast("dict[str, Any]", raw)


def check_headers(headers: object) -> None:
    """Check the headers of a message that calls a task. Raises one of MALFORMED."""
    _check("header", headers, HEADERS)
    headers = cast("dict[str, Any]", headers)
    if len(headers.get("timelimit") or "12") != 2:
        raise _misshapen("header", "timelimit", ())
    if not (headers["id"].isprintable() and 0 < len(headers["id"]) <= LONGEST_ID):
        raise _misshapen("header", "id", ())
    for name in ("eta", "expires"):
        if headers.get(name) is not None:
            _check_moment(name, headers[name])


def _check_moment(name: str, text: str) -> None:
    try:
        moment = maybe_iso8601(text)
        year = moment.year if moment else 0
    except (ValueError, OverflowError):
        year = 0
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise _misshapen("header", name, ())


def check(message: virtual.Message) -> None:
    """Check a message, if it calls a task, as far as Celery trusts it. Raises one of MALFORMED."""
    if "task" in (message.headers or {}):
        check_headers(message.headers)
        check_call(message)


def check_call(message: virtual.Message) -> None:
    """Check the arguments of a message that calls a task. Raises one of MALFORMED.

    The parsed body stays in the message, so Celery does not parse it again. Celery itself logs and
    passes over a body that it cannot parse.
    """
    if not message.errors and message.content_type == "application/json":
        with suppress(DecodeError):
            call = message.payload
            if not isinstance(call, list) or len(call) != len(CALL):
                raise Misshapen("the body: must be a list of args, kwargs and embed")
            _check("the body", dict(zip(CALL, call, strict=True)), CALL)


def why(error: BaseException, *, errors: object = ()) -> str:
    """Say in words what is wrong with a message, and nothing of what it says.

    `errors` are those of Kombu's message: what has met its compressed body.
    """
    cause = error.args[0] if isinstance(error, DecodeError) and error.args else error
    text = "it is not a message as Celery sends it"
    match cause:
        case str() | Misshapen():  # an error of ours
            text = str(cause)
        case json.JSONDecodeError():
            text = f"it is no JSON: {cause.msg} at character {cause.pos}"
        case UnicodeDecodeError():
            text = f"it is no UTF-8: {cause.reason} at byte {cause.start}"
        case UnicodeEncodeError():
            text = "it holds half of a surrogate pair, which is no character"
        case RecursionError():
            text = "it is nested too deeply"
        case _ if errors:
            text = UNCOMPRESSED
        case ValueError() | LookupError():
            text = "it holds a number of too many digits, or a __type__ that nobody knows"
    return text


def tag_name(tag: str) -> str:
    """Name a message in a log: its tag, or "…" for one that its sender made up."""
    return tag if TAG.fullmatch(tag) else "…"


def _check(place: str, thing: object, shape: Shape) -> None:
    if not isinstance(thing, dict):
        raise Misshapen(f"{place}: must be an object")
    for name, due in shape.items():
        if not isinstance(thing.get(name), due):
            raise _misshapen(place, name, due)


def _misshapen(place: str, name: str, due: tuple[type, ...]) -> Misshapen:
    words = DUE.get(name) or " or ".join(KINDS[kind] for kind in due if kind is not NoneType)
    return Misshapen(f"{place} {name}: must be {words}")
