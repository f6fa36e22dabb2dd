"""Messages that nobody should send, as a broker would hold them, and what becomes of each."""

import bz2
import json
import lzma
import zlib
from dataclasses import dataclass, field
from uuid import uuid4

from tests import factories as make

TASK = "els.assign_content"
MIB = 1024 * 1024
LINK = {"task": "intruder", "args": [], "kwargs": {}, "options": {"queue": "elsewhere"}}


@dataclass
class Hostile:
    """A message, and the code of its dead letter; None: it is executed as if it were harmless."""

    code: str | None
    headers: dict = field(default_factory=dict)
    body: bytes | None = None  # None: that of a good message
    embed: object = None
    event: dict = field(default_factory=dict)  # fields of the good message that change
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    task: object = TASK
    batch: str = field(default_factory=make.new_batch)

    def build(self):
        """Return headers, body and the id of a message."""
        task_id = self.headers.get("id", str(uuid4()))
        headers = {"lang": "py", "task": self.task, "id": task_id, **self.headers}
        if self.body is not None:
            return headers, self.body, task_id
        event = {**make.content(self.batch), **self.event}
        return headers, json.dumps([[], {"event": event}, self.embed]).encode(), task_id


def nested(depth):
    return b'[[], {"event": ' + b"[" * depth + b"]" * depth + b"}, null]"


def event_of(text):
    return f'[[], {{"event": {text}}}, null]'.encode()


def nest(depth):
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


# Wrong values for each header that Celery, RabbitMQ or a worker of ours reads.
WRONG = {
    "null": None,
    "empty text": "",
    "text": "x",
    "long text": "x" * 2_000,
    "digits": "5",
    "a number": 7,
    "a large number": 2**62,
    "a number below 0": -1,
    "a fraction": 1.5,
    "NaN": float("nan"),
    "true": True,
    "an empty list": [],
    "a list": [1, None],
    "an object": {"a": {"b": None}},
    "a nesting": nest(300),
    "half a surrogate pair": "a\ud800b",
}
HEADERS = [
    *("lang", "task", "id", "root_id", "parent_id", "group", "group_index", "shadow", "meth"),
    *("eta", "expires", "retries", "timelimit", "argsrepr", "kwargsrepr", "origin", "utc"),
    *("ignore_result", "replaced_task_nesting", "stamped_headers", "stamps", "chord", "chain"),
    *("traceparent", "tracestate", "redelivered", "x-delivery-count", "compression", "headers"),
    *("delivery_info", "priority", "reply_to", "correlation_id", "properties", "hostname"),
    *("args", "kwargs", "callbacks", "errbacks", "is_eager", "called_directly", "baggage"),
    *("els-version", "els-unread", "els-dropped", "x-death", "x-delay", "__proto__"),
]
PROPERTIES = [  # as a message in Redis has them; RabbitMQ takes only those of their types
    *("delivery_info", "priority", "reply_to", "correlation_id"),
    *("delivery_mode", "expiration", "headers", "timestamp"),
]
INFO = ["exchange", "routing_key", "redelivered", "consumer_tag", "delivery_tag"]


def with_wrong(header, *, but=()):
    """Make a message for each wrong value of a header, but for these."""
    return [Hostile(None, {header: value}) for name, value in WRONG.items() if name not in but]


def ends_of(conn, batches):
    """Return what became of the message of each of these batches: its outcome, or its letter."""
    outcomes = conn.execute(
        "SELECT batch_id, outcome FROM idempotency_keys WHERE batch_id = ANY(%s)", [batches]
    ).fetchall()
    letters = conn.execute(
        "SELECT batch_id, event_id::text, task, task_id, code, message, body FROM dead_letters"
        " WHERE batch_id = ANY(%s)",
        [batches],
    ).fetchall()
    return {row["batch_id"]: row for row in [*outcomes, *letters]}


