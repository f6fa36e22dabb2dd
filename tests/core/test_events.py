"""The wire is strict: what is not in the contract is refused, with the reason."""

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from core.catalogue import OPT_IN
from core.errors import InvalidEvent
from core.lifecycle import Lifecycle
from core.messages import BULK_LIMIT, SINGLE_LIMIT
from core.parsing import canonical, parse
from tests.core import looks
from tests.core.story import assign, cancel, confirm, register, reject, upload
from tests.factories import (
    EXAMPLES,
    MODELS,
    a_content,
    association,
    essay_ids,
)

OPTIONAL = {
    "els.register_batch": {
        "org_id": "org-1",
        "class_id": "class-1",
        "student_prompt_ref": {"a": [1, None, {"b": 2.5}]},
        "deadline_s": 3600,
        "on_deadline": "proceed",
        "metadata": {},
    },
    "els.assign_content": {"raw_file_storage_id": "raw", "content_md5_hash": "d41d8cd9"},
    "els.assign_contents": {},
    "els.reject_content": {
        "raw_file_storage_id": "raw",
        "validation_error_detail": {"limit": 50},
        "file_size_bytes": 0,
    },
    "els.confirm_students": {},
    "els.cancel_batch": {},
    "els.amend_batch": {"student_prompt_ref": {"a": 1}, "deadline_s": 0.5},
}
COMMON = ["event_id", "correlation_id", "timestamp", "schema_version", "batch_id"]
REGISTER, ASSIGN, UPLOAD, REJECT, CONFIRM, CANCEL, AMEND = EXAMPLES


def read(task, event, limit=BULK_LIMIT):
    return parse(MODELS[task], task, event, limit)


def reason_of(task, event):
    """Return why an event is refused; nothing if it is read."""
    try:
        read(task, event)
    except InvalidEvent as error:
        return str(error)
    return ""


def refused(task, event, limit=BULK_LIMIT):
    """Read an event that is refused; return the reason."""
    with pytest.raises(InvalidEvent) as caught:
        read(task, event, limit)
    assert str(caught.value).startswith(task)
    return str(caught.value)


@pytest.mark.parametrize("task", EXAMPLES)
def test_a_valid_event_is_read(task):
    event, idem = read(task, EXAMPLES[task])

    assert event.batch_id == "b"
    assert idem.key == UUID(EXAMPLES[task]["event_id"])
    assert idem.task == task
    assert len(idem.fingerprint) == 32


@pytest.mark.parametrize("task", EXAMPLES)
def test_every_optional_field_is_read(task):
    event, _ = read(task, EXAMPLES[task] | OPTIONAL[task])

    assert {name: getattr(event, name) for name in OPTIONAL[task]} == OPTIONAL[task]


@pytest.mark.parametrize(
    ("task", "field"),
    [(task, field) for task, event in EXAMPLES.items() for field in event],
)
def test_a_missing_field_is_refused_by_its_name(task, field):
    event = {name: value for name, value in EXAMPLES[task].items() if name != field}

    assert field in refused(task, event)


@pytest.mark.parametrize("task", EXAMPLES)
def test_an_unknown_field_is_refused(task):
    reason = refused(task, EXAMPLES[task] | {"suprise": 1, "Åsa A.": 2})

    assert "suprise: is an unknown field" in reason
    assert "event: has an unknown field" in reason
    assert "Åsa" not in reason


@pytest.mark.parametrize("task", EXAMPLES)
def test_an_unknown_field_that_is_null_is_refused(task):
    assert "suprise: is an unknown field" in refused(task, EXAMPLES[task] | {"suprise": None})


def test_a_field_of_another_event_is_not_taken_for_a_slip():
    reason = refused(AMEND, EXAMPLES[AMEND] | {"course_code": "x"})

    assert reason.endswith("course_code: is an unknown field")


def test_a_field_in_capitals_is_taken_for_a_slip():
    event = dict(EXAMPLES[AMEND])
    event["BATCH_ID"] = event.pop("batch_id")

    assert "event: has an unknown field; is batch_id meant?" in refused(AMEND, event)


def test_an_event_in_another_object_is_refused_by_the_name_of_that():
    reason = refused(AMEND, {"payload": EXAMPLES[AMEND]})

    assert reason.partition(": ")[2].startswith("payload: is an unknown field; ")


PYDANTIC = ("Value error", "Input", "should", "UUID input", "required", "after validation")


