# `make reference` copies this module from core/named_batch.py; change that one.
"""Which batch and which ids a message names that has another shape than it should.

A sender may spell the field in another way, put it elsewhere, or send a body that nobody can
decode. The message becomes a dead letter all the same, and belongs to its batch.
"""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from uuid import UUID

from els_client._service.messages import IDENTIFIER

FIELDS = {"batchid", "batchuuid", "batchref"}  # in small letters, without `_` and the like
WEAK = "batch"  # it may also hold a name, so it counts only without one of those fields
MOST_NODES = 20_000  # of a body that are looked at
DEEPEST = 100
LARGEST = 256 * 1024  # characters of a text that are looked at, and bytes of an inflated one
BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{16,}={0,2}\s*")
PACKED = re.compile(r"(?:eyJ|W1t|W10|W3s)[A-Za-z0-9+/_-]{16,}={0,2}")  # JSON in base64, in a text
MOST_PACKED = 10
# In a text that is no JSON: of Python, YAML, a form, XML, pickle, MessagePack.
WRITTEN = re.compile(
    r"(?<!/)batch[ _-]?id[^A-Za-z0-9_-]{1,12}([A-Za-z0-9_-]{1,64})(?![A-Za-z0-9_-])",
    re.IGNORECASE,
)
ENDS = {"{": "}", "[": "]", '"': '"'}
ZIPPED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")  # how gzip, zlib begin

Named = tuple[bool, str]  # whether the field is a weak one, and the id in it


def batch_of(body: object) -> str | None:
    """Return the one batch that a body names; None: it names none, or several.

    `body` is what a dead letter keeps: the event, or `{"args", "kwargs"}`, or `{"base64"}`.
    """
    if isinstance(body, Mapping) and _is_id(body.get("batch_id")):
        return str(body["batch_id"])
    well_formed = {each.strip() for each in batch_ids(body) if _is_id(each.strip())}
    return well_formed.pop() if len(well_formed) == 1 else None


def batch_ids(body: object) -> list[str]:
    """List what a body gives as the id of a batch, well-formed or not, each once."""
    named = list(_named(body))
    strong = [value for is_weak, value in named if not is_weak]
    return list(dict.fromkeys(strong or [value for _, value in named]))


def ids_of(body: object, batch_id: str | None) -> dict[str, str]:
    """Return the well-formed ids by which people look for a message: of the event, of its batch."""
    given = body if isinstance(body, Mapping) else {}
    named = {name: given.get(name) for name in ("event_id", "correlation_id")}
    ids = {name: str(value) for name, value in named.items() if _is_uuid(value)}
    return ids | ({"batch_id": batch_id} if batch_id else {})


def _named(body: object) -> Iterator[Named]:
    """Walk through a body, and through the JSON and the base64 in its texts."""
    waiting: list[tuple[object, int]] = [(body, 0)]
    for _ in range(MOST_NODES):
        if not waiting:
            return
        node, depth = waiting.pop()
        inner: Sequence[object] = ()
        if isinstance(node, Mapping):
            yield from _fields_of(node)
            inner = list(node.values())
        elif isinstance(node, list | tuple):
            inner = node
        elif isinstance(node, str | bytes):
            inner, ids = _read(node if isinstance(node, str) else _text_of(node))
            yield from ((False, each) for each in ids)
        if depth < DEEPEST:
            waiting += [(each, depth + 1) for each in reversed(inner[:MOST_NODES])]


def _fields_of(node: Mapping[object, object]) -> Iterator[Named]:
    for name, value in node.items():
        known = re.sub("[^a-z]", "", name.lower()) if isinstance(name, str) else ""
        if known not in FIELDS and known != WEAK:
            continue
        given = value.get("id") if isinstance(value, Mapping) else value
        given = value[0] if isinstance(value, list) and len(value) == 1 else given
        if isinstance(given, str) and not given.lstrip().startswith(("{", "[")):
            yield known == WEAK and given is value, given


def _read(text: str) -> tuple[Sequence[object], list[str]]:
    """Return the JSON that a text holds, in itself or in base64, and ids where it is broken."""
    text = text.strip()
    if len(text) > 1 and text[-1] == ENDS.get(text[0]):
        return _inside(text)
    if BASE64.fullmatch(text[:LARGEST]):
        return _inside(_text_of(_decoded(text[:LARGEST])))
    return [], []


def _inside(text: str) -> tuple[Sequence[object], list[str]]:
    try:
        return [json.loads(text)], []
    except (ValueError, RecursionError):
        shown = text[:LARGEST]
        packed = [shown] if BASE64.fullmatch(shown) else PACKED.findall(shown)[:MOST_PACKED]
        return packed, WRITTEN.findall(shown)


def _decoded(text: str) -> bytes:
    packed = re.sub(r"\s", "", text).rstrip("=").replace("-", "+").replace("_", "/")
    packed = packed[:-1] if len(packed) % 4 == 1 else packed  # somebody has cut it
    try:
        return _inflated(base64.b64decode(packed + "=" * (-len(packed) % 4)))
    except (binascii.Error, ValueError):
        return b""


def _inflated(raw: bytes) -> bytes:
    """Inflate what gzip or zlib have packed, up to `LARGEST`."""
    if not raw.startswith(ZIPPED):
        return raw
    try:
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(raw, LARGEST)
    except zlib.error:
        return raw


def _text_of(raw: bytes) -> str:
    """Return bytes as text: UTF-16 without its NULs, and what is no UTF-8 byte by byte."""
    raw = raw.removeprefix(b"\xff\xfe").removeprefix(b"\xfe\xff").replace(b"\0", b"")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _is_uuid(given: object) -> bool:
    try:
        return isinstance(given, UUID) or (isinstance(given, str) and bool(UUID(given)))
    except ValueError:
        return False


def _is_id(given: object) -> bool:
    return isinstance(given, str) and re.fullmatch(IDENTIFIER, given) is not None