def assert_says_what_is_wrong(letter, header):
    """Check that a letter has the whole event, and names the header that is wrong."""
    assert letter["code"] in ("MALFORMED_MESSAGE", "UNKNOWN_TASK", "EXPIRED"), letter
    assert letter["task"] == TASK or header == "task"
    if letter["code"] == "MALFORMED_MESSAGE":
        assert letter["message"].startswith(f"header {header}: must be "), letter["message"]
    if header != "compression":
        assert letter["body"]["batch_id"] == letter["batch_id"]
        assert letter["body"]["event_id"] == letter["event_id"]


UTF_16 = '[[], {"event": {}}, {}]'.encode("utf-16")
LATIN_1 = '[[], {"event": {"reason": "é"}}, {}]'.encode("latin-1")
SIZE = 300 * MIB  # once inflated


def compressed(compressor) -> bytes:
    """Compress blanks, a part at a time."""
    blanks = b" " * MIB
    parts = [compressor.compress(blanks) for _ in range(SIZE // MIB)]
    return b"".join([*parts, compressor.flush()])


BOMBS = {
    "gzip": zlib.compressobj,
    "zlib": zlib.compressobj,
    "application/x-gzip": lambda: zlib.compressobj(wbits=31),
    "bzip2": bz2.BZ2Compressor,
    "xz": lambda: lzma.LZMACompressor(preset=0),
}

HOSTILE = {
    # --- bodies ---
    "too large": Hostile("VALIDATION_ERROR", body=b"[" * (30 * MIB)),
    "far too large": Hostile("MALFORMED_MESSAGE", body=b"[" * (60 * MIB)),
    "compressed in an unknown way": Hostile("MALFORMED_MESSAGE", {"compression": "rot13"}),
    "compressed by a list": Hostile("MALFORMED_MESSAGE", {"compression": [1]}),
    "not compressed": Hostile("MALFORMED_MESSAGE", {"compression": "gzip"}),
    "compressed and cut short": Hostile(
        "MALFORMED_MESSAGE", {"compression": "gzip"}, zlib.compress(b"x" * 10_000)[:-9]
    ),
    "many compressed streams": Hostile(
        "MALFORMED_MESSAGE", {"compression": "bzip2"}, bz2.compress(b"") * 40_000
    ),
    "nested deeply": Hostile("VALIDATION_ERROR", body=nested(100_000)),
    "nested": Hostile("VALIDATION_ERROR", body=nested(800)),
    "a huge number": Hostile("MALFORMED_MESSAGE", body=event_of("9" * 10_000)),
    "a huge decimal": Hostile(
        "VALIDATION_ERROR", body=event_of('{"__type__": "decimal", "__value__": "1e999999999"}')
    ),
    "an unknown type": Hostile(
        "MALFORMED_MESSAGE", body=event_of('{"__type__": "os.system", "__value__": "id"}')
    ),
    "NaN": Hostile("VALIDATION_ERROR", body=event_of('{"file_size_bytes": NaN}')),
    "Infinity": Hostile("VALIDATION_ERROR", body=event_of('{"file_size_bytes": -Infinity}')),
    "a NUL": Hostile("VALIDATION_ERROR", event={"original_file_name": "a\0b"}),
    "half a surrogate pair": Hostile("VALIDATION_ERROR", event={"original_file_name": "\ud800"}),
    "no UTF-8": Hostile("MALFORMED_MESSAGE", body=b'[[], {"event": "\xff"}, null]'),
    "no call": Hostile("MALFORMED_MESSAGE", body=b"[1, 2]"),
    "a call of other types": Hostile("MALFORMED_MESSAGE", body=b'["a", "b", "c"]'),
    "a number": Hostile("MALFORMED_MESSAGE", body=b"7"),
    "nothing": Hostile("MALFORMED_MESSAGE", body=b""),
    "data": Hostile("MALFORMED_MESSAGE", body=b"abc", content_type="application/data"),
    "pickle": Hostile("MALFORMED_MESSAGE", content_type="application/x-python-serialize"),
    "an unknown encoding": Hostile(None, content_encoding="rot13"),
    "UTF-16": Hostile("MALFORMED_MESSAGE", body=UTF_16, content_encoding="utf-16"),
    "Latin-1": Hostile("MALFORMED_MESSAGE", body=LATIN_1, content_encoding="latin-1"),
    "arguments that are null": Hostile("MALFORMED_MESSAGE", body=b'[null, {"event": {}}, {}]'),
    "an argument self": Hostile("MALFORMED_MESSAGE", body=b'[[], {"event": {}, "self": 1}, {}]'),
    "an event alone": Hostile("MALFORMED_MESSAGE", body=b'{"event": {}, "a": 1, "b": 2}'),
    # --- headers ---
    "a long id": Hostile("MALFORMED_MESSAGE", {"id": "i" * 50_000}),
    "an id of control characters": Hostile("MALFORMED_MESSAGE", {"id": "a\x1b[31m\nb\0"}),
    "an empty id": Hostile("MALFORMED_MESSAGE", {"id": ""}),
    "an id that is a list": Hostile("MALFORMED_MESSAGE", {"id": [1]}),
    "a long task": Hostile("UNKNOWN_TASK", task="t" * 50_000),
    "a task of control characters": Hostile("UNKNOWN_TASK", task="els.\0\n\x1b[31m"),
    "a task that is an object": Hostile("MALFORMED_MESSAGE", task={"a": 1}),
    "an eta at the end of time": Hostile("MALFORMED_MESSAGE", {"eta": "9999-12-31T23:59:59-14:00"}),
    "an eta at the beginning": Hostile("MALFORMED_MESSAGE", {"eta": "0001-01-01T00:00:00+14:00"}),
    "an eta that is no moment": Hostile("MALFORMED_MESSAGE", {"eta": "e" * 20_000}),
    "an eta that is a number": Hostile("MALFORMED_MESSAGE", {"eta": -1}),
    "an end at the end of time": Hostile(
        "MALFORMED_MESSAGE", {"expires": "9999-12-31T23:59:59-14:00"}
    ),
    "an end that is a number": Hostile("MALFORMED_MESSAGE", {"expires": -1}),
    "an end that is no moment": Hostile("MALFORMED_MESSAGE", {"expires": "never"}),
    "an end in the past": Hostile("EXPIRED", {"expires": "1999-12-31T23:59:59Z"}),
    "many retries": Hostile(None, {"retries": 2**62}),
    "retries below 0": Hostile(None, {"retries": -(2**40)}),
    "retries that are text": Hostile("MALFORMED_MESSAGE", {"retries": "many"}),
    "time limits": Hostile(None, {"timelimit": [0.001, 0.001]}),
    "a time limit that is a number": Hostile("MALFORMED_MESSAGE", {"timelimit": 1}),
    "a shadow": Hostile(None, {"shadow": "els.sweep"}),
    "others' ids": Hostile(None, {"root_id": ["r" * 9000], "parent_id": "p" * 9000}),
    "a nesting": Hostile(None, {"replaced_task_nesting": 10**6, "group": "g", "group_index": 0}),
    "stamps": Hostile(None, {"stamped_headers": ["a"], "stamps": {"a": ["b"]}}),
    "parts of a request": Hostile(
        None, {"called_directly": True, "chord": LINK, "callbacks": [LINK], "is_eager": True}
    ),
    "many headers": Hostile(None, {f"x-{n}": "x" for n in range(3_000)}),
    # --- what is asked for beside the task ---
    "a link": Hostile(None, embed={"callbacks": [LINK]}),
    "a link for errors": Hostile(None, embed={"errbacks": [LINK]}),
    "a chain": Hostile(None, embed={"chain": [LINK]}),
    "a chord": Hostile(None, {"group": str(uuid4())}, embed={"chord": LINK}),
    "a request": Hostile(None, embed={"id": "i", "retries": 7, "delivery_info": {}}),
    "an embed that is a list": Hostile("MALFORMED_MESSAGE", embed=[1]),
}