@pytest.mark.parametrize("value", [None, "", "x", -1, 1.5, True, [], [[]], {}, {"a": 1}], ids=str)
@pytest.mark.parametrize("task", EXAMPLES)
def test_a_refusal_is_written_in_words_for_senders(task, value):
    fields = EXAMPLES[task] | OPTIONAL[task]

    reasons = [reason_of(task, {**fields, name: value}) for name in fields]

    assert [reason for reason in reasons if any(word in reason for word in PYDANTIC)] == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "NaN or Infinity"),
        (float("-inf"), "NaN or Infinity"),
        ({1, 2}, "a value of a type that JSON does not have"),
        ("\ud800", "half of a surrogate pair"),
        ("\0", "a NUL character"),
    ],
    ids=["NaN", "-Infinity", "a set", "half a pair", "NUL"],
)
def test_what_cannot_be_kept_is_refused_in_words_that_name_the_field(value, reason):
    bad = EXAMPLES[REGISTER] | {"student_prompt_ref": {}, "metadata": {"a": [value]}}

    assert refused(REGISTER, bad).startswith(f"{REGISTER}: metadata: must not hold {reason}")


def test_a_field_that_is_none_of_ours_is_not_named_where_json_cannot_hold_it():
    assert "Åsa" not in refused(REGISTER, EXAMPLES[REGISTER] | {"Åsa": float("nan")})


@pytest.mark.parametrize(
    ("timestamp", "reason"),
    [
        ("2026-01-31T23:59:60Z", "must not be in a leap second: write 59 in place of 60"),
        ("2026-01-31T08:00:00", "must be in UTC, written with Z or +00:00"),
        ("2026-02-30T08:00:00Z", "must be an RFC 3339 timestamp, such as 2026-01-31T08:00:00Z"),
        ("2026-01-31T24:00:00Z", "must be an RFC 3339 timestamp, such as 2026-01-31T08:00:00Z"),
    ],
)
def test_a_moment_that_cannot_be_read_is_refused_in_words_for_senders(timestamp, reason):
    told = refused(REGISTER, EXAMPLES[REGISTER] | {"timestamp": timestamp})

    assert told == f"{REGISTER}: timestamp: {reason}"


def test_another_version_is_refused_with_the_one_that_is_read():
    told = refused(REGISTER, EXAMPLES[REGISTER] | {"schema_version": 2})

    assert told == f"{REGISTER}: schema_version: must be 1"


@pytest.mark.parametrize("task", EXAMPLES)
def test_an_optional_field_may_be_null_as_well_as_absent(task):
    model = MODELS[task]
    optional = [name for name, each in model.model_fields.items() if not each.is_required()]
    bare = {name: value for name, value in EXAMPLES[task].items() if name not in optional}
    bare |= {"deadline_s": 5} if task == AMEND else {}
    nulls = dict.fromkeys(optional) | bare

    assert read(task, nulls)[0] == read(task, bare)[0]
    assert Draft202012Validator(model.model_json_schema()).is_valid(nulls)


@pytest.mark.parametrize(
    ("task", "field", "inner"),
    [
        (UPLOAD, "contents", a_content("t") | {"suprise": 1}),
        (CONFIRM, "associations", association("e") | {"suprise": 1}),
    ],
)
def test_an_unknown_field_inside_is_refused(task, field, inner):
    assert f"{field}.0.suprise: is an unknown field" in refused(
        task, EXAMPLES[task] | {field: [inner]}
    )


@pytest.mark.parametrize(
    "field", ["text_storage_id", "file_upload_id", "original_file_name", "file_size_bytes"]
)
def test_a_missing_field_inside_an_upload_is_refused(field):
    inner = {name: value for name, value in a_content("t").items() if name != field}

    assert f"contents.0.{field}" in refused(UPLOAD, EXAMPLES[UPLOAD] | {"contents": [inner]})


BAD_IDENTIFIERS = {
    "empty": "",
    "65 characters": "x" * 65,
    "a space": "two words",
    "space before": " x",
    "newline at the end": "x\n",
    "carriage return": "x\r",
    "tab": "x\t",
    "a colon": "a:b",
    "a dot": "a.b",
    "a slash": "../etc/passwd",
    "unicode letter": "é",
    "unicode digit": "\u0661",
    "fullwidth": "\uff21",
    "zero width": "a\u200bb",
    "a key of Redis": "batch:{x}",
    "a glob": "*",
    "SQL": "'; DROP TABLE essay_states--",
    "percent": "%s",
    "NUL": "a\0b",
    "lone surrogate": "a\ud800",
    "a number": 7,
    "a list": ["x"],
    "true": True,
}


