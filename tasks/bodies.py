"""What a dead letter keeps of a message: its event, or what of its bytes can be read, as JSON."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence

from kombu import Message

from core.messages import WIRE_LIMIT
from core.named_batch import batch_of, ids_of
from core.parsing import canonical
from durable_redis import MALFORMED, Misshapen

LONGEST_NAME = 255  # characters of a task's name or id, or of a header, that are kept
BEGINNING = 64 * 1024  # bytes of a body that is too large to be kept


def names_event(args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Tell whether the only argument of a call is `event`."""
    return not args and kwargs.keys() == {"event"}


def body_of(args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """Return the event of a call, or all of its arguments if it has others."""
    return kwargs["event"] if names_event(args, kwargs) else {"args": args, "kwargs": kwargs}


def body_of_message(message: Message) -> object:
    """Return the event of a message, else its body. Does not parse what is too large for that."""
    if any(not isinstance(error, Misshapen) for _, error, _ in message.errors or ()):
        return _raw(message)
    try:
        call = json.loads(message.body or "")
    except (ValueError, TypeError, RecursionError):
        return _raw(message)
    if not isinstance(call, list) or len(call) != 3:
        return _raw(message)
    args, kwargs, _ = call
    return body_of(args, kwargs) if isinstance(kwargs, dict) else {"args": args, "kwargs": kwargs}


def message_of(payload: bytes) -> Message:
    """Make a message of bytes from Redis that lack parts of one. Raises one of MALFORMED."""
    raw = json.loads(payload)
    parts = (raw.get(name) for name in ("headers", "properties"))
    headers, properties = (part if isinstance(part, dict) else {} for part in parts)
    body = raw.get("body")
    try:
        if properties.get("body_encoding") == "base64":
            body = base64.b64decode(body, validate=True)
    except MALFORMED:
        body = None
    return Message(
        body=body if isinstance(body, str | bytes) else payload,  # type: ignore[arg-type] # is right
        delivery_tag=name_of(properties.get("delivery_tag")) or hashlib.sha256(payload).hexdigest(),
        content_type=raw.get("content-type"),
        properties=properties,
        headers=headers,
    )


def name_of(given: object) -> str:
    """Return a name or number as text; empty for anything else."""
    return str(given) if isinstance(given, str) or type(given) is int else ""


def as_json(body: object) -> str:
    """Write a body as JSON: exactly where JSON can hold it, else its `repr`."""
    try:
        return json.dumps(json.loads(canonical(body)), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return json.dumps({**ids_of(body, batch_of(body)), "not_json": _repr(body)})


def _repr(body: object) -> str:
    try:
        return repr(body)
    except RecursionError:
        return f"{type(body).__name__}, nested too deeply to be written"


def _raw(message: Message) -> dict[str, object]:
    """Return a body as it came, in base64; of a very large one the beginning."""
    body = message.body or b""
    raw = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    about = {"content_type": name_of(message.content_type)[:LONGEST_NAME]}
    if compression := name_of(message.headers.get("compression")):
        about["compression"] = compression[:LONGEST_NAME]
    if len(raw) <= WIRE_LIMIT:
        return {**about, "base64": base64.b64encode(raw).decode()}
    beginning = base64.b64encode(raw[:BEGINNING]).decode()
    return {**about, "bytes": len(raw), "beginning_base64": beginning}
