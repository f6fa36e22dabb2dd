"""Reads the body of a message: as an event with its idempotency key, or as a refusal that says why.

`parse` writes a body as canonical JSON once; size, fingerprint and validation read that one text.
A refusal names fields and rules, and no values: they may be personal.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from difflib import get_close_matches
from functools import cache
from itertools import takewhile
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from core.errors import InvalidEvent
from core.messages import (
    IDENTIFIER,
    NAME,
    NOT_RFC3339,
    NOT_UTC,
    STORAGE_KEY,
    Association,
    Content,
    Event,
    Idempotency,
)

NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # Postgres stores no NUL in text or jsonb
FIELD = re.compile(r"[a-z][A-Za-z_]{0,39}")  # of a sender's: a name that may be repeated
PYDANTIC = re.compile(r"^(?:Input|String|List|Dictionary|Value|Object|Data) should")
RULES = {  # the rule of each pattern, in words for senders
    IDENTIFIER: "must be 1 to 64 characters, each a letter A to Z or a to z, a digit, _ or -",
    NAME: "must not hold control characters, such as a tab or a line break",
    STORAGE_KEY: "must hold visible ASCII characters only, ! to ~: no blanks, no letters such as é",
}
RULES_OF_KINDS = {  # in place of what pydantic says of these kinds of faults
    "missing": "is missing",
    "uuid_parsing": "must be a UUID",  # pydantic quotes a character of it
    "uuid_type": "must be a UUID",
    "datetime_parsing": NOT_RFC3339,
    "datetime_from_date_parsing": NOT_RFC3339,
    "timezone_aware": NOT_UTC,
}


def _plain(value: object) -> str:
    """Write a typed value of Kombu's JSON decoder as other senders write it in JSON."""
    match value:
        case UUID():
            return str(value)
        case datetime():
            return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no JSON value")


NO_JSON = (ValueError, TypeError, RecursionError)  # from `canonical`, and from half a character
CANONICAL = json.JSONEncoder(  # made once: making it takes longer than writing a small body
    sort_keys=True,
    separators=(",", ":"),
    ensure_ascii=False,
    allow_nan=False,
    default=_plain,
)


def canonical(value: object) -> str:
    """Write JSON with sorted keys and no spaces.

    Raises ValueError, TypeError or RecursionError for what JSON cannot hold, NaN included.
    """
    return CANONICAL.encode(value)


E = TypeVar("E", bound=Event)


def parse(model: type[E], task: str, raw: object, limit: int) -> tuple[E, Idempotency]:
    """Validate a body; return the event and its idempotency key with fingerprint.

    `limit` is in bytes of canonical JSON. The fingerprint is the SHA-256 of the canonical JSON
    without `timestamp`, so a sender may send a repeat with another one. Raises InvalidEvent.
    """
    if not isinstance(raw, Mapping):
        raise InvalidEvent(f"{task}: the event must be a JSON object; send kwargs={{'event': …}}")
    try:
        compared = canonical({key: raw[key] for key in raw if key != "timestamp"})
        stamp = canonical({key: raw[key] for key in raw if key == "timestamp"})
        text = "{" + ",".join(filter(None, (compared[1:-1], stamp[1:-1]))) + "}"
        body = text.encode()
    except NO_JSON as error:
        raise InvalidEvent(f"{task}: {_no_json(raw, error)}") from error
    if len(body) > limit:
        raise InvalidEvent(f"{task}: the event has {len(body)} bytes; at most {limit} are allowed")
    try:
        event = model.model_validate_json(body)
    except ValidationError as error:
        raise InvalidEvent(f"{task}: {_first_faults(error)}") from error
    if "\\u0000" in text and NUL.search(text):  # `in` is a hundred times as fast
        named = next(name for name in raw if NUL.search(canonical({name: raw[name]})))
        raise InvalidEvent(f"{task}: {named}: must not hold a NUL character")
    return event, Idempotency(event.event_id, task, hashlib.sha256(compared.encode()).digest())


def _no_json(raw: Mapping[str, Any], error: Exception) -> str:  # Any: no JSON
    """Name the first field that JSON cannot hold, and say why."""
    for name, value in raw.items():
        try:
            canonical({name: value}).encode()
        except NO_JSON as its_own:
            ours = name in _fields() or (isinstance(name, str) and FIELD.fullmatch(name))
            return f"{name if ours else 'event'}: {_why_no_json(its_own)}"
    return f"event: {_why_no_json(error)}"


def _why_no_json(error: Exception) -> str:
    match error:
        case RecursionError():
            return "is nested too deeply"
        case UnicodeEncodeError():
            return "must not hold half of a surrogate pair, which is no character"
        case ValueError() if "Circular" not in str(error):
            return "must not hold NaN or Infinity, which JSON does not have"
    return "must not hold a value of a type that JSON does not have"


def _first_faults(error: ValidationError, most: int = 5) -> str:
    """Name the first faults by field, without the values: they may be personal.

    Unknown fields come first, as a field that is misspelt or nested is missing too.
    """
    faults = error.errors(include_url=False, include_input=False)
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")
    named = [f"{_place(fault)}: {_rule(fault)}" for fault in faults]
    more = f" (and {len(named) - most} more)" if len(named) > most else ""
    return "; ".join(named[:most]) + more


def _place(fault: ErrorDetails) -> str:
    """Name a field: one of ours, or one that cannot be the name of a person or a file."""
    parts = fault["loc"]
    ours = list(takewhile(lambda part: isinstance(part, int) or part in _fields(), parts))
    unknown = parts[len(ours) : len(ours) + 1]
    if fault["type"] == "extra_forbidden" and FIELD.fullmatch(str(*unknown)):
        ours += unknown
    return ".".join(map(str, ours)) or "event"


def _rule(fault: ErrorDetails) -> str:
    match fault["type"]:
        case "extra_forbidden":
            name = str(fault["loc"][-1])
            near = get_close_matches(name.lower(), _fields(), 1)
            is_meant = f"; is {near[0]} meant?" if near and near[0] != name else ""
            return _unknown(fault) + is_meant
        case kind if kind in RULES_OF_KINDS:
            return RULES_OF_KINDS[kind]
        case "value_error":
            return str(fault["ctx"]["error"])
    rule = RULES.get(fault.get("ctx", {}).get("pattern", ""), fault["msg"])
    return PYDANTIC.sub("must", rule).replace(" after validation", "")


def _unknown(fault: ErrorDetails) -> str:
    named = _place(fault).rpartition(".")[2] == str(fault["loc"][-1])
    return "is an unknown field" if named else "has an unknown field"


@cache
def _fields() -> frozenset[str]:
    models: tuple[type[BaseModel], ...] = (*Event.__subclasses__(), Content, Association)
    return frozenset(name for model in models for name in model.model_fields)