@pytest.mark.parametrize("value", BAD_IDENTIFIERS.values(), ids=BAD_IDENTIFIERS.keys())
@pytest.mark.parametrize("task", EXAMPLES)
def test_what_is_no_identifier_is_refused(task, value):
    assert "batch_id" in refused(task, EXAMPLES[task] | {"batch_id": value}) or surrogate(value)


def surrogate(value):
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)


def test_a_refusal_says_in_words_what_an_identifier_is():
    reason = refused(CANCEL, EXAMPLES[CANCEL] | {"batch_id": "a b"})

    assert "batch_id: must be 1 to 64 characters, each a letter A to Z or a to z" in reason


@pytest.mark.parametrize("value", BAD_IDENTIFIERS.values(), ids=BAD_IDENTIFIERS.keys())
@pytest.mark.parametrize(
    ("task", "build"),
    [
        (REGISTER, lambda v: {"essay_ids": [v], "expected_essay_count": 1}),
        (CONFIRM, lambda v: {"associations": [association(v)]}),
    ],
    ids=["essay", "association"],
)
def test_what_is_no_identifier_is_refused_inside_too(task, build, value):
    refused(task, EXAMPLES[task] | build(value))


BAD_COMMON = {
    "event_id: no UUID": {"event_id": "no-uuid"},
    "event_id: number": {"event_id": 1},
    "event_id: null": {"event_id": None},
    "event_id: empty": {"event_id": ""},
    "event_id: short": {"event_id": str(uuid4())[:-1]},
    "event_id: list": {"event_id": [str(uuid4())]},
    "correlation_id: no UUID": {"correlation_id": "x"},
    "timestamp: naive": {"timestamp": "2030-01-01T00:00:00"},
    "timestamp: not UTC": {"timestamp": "2030-01-01T00:00:00+01:00"},
    "timestamp: a date": {"timestamp": "2030-01-01"},
    "timestamp: no date": {"timestamp": "yesterday"},
    "timestamp: 30 February": {"timestamp": "2030-02-30T00:00:00Z"},
    "timestamp: number": {"timestamp": 1_900_000_000},
    "timestamp: float": {"timestamp": 1_900_000_000.5},
    "timestamp: null": {"timestamp": None},
    "timestamp: empty": {"timestamp": ""},
    "timestamp: digits and a letter": {"timestamp": "1e9"},
    "schema_version: 2": {"schema_version": 2},
    "schema_version: 0": {"schema_version": 0},
    "schema_version: text": {"schema_version": "1"},
    "schema_version: float": {"schema_version": 1.5},
    "schema_version: null": {"schema_version": None},
}


@pytest.mark.parametrize("change", BAD_COMMON.values(), ids=BAD_COMMON.keys())
@pytest.mark.parametrize("task", EXAMPLES)
def test_a_bad_common_field_is_refused_by_its_name(task, change):
    assert next(iter(change)) in refused(task, EXAMPLES[task] | change)


@pytest.mark.parametrize("task", EXAMPLES)
def test_true_is_no_schema_version(task):
    assert "schema_version" in refused(task, EXAMPLES[task] | {"schema_version": True})


