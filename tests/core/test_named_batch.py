"""A message belongs to the batch that it names, whatever shape its sender gave it."""

import base64
import gzip
import json
import pickle
import zlib
from urllib.parse import urlencode

import pytest

from core.named_batch import MOST_NODES, batch_ids, batch_of

BATCH = "batch-7f3a"
EVENT = {"event_id": "e-1", "batch_id": BATCH, "essay_ids": ["essay-1"]}


def packed(raw):
    return base64.b64encode(raw if isinstance(raw, bytes) else raw.encode()).decode()


def as_json(value):
    return json.dumps(value)


ENVELOPE = as_json({"body": packed(as_json([[], {"event": EVENT}, {}])), "headers": {}})
SHAPES = {
    "the event": EVENT,
    "positional": {"args": [EVENT], "kwargs": {}},
    "flat": {"args": [], "kwargs": EVENT},
    "beside others": {"args": [], "kwargs": {"event": EVENT, "retries": 3}},
    "camel case": {"batchId": BATCH},
    "capitals": {"BATCH_ID": BATCH},
    "Pascal case": {"BatchID": BATCH},
    "a dash": {"batch-id": BATCH},
    "a blank": {"batch id": BATCH},
    "an object": {"batch": {"id": BATCH, "name": "autumn"}},
    "a list of one": {"batch_id": [BATCH]},
    "no suffix": {"batch": BATCH},
    "a name beside": {"batch": "autumn", "batchId": BATCH},
    "blanks around": {"batch_id": f" {BATCH}\n"},
    "nested": {"data": {"payload": [{"batch_id": BATCH}]}},
    "twice the same": {"batchId": BATCH, "data": {"batch_id": BATCH}},
    "JSON in a text": {"args": [as_json(EVENT)], "kwargs": {}},
    "JSON in JSON in a text": {"args": [as_json(as_json(EVENT))], "kwargs": {}},
    "base64 of JSON": {"args": [packed(as_json(EVENT))], "kwargs": {}},
    "bytes, as Kombu writes them": {
        "args": [{"__type__": "bytes", "__value__": packed(as_json(EVENT))}],
    },
    "bytes": {"args": [as_json(EVENT).encode()]},
    "broken JSON": {"base64": packed(as_json(EVENT)[:-1] + ",}")},
    "single quotes": {"base64": packed(repr(EVENT))},
    "the repr of a body": {"not_json": repr({"event": EVENT})},
    "cut": {"beginning_base64": packed(as_json({**EVENT, "more": "x" * 90})[:99]), "bytes": 9},
    "base64 of base64": {"base64": packed(packed(as_json(EVENT)))},
    "base64 of base64 of broken JSON": {"base64": packed(packed(as_json([[], EVENT])[:-2]))},
    "base64 of base64 of Python": {"base64": packed(packed(repr([[], {"event": EVENT}, {}])))},
    "cut base64": {"base64": packed(as_json(EVENT))[:-3]},
    "UTF-16": {"base64": packed(as_json(EVENT).encode("utf-16"))},
    "a byte order mark": {"base64": packed(as_json(EVENT).encode("utf-8-sig"))},
    "Latin-1": {"base64": packed(as_json(EVENT)[:-1].encode() + b', "name": "\xe9"}')},
    "gzip": {"base64": packed(gzip.compress(as_json(EVENT).encode())), "compression": "gzip"},
    "zlib": {"base64": packed(zlib.compress(as_json(EVENT).encode()))},
    "a form": {"base64": packed(urlencode({"batch_id": BATCH, "n": 3}))},
    "YAML": {"base64": packed(f"event:\n  batch_id: {BATCH}\n  n: 3\n")},
    "XML": {"base64": packed(f"<event><batchId>{BATCH}</batchId></event>")},
    "pickle": {"base64": packed(pickle.dumps(EVENT))},
    "a message of a broker": {"queue": "els", "base64": packed(ENVELOPE)},
    "a broken one": {"queue": "els", "base64": packed(ENVELOPE[:-1])},
}


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES.keys())
def test_the_batch_is_found_whatever_the_shape(body):
    assert batch_of(body) == BATCH


NONE = {
    "nothing": None,
    "a number": 7,
    "a text": f"please look at batch id {BATCH}",
    "two batches": {"args": [EVENT, {**EVENT, "batch_id": "batch-other"}]},
    "a number as id": {"batch_id": 7},
    "a list": {"batch_id": [BATCH, "batch-8"]},
    "an odd id": {"batch_id": "'; DROP TABLE dead_letters --"},
    "a long id": {"batch_id": "x" * 65},
    "bytes that are no text": {"base64": packed(bytes(range(256)))},
    "another field": {"batch_size": "25", "rebatch_id_of": BATCH},
    "a broken pack": {"base64": packed(b"\x1f\x8b" + b"x" * 30)},
}


@pytest.mark.parametrize("body", NONE.values(), ids=NONE.keys())
def test_no_batch_is_guessed(body):
    assert batch_of(body) is None


def test_the_field_of_the_contract_wins():
    assert batch_of({**EVENT, "data": {"batchId": "batch-other"}}) == BATCH


def test_what_is_no_id_is_listed_for_people():
    assert batch_ids({"batch_id": "batch 7f3a"}) == ["batch 7f3a"]


def test_a_large_body_is_not_read_to_its_end():
    body = {"a": [0] * (2 * MOST_NODES), "z": EVENT}

    assert batch_of(body) is None


def test_a_body_that_inflates_without_end_is_read_in_part():
    bomb = gzip.compress(as_json(EVENT).encode() + b" " * 100_000_000)

    assert batch_of({"base64": packed(bomb)}) in (BATCH, None)


def test_a_body_may_contain_itself():
    body = {}
    body["args"] = [body]

    assert batch_of(body) is None