BAD = {
    "no essays": (REGISTER, {"essay_ids": [], "expected_essay_count": 0}),
    "essays twice": (REGISTER, {"essay_ids": ["a", "b", "a"], "expected_essay_count": 3}),
    "count too low": (REGISTER, {"expected_essay_count": 2}),
    "count too high": (REGISTER, {"expected_essay_count": 4}),
    "count is text": (REGISTER, {"expected_essay_count": "3"}),
    "count is a fraction": (REGISTER, {"expected_essay_count": 3.5}),
    "count is true": (REGISTER, {"essay_ids": ["a"], "expected_essay_count": True}),
    "count is huge": (REGISTER, {"expected_essay_count": 10**400}),
    "essays are text": (REGISTER, {"essay_ids": "abc"}),
    "essays are an object": (REGISTER, {"essay_ids": {"a": 1, "b": 2, "c": 3}}),
    "essays are null": (REGISTER, {"essay_ids": None}),
    "an essay is null": (REGISTER, {"essay_ids": ["a", "b", None]}),
    "no course": (REGISTER, {"course_code": ""}),
    "course is a number": (REGISTER, {"course_code": 5}),
    "no deadline": (REGISTER, {"deadline_s": 0}),
    "deadline in the past": (REGISTER, {"deadline_s": -1}),
    "deadline is text": (REGISTER, {"deadline_s": "60"}),
    "deadline is true": (REGISTER, {"deadline_s": True}),
    "deadline is NaN": (REGISTER, {"deadline_s": float("nan")}),
    "deadline never comes": (REGISTER, {"deadline_s": float("inf")}),
    "deadline beyond the calendar": (REGISTER, {"deadline_s": 1e300}),
    "unknown on_deadline": (REGISTER, {"on_deadline": "panic"}),
    "prompt is text": (REGISTER, {"student_prompt_ref": "prompt-1"}),
    "prompt is a list": (REGISTER, {"student_prompt_ref": []}),
    "metadata is a number": (REGISTER, {"metadata": 1}),
    "NaN in metadata": (REGISTER, {"metadata": {"a": [float("nan")]}}),
    "infinity in metadata": (REGISTER, {"metadata": {"a": [float("-inf")]}}),
    "NUL in metadata": (REGISTER, {"metadata": {"a": ["x\0"]}}),
    "NUL in a key of metadata": (REGISTER, {"metadata": {"a": {"x\0": 1}}}),
    "surrogate in metadata": (REGISTER, {"metadata": {"a": "\udc00"}}),
    "surrogate in a key": (REGISTER, {"metadata": {"\udc00": 1}}),
    "bytes in metadata": (REGISTER, {"metadata": {"a": b"x"}}),
    "a set in metadata": (REGISTER, {"metadata": {"a": {1}}}),
    "keys that do not sort": (REGISTER, {"metadata": {"a": 1, 2: 2}}),
    "digits without end": (REGISTER, {"metadata": {"a": 10**5000}}),
    "negative size": (ASSIGN, {"file_size_bytes": -1}),
    "size over bigint": (ASSIGN, {"file_size_bytes": 2**63}),
    "size is text": (ASSIGN, {"file_size_bytes": "1200"}),
    "size is a fraction": (ASSIGN, {"file_size_bytes": 0.5}),
    "size is true": (ASSIGN, {"file_size_bytes": True}),
    "size is null": (ASSIGN, {"file_size_bytes": None}),
    "no file name": (ASSIGN, {"original_file_name": ""}),
    "file name too long": (ASSIGN, {"original_file_name": "x" * 1025}),
    "file name is null": (ASSIGN, {"original_file_name": None}),
    "NUL in a file name": (ASSIGN, {"original_file_name": "a\0.txt"}),
    "surrogate in a file name": (ASSIGN, {"original_file_name": "a\ud800.txt"}),
    "empty hash": (ASSIGN, {"content_md5_hash": ""}),
    "hash too long": (ASSIGN, {"content_md5_hash": "x" * 129}),
    "hash is a number": (ASSIGN, {"content_md5_hash": 1}),
    "no contents": (UPLOAD, {"contents": []}),
    "contents are null": (UPLOAD, {"contents": None}),
    "contents are an object": (UPLOAD, {"contents": a_content("t")}),
    "a content is text": (UPLOAD, {"contents": ["text-1"]}),
    "a content is null": (UPLOAD, {"contents": [None]}),
    "NUL inside an upload": (
        UPLOAD,
        {"contents": [a_content("t", original_file_name="\0")]},
    ),
    "unknown error code": (REJECT, {"validation_error_code": "TOO_BORING"}),
    "error code in small letters": (REJECT, {"validation_error_code": "empty_content"}),
    "error code is null": (REJECT, {"validation_error_code": None}),
    "detail is text": (REJECT, {"validation_error_detail": "too short"}),
    "NUL in a detail": (REJECT, {"validation_error_detail": {"text": "\0"}}),
    "negative size of a rejected file": (REJECT, {"file_size_bytes": -1}),
    "confidence below 0": (CONFIRM, {"associations": [association("e", confidence_score=-0.1)]}),
    "confidence over 1": (CONFIRM, {"associations": [association("e", confidence_score=1.1)]}),
    "confidence is NaN": (
        CONFIRM,
        {"associations": [association("e", confidence_score=float("nan"))]},
    ),
    "confidence is text": (CONFIRM, {"associations": [association("e", confidence_score="1")]}),
    "confidence is true": (CONFIRM, {"associations": [association("e", confidence_score=True)]}),
    "unknown method": (CONFIRM, {"associations": [association("e", validation_method="guess")]}),
    "validated at no time": (CONFIRM, {"associations": [association("e", validated_at=None)]}),
    "validated in local time": (
        CONFIRM,
        {"associations": [association("e", validated_at="2030-01-01T00:00:00+02:00")]},
    ),
    "an essay twice": (CONFIRM, {"associations": [association("e", "a"), association("e", "b")]}),
    "associations are null": (CONFIRM, {"associations": None}),
    "timeout_triggered is text": (CONFIRM, {"timeout_triggered": "false"}),
    "timeout_triggered is 0": (CONFIRM, {"timeout_triggered": 0}),
    "class is null": (CONFIRM, {"class_id": None}),
    "no reason": (CANCEL, {"reason": ""}),
    "reason too long": (CANCEL, {"reason": "x" * 1025}),
    "reason is null": (CANCEL, {"reason": None}),
    "nothing to amend": (AMEND, {"on_deadline": None}),
    "an amended deadline in the past": (AMEND, {"deadline_s": -1}),
    "an amended prompt that is text": (AMEND, {"student_prompt_ref": "prompt-2"}),
    "amended essays": (AMEND, {"essay_ids": ["a"]}),
    "NUL in a reason": (CANCEL, {"reason": "because\0"}),
}


@pytest.mark.parametrize(("task", "change"), BAD.values(), ids=BAD.keys())
def test_a_bad_field_is_refused(task, change):
    refused(task, EXAMPLES[task] | change)


NUMERALS = ["1900000000", "1900000000.5", "-1"]


@pytest.mark.parametrize("value", NUMERALS)
def test_seconds_written_as_text_are_no_timestamp(value):
    refused(CANCEL, EXAMPLES[CANCEL] | {"timestamp": value})


@pytest.mark.parametrize(
    ("task", "field", "most", "build"),
    [
        (REGISTER, "essay_ids", 100_000, lambda n: {"expected_essay_count": n}),
        (UPLOAD, "contents", 10_000, lambda n: {}),
    ],
)
def test_too_many_are_refused_and_the_most_are_taken(task, field, most, build):
    one = {"essay_ids": str, "contents": lambda n: a_content(f"t{n}")}[field]
    many = [one(number) for number in range(most + 1)]

    event, _ = read(task, EXAMPLES[task] | {field: many[:-1]} | build(most))
    reason = refused(task, EXAMPLES[task] | {field: many} | build(most + 1))

    assert len(getattr(event, field)) == most
    assert field in reason


NOT_OBJECTS = [None, 1, 1.5, True, "text", b"bytes", [], [EXAMPLES[CANCEL]], (), set(), object()]


@pytest.mark.parametrize("raw", NOT_OBJECTS, ids=lambda raw: type(raw).__name__)
@pytest.mark.parametrize("task", EXAMPLES)
def test_what_is_no_object_is_refused(task, raw):
    assert "JSON object" in refused(task, raw)


@pytest.mark.parametrize("key", [1, None, (1, 2), b"x", 1.5, True], ids=repr)
def test_a_key_that_is_no_text_is_refused(key):
    refused(CANCEL, EXAMPLES[CANCEL] | {key: "x"})
    refused(CANCEL, {key: "x"})


def test_an_empty_object_names_what_is_missing():
    reason = refused(CANCEL, {})

    assert all(field in reason for field in COMMON)
    assert "and 1 more" in reason


def test_the_reason_tells_no_values():
    secret = a_content("t", original_file_name=["Anna Andersson.txt"])

    reason = refused(UPLOAD, EXAMPLES[UPLOAD] | {"contents": [secret]})

    assert "Anna" not in reason
    assert "contents.0.original_file_name" in reason


# --- sizes and depths -----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [SINGLE_LIMIT, BULK_LIMIT])
@pytest.mark.parametrize("letter", ["x", "é", "大"], ids=["1-byte", "2-bytes", "3-bytes"])
def test_a_body_may_be_as_large_as_the_limit_and_no_larger(limit, letter):
    bare = EXAMPLES[REGISTER] | {"metadata": {"text": ""}}
    free = limit - len(canonical(bare).encode())
    width = len(letter.encode())
    text = letter * (free // width) + "x" * (free % width)

    event, _ = read(REGISTER, bare | {"metadata": {"text": text}}, limit)
    reason = refused(REGISTER, bare | {"metadata": {"text": text + "x"}}, limit)

    assert event.metadata == {"text": text}
    assert str(limit) in reason
    assert str(limit + 1) in reason


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return {"a": value}


@pytest.mark.parametrize("depth", [500, 5_000, 100_000])
def test_a_body_nested_too_deeply_is_refused(depth):
    refused(REGISTER, EXAMPLES[REGISTER] | {"metadata": nested(depth)})


def test_a_body_that_holds_itself_is_refused():
    endless = {}
    endless["metadata"] = endless

    refused(REGISTER, EXAMPLES[REGISTER] | {"metadata": endless})


@pytest.mark.parametrize("depth", [1, 50, 150])
def test_a_body_nested_within_reason_is_kept(lifecycle, conn, batch_id, depth):
    register(lifecycle, batch_id, metadata=nested(depth))

    assert looks.batch(conn, batch_id)["metadata"] == nested(depth)


# --- what is valid --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "timestamp",
    [
        "2030-01-01T00:00:00Z",
        "2030-01-01T00:00:00z",
        "2030-01-01T00:00:00+00:00",
        "2030-01-01T00:00:00-00:00",
        "2030-01-01T00:00:00.123456Z",
        datetime(2030, 1, 1, tzinfo=UTC),
    ],
    ids=str,
)
def test_utc_may_be_written_in_these_ways(timestamp):
    event, _ = read(CANCEL, EXAMPLES[CANCEL] | {"timestamp": timestamp})

    assert event.timestamp.utcoffset() == timedelta(0)


def test_a_local_datetime_of_a_typed_sender_is_refused():
    local = datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=2)))

    refused(CANCEL, EXAMPLES[CANCEL] | {"timestamp": local})


def test_a_typed_uuid_is_the_same_as_its_text():
    event = EXAMPLES[CANCEL]
    typed = {**event, "event_id": UUID(event["event_id"])}

    assert read(CANCEL, typed)[1] == read(CANCEL, event)[1]


def test_a_backslash_before_u0000_is_no_nul():
    event, _ = read(CANCEL, EXAMPLES[CANCEL] | {"reason": r"C:\u0000 and \\u0000"})

    assert event.reason == r"C:\u0000 and \\u0000"


FINGERPRINTS = {
    "timestamp": ({"timestamp": "2030-01-01T00:00:00Z"}, True),
    "another correlation": ({"correlation_id": str(uuid4())}, False),
    "another name": ({"original_file_name": "other.txt"}, False),
    "another size": ({"file_size_bytes": 1}, False),
    "another batch": ({"batch_id": "c"}, False),
}


@pytest.mark.parametrize(("change", "same"), FINGERPRINTS.values(), ids=FINGERPRINTS.keys())
def test_a_fingerprint_is_over_all_but_the_timestamp(change, same):
    first, again = EXAMPLES[ASSIGN], EXAMPLES[ASSIGN] | change

    equal = read(ASSIGN, first)[1].fingerprint == read(ASSIGN, again)[1].fingerprint

    assert equal is same


def test_a_fingerprint_is_the_hash_of_the_canonical_json_without_the_timestamp():
    event = EXAMPLES[ASSIGN] | {"original_file_name": "Aufsätze.txt"}

    _, idem = read(ASSIGN, event)

    said = {name: value for name, value in event.items() if name != "timestamp"}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert idem.fingerprint == hashlib.sha256(text.encode()).digest()


def test_a_fingerprint_survives_a_trip_over_the_wire():
    event = EXAMPLES[REGISTER] | OPTIONAL[REGISTER] | {"course_code": "Größe 大"}
    travelled = json.loads(json.dumps(dict(reversed(event.items()))))

    assert read(REGISTER, travelled)[1] == read(REGISTER, event)[1]


ODD_IDENTIFIERS = [
    "--",
    "_",
    "-",
    "NULL",
    "null",
    "None",
    "select",
    "true",
    "0",
    "-1",
    "x" * 64,
    "DROP_TABLE",
    "available_slots",
]


@pytest.mark.parametrize("odd", ODD_IDENTIFIERS)
def test_odd_identifiers_work_all_the_way(pool, conn, slots, odd):
    batch_id = f"{odd}-{uuid4().hex}"[:64] if len(odd) < 31 else uuid4().hex + "x" * 32
    lifecycle = Lifecycle(pool, slots, OPT_IN)
    ids = {"user_id": odd, "class_id": odd, "org_id": odd}

    register(lifecycle, batch_id, [odd, "other", "third"], **ids)
    values = [
        assign(lifecycle, batch_id, odd, file_upload_id=odd, raw_file_storage_id=odd),
        reject(lifecycle, batch_id, odd),
        upload(lifecycle, batch_id, [f"{odd[:50]}-2", f"{odd[:50]}-3"]),
    ]
    lifecycle.complete(batch_id)
    confirm(lifecycle, batch_id, {odd: odd}, class_id=odd)

    assert [value["outcome"] for value in values] == ["assigned", "failed_slot", "accepted"]
    assert looks.excess(conn, batch_id) == [f"{odd[:50]}-3"]
    assert looks.essays(conn, batch_id)[odd]["student_id"] == odd
    assert looks.batch(conn, batch_id)["status"] == "ready_for_pipeline_execution"
    assert looks.broken(conn, batch_id, slots=slots) == []


@pytest.mark.parametrize("odd", ["--", "NULL", "_", "select", "None"])
def test_odd_batch_ids_work_all_the_way(lifecycle, conn, odd):
    conn.execute("DELETE FROM batch_essay_trackers WHERE batch_id = %s", [odd])

    register(lifecycle, odd, essay_ids(1))
    value = assign(lifecycle, odd)
    lifecycle.complete(odd)

    assert value["outcome"] == "assigned"
    assert looks.batch(conn, odd)["status"] == "ready_for_pipeline_execution"
    conn.execute("DELETE FROM batch_essay_trackers WHERE batch_id = %s", [odd])


NAMES = [
    "Größe 大 🙂.txt",
    "..\\..\\x.txt",
    "'; DROP TABLE essay_states; --",
    "a\nb",
    "\x7f\x01",
    " ",
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_any_file_name_is_kept_to_the_letter(lifecycle, conn, batch_id, name):
    register(lifecycle, batch_id, 1)

    value = assign(lifecycle, batch_id, original_file_name=name)
    lifecycle.complete(batch_id)
    cancelled = looks.events(conn, batch_id, "BatchEssaysReady")

    essay = looks.essays(conn, batch_id)[value["essay_id"]]
    assert essay["original_file_name"] == name
    assert cancelled[0]["data"]["ready_essays"][0]["original_file_name"] == name


def test_any_reason_is_kept_to_the_letter(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 1)

    cancel(lifecycle, batch_id, "weil's „so“ ist\n🙂")

    assert looks.batch(conn, batch_id)["closed_reason"] == "weil's „so“ ist\n🙂"


# --- anything at all ------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from([*ODD_IDENTIFIERS, *NUMERALS, "", "\0", "\ud800", str(uuid4())]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutated(draw):
    """A valid event, a few of whose parts were replaced, removed or added."""
    task = draw(st.sampled_from(list(EXAMPLES)))
    event = json.loads(json.dumps(EXAMPLES[task] | OPTIONAL[task]))
    for _ in range(draw(st.integers(0, 4))):
        place = event
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys)) if keys else None
            deeper = isinstance(place[key], dict | list) if keys else False
            if not (deeper and place[key] and draw(st.booleans())):
                break
            place = place[key]
        if key is None:
            continue
        if draw(st.integers(0, 3)) == 0:
            del place[key]
        else:
            place[key] = draw(JSON)
        if draw(st.integers(0, 9)) == 0 and isinstance(place, dict):
            place[draw(st.text(st.characters()))] = draw(JSON)
    return task, event


@given(mutated())
@settings(
    max_examples=400,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_whatever_comes_is_read_or_refused(case):
    task, event = case

    try:
        parsed, idem = read(task, event)
    except InvalidEvent as refusal:
        str(refusal).encode()
    else:
        assert parsed.batch_id == event["batch_id"]
        assert idem == read(task, dict(reversed(event.items())))[1]


@given(JSON | st.dictionaries(st.text(st.characters()), JSON))
@settings(max_examples=200, derandomize=True)
def test_whatever_else_comes_is_refused(raw):
    for task in EXAMPLES:
        refused(task, raw)
