"""The names of people and schools, and the keys of stores, pass to the letter, wherever they go."""

import json
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InvalidEvent, WrongBatchState
from core.lifecycle import Lifecycle
from core.messages import BULK_LIMIT
from core.parsing import parse
from core.slots import Claim, Slots
from ops.queries import batches
from tests.core import looks
from tests.core.story import assign, confirm, register, reject, texts, upload
from tests.factories import (
    MODELS,
    a_content,
    association,
    common,
    confirmation,
    content,
    new_batch,
    registration,
    rejection,
    take,
)
from tests.names import BAD_KEYS, BAD_NAMES, KEYS, NAMES

REGISTER, ASSIGN, UPLOAD = "els.register_batch", "els.assign_content", "els.assign_contents"
REJECT, CONFIRM = "els.reject_content", "els.confirm_students"
NAMED = {  # field: the task, an event with this name, where that stands
    "user_id": (REGISTER, lambda v: registration("b", user_id=v), ["user_id"]),
    "org_id": (REGISTER, lambda v: registration("b", org_id=v), ["org_id"]),
    "class_id": (REGISTER, lambda v: registration("b", class_id=v), ["class_id"]),
    "course_code": (REGISTER, lambda v: registration("b", course_code=v), ["course_code"]),
    "class_id of a confirmation": (CONFIRM, lambda v: confirmation("b", [], v), ["class_id"]),
    "student_id": (
        CONFIRM,
        lambda v: confirmation("b", [association("e", v)]),
        ["associations", 0, "student_id"],
    ),
    "validated_by": (
        CONFIRM,
        lambda v: confirmation("b", [association("e", validated_by=v)]),
        ["associations", 0, "validated_by"],
    ),
}
KEPT = ("text_storage_id", "file_upload_id", "raw_file_storage_id")
KEYED = {
    **{name: (ASSIGN, lambda v, n=name: content("b", **{n: v}), [name]) for name in KEPT},
    **{
        f"{name} of a rejected file": (REJECT, lambda v, n=name: rejection("b", **{n: v}), [name])
        for name in KEPT[1:]
    },
    **{
        f"{name} of an upload": (
            UPLOAD,
            lambda v, n=name: common("b", contents=[a_content("t") | {n: v}]),
            ["contents", 0, name],
        )
        for name in KEPT
    },
}


def table(values):
    return pytest.mark.parametrize("value", values.values(), ids=values.keys())


def fields(which):
    return pytest.mark.parametrize(("task", "build", "path"), which.values(), ids=which.keys())


def follow(value, path):
    for step in path:
        value = value[step] if isinstance(step, int) else getattr(value, step)
    return value


def reason_for(task, event):
    with pytest.raises(InvalidEvent) as caught:
        parse(MODELS[task], task, event, BULK_LIMIT)
    return str(caught.value)


# --- what passes and what does not ----------------------------------------------------------------


@table(NAMES)
@fields(NAMED)
def test_a_name_passes_to_the_letter(task, build, path, value):
    event, _ = parse(MODELS[task], task, build(value), BULK_LIMIT)

    assert follow(event, path) == value


@table(KEYS)
@fields(KEYED)
def test_a_storage_key_passes_to_the_letter(task, build, path, value):
    event, _ = parse(MODELS[task], task, build(value), BULK_LIMIT)

    assert follow(event, path) == value


@table(BAD_NAMES)
@fields(NAMED)
def test_what_is_no_name_is_refused_with_its_field_and_the_rule(task, build, path, value):
    bad, rule = value

    reason = reason_for(task, build(bad))

    assert reason.startswith(f"{task}: {'.'.join(map(str, path))}: ")
    assert rule in reason


@table(BAD_KEYS)
@fields(KEYED)
def test_what_is_no_storage_key_is_refused_with_its_field_and_the_rule(task, build, path, value):
    bad, rule = value

    reason = reason_for(task, build(bad))

    assert reason.startswith(f"{task}: {'.'.join(map(str, path))}: ")
    assert rule in reason


@pytest.mark.parametrize("half", ["\ud800", "a\udfff", "\udc00\ud800"])
@fields(NAMED | KEYED)
def test_half_of_a_surrogate_pair_is_refused_in_words(task, build, path, half):
    assert "half of a surrogate pair" in reason_for(task, build(half))


@pytest.mark.parametrize("field", ["user_id", "course_code"])
def test_a_name_that_must_be_there_may_not_be_null(field):
    assert field in reason_for(REGISTER, registration("b", **{field: None}))


# --- where they go --------------------------------------------------------------------------------


@table(NAMES)
def test_names_are_kept_to_the_letter_in_tables_and_events(lifecycle, conn, slots, batch_id, value):
    metadata = {value: [value, {"of": value}]}
    named = dict.fromkeys(("user_id", "org_id", "class_id", "course_code"), value)
    register(lifecycle, batch_id, 2, **named, metadata=metadata)
    upload(lifecycle, batch_id, texts(2))
    lifecycle.complete(batch_id)
    told = [association("essay-000000", value, validated_by=value)]

    done = take(lifecycle, CONFIRM, confirmation(batch_id, told, value)).value

    assert done["outcome"] == "confirmed"
    row = looks.batch(conn, batch_id)
    assert {name: row[name] for name in named} == named
    essay = looks.essays(conn, batch_id)["essay-000000"]
    assert (essay["student_id"], essay["validated_by"]) == (value, value)
    completed, ready = [event["data"] for event in looks.events(conn, batch_id)]
    for data in (completed, ready):
        assert {name: data[name] for name in named} == named
        assert data["metadata"] == metadata
        assert data["class_type"] == "REGULAR"
    assert [essay.get("student_id") for essay in ready["ready_essays"]] == [value, None]
    assert looks.broken(conn, batch_id, slots=slots) == []


@table(KEYS)
def test_storage_keys_are_kept_to_the_letter_in_tables_and_events(
    telling, conn, slots, batch_id, value
):
    register(telling, batch_id, 2)
    keys = {"file_upload_id": value, "raw_file_storage_id": value}
    event = content(batch_id, value, original_file_name="a.txt", **keys)

    values = [take(telling, ASSIGN, event).value for _ in range(2)]
    values.append(assign(telling, batch_id, value, **keys))
    failed = reject(telling, batch_id, value, raw_file_storage_id=value)
    over = assign(telling, batch_id, value[:250] + "-over", file_upload_id="f")
    early = new_batch()
    assign(telling, early, value, **keys)
    telling.complete(batch_id)

    assert values == [values[0]] * 3
    assert (failed["outcome"], over["outcome"]) == ("failed_slot", "excess")
    essays = looks.essays(conn, batch_id)
    essay, failure = essays[values[0]["essay_id"]], essays[failed["essay_id"]]
    assert [essay[name] for name in KEPT] == [value] * 3
    assert [failure[name] for name in KEPT] == [None, value, value]
    assert [looks.waiting(conn, early)[0][n] for n in ("text_storage_id", "essay_file_id")] == [
        value,
        value,
    ]
    events = {row["type"]: row for row in looks.events(conn, batch_id)}
    assert events["EssaySlotAssigned"]["generation"] == value
    assert events["ExcessContentProvisioned"]["data"]["text_storage_id"] == value[:250] + "-over"
    ready = events["BatchEssaysReady"]["data"]
    assert [ready["ready_essays"][0][name] for name in KEPT[:2]] == [value, value]
    assert ready["manifest_sha256"] == looks.manifest(ready["ready_essays"])
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_a_name_is_another_one_if_it_is_composed_in_another_way(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 1, class_id=NAMES["composed"])
    assign(lifecycle, batch_id)
    lifecycle.complete(batch_id)

    with pytest.raises(WrongBatchState, match="another class_id"):
        confirm(lifecycle, batch_id, {}, class_id=NAMES["combined"])

    done = confirm(lifecycle, batch_id, {}, class_id=NAMES["composed"])
    assert done["outcome"] == "confirmed"


ANY_NAME = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=255)
ANY_KEY = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)


@given(
    st.fixed_dictionaries(
        dict.fromkeys(["user_id", "org_id", "class_id", "course_code", "student_id"], ANY_NAME)
    ),
    st.lists(ANY_KEY, min_size=4, max_size=4),
)
@settings(max_examples=60, derandomize=True)
def test_any_name_and_any_key_makes_the_whole_way(pool, valkey, names, keys):
    batch_id, lifecycle = new_batch(), Lifecycle(pool, Slots(valkey))
    student = names.pop("student_id")
    text, file, raw, failed = keys
    take(lifecycle, REGISTER, registration(batch_id, 2, **names))
    take(
        lifecycle,
        ASSIGN,
        content(batch_id, text, file_upload_id=file, raw_file_storage_id=raw),
    )
    take(lifecycle, REJECT, rejection(batch_id, failed, original_file_name="x"))
    lifecycle.complete(batch_id)

    with pool.connection() as conn:
        [(essay_id, row)] = [
            (essay_id, row)
            for essay_id, row in looks.essays(conn, batch_id).items()
            if row["text_storage_id"]
        ]
        told = [association(essay_id, student)]
        take(lifecycle, CONFIRM, confirmation(batch_id, told, names["class_id"]))
        ready = looks.events(conn, batch_id, "BatchEssaysReady")[0]["data"]
        found = batches.search(conn, names["user_id"], None, None, 1_000)

    assert [row[name] for name in KEPT] == [text, file, raw]
    assert {name: ready[name] for name in names} == names
    assert ready["ready_essays"][0]["student_id"] == student
    assert batch_id in [batch for _, batch in found]


# --- a content that is called like a rejected file ------------------------------------------------


@pytest.mark.parametrize("first", ["content", "file"])
def test_a_content_called_like_a_rejected_files_claim_gets_a_slot_of_its_own(
    lifecycle, conn, slots, batch_id, first
):
    register(lifecycle, batch_id, 2)
    steps = {
        "content": lambda: assign(lifecycle, batch_id, "rejected:file-1"),
        "file": lambda: reject(lifecycle, batch_id, "file-1"),
    }
    order = [first, *(steps.keys() - {first})]

    values = {name: steps[name]() for name in order}
    again = {name: steps[name]() for name in order}

    assert values["content"]["outcome"] == "assigned"
    assert values["file"]["outcome"] == "failed_slot"
    assert values["content"]["essay_id"] != values["file"]["essay_id"]
    assert again == values
    assert slots.assignments(batch_id).keys() == {"rejected:file-1", "rejected file-1"}
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_they_are_told_apart_while_they_wait_and_in_excess(lifecycle, conn, batch_id):
    for _ in range(2):
        assign(lifecycle, batch_id, "rejected:file-1")
        reject(lifecycle, batch_id, "file-1")
    waiting = len(looks.waiting(conn, batch_id))
    register(lifecycle, batch_id, 1)

    assert waiting == 2
    assert looks.excess(conn, batch_id) == [None]
    assert looks.broken(conn, batch_id) == []


def test_a_rejected_file_of_before_the_upgrade_keeps_its_slot(lifecycle, slots, batch_id):
    register(lifecycle, batch_id, 2)
    first = reject(lifecycle, batch_id, "file-1")
    slots.release(batch_id, [Claim("rejected file-1", first["essay_id"], True)], still_open=False)
    slots.client.hset(f"batch:{{{batch_id}}}:assignments", "rejected:file-1", first["essay_id"])

    again = reject(lifecycle, batch_id, "file-1")
    named_so = assign(lifecycle, batch_id, "rejected:file-1")

    assert again == first
    assert named_so["outcome"] == "assigned"
    assert named_so["essay_id"] != first["essay_id"]


# --- searching and finding ------------------------------------------------------------------------


def searched(conn, words):
    return [batch_id for _, batch_id in batches.search(conn, words, None, None, 1_000)]


@table(NAMES)
def test_a_search_finds_a_user_by_each_beginning_of_the_name(lifecycle, conn, batch_id, value):
    mark = f"{uuid4().hex[:8]}"
    user_id = (mark + value)[:255]
    register(lifecycle, batch_id, 1, user_id=user_id)

    found = [searched(conn, user_id[:length]) for length in range(8, min(len(user_id), 40) + 1)]

    assert found == [[batch_id]] * len(found)
    assert searched(conn, user_id) == [batch_id]
    assert searched(conn, user_id + "x") == []


@table(NAMES)
def test_a_search_finds_a_user_by_nothing_but_the_name(lifecycle, conn, batch_id, value):
    register(lifecycle, batch_id, 1, user_id=value)

    assert batch_id in searched(conn, value)


def test_a_search_takes_no_character_for_a_pattern(lifecycle, conn):
    mark = uuid4().hex[:8]
    batches = {name: new_batch() for name in ("%", "_", "a", "å", "~~", "\U0010ffff\U0010ffff")}
    for name, batch_id in batches.items():
        register(lifecycle, batch_id, 1, user_id=mark + name)

    assert {name: searched(conn, mark + name) for name in batches} == {
        name: [batch_id] for name, batch_id in batches.items()
    }
    assert sorted(searched(conn, mark)) == sorted(batches.values())


def test_blanks_that_were_copied_along_hinder_no_search(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 1)

    assert searched(conn, f"  {batch_id}\u00a0") == [batch_id]


def test_a_search_for_a_user_reads_the_index(conn):
    wanted = {"words": "lärare", "beyond": "lärare\U0010ffff", "files": False, "uuid": None}
    place = {"status": None, "since": "infinity", "batch_id": "~", "limit": 51}
    conn.execute("ANALYZE batch_essay_trackers")

    with conn.transaction():
        conn.execute("SET LOCAL enable_seqscan = off")
        plan = conn.execute("EXPLAIN " + batches.SEARCH, {**wanted, **place}).fetchall()

    lines = "\n".join(line["QUERY PLAN"] for line in plan)
    assert "Index Cond: ((user_id ~>=~ 'lärare'::text) AND (user_id ~<~ 'lärare" in lines


@table(KEYS)
def test_find_finds_a_storage_key_and_nothing_else(lifecycle, conn, value):
    batch_id, other = new_batch(), new_batch()
    for each in (batch_id, other):
        register(lifecycle, each, 1)
    assign(lifecycle, batch_id, value, file_upload_id="file-x")

    found = [
        row for row in batches.find(conn, value, 1_000) if row["batch_id"] in (batch_id, other)
    ]

    assert [(row["place"], row["batch_id"], row["content"]) for row in found] == [
        ("slot", batch_id, value)
    ]


@table(NAMES)
@pytest.mark.parametrize("ascii_", [True, False], ids=["escaped", "plain"])
def test_find_finds_a_name_in_a_dead_letter_and_in_a_batch(
    lifecycle, conn, batch_id, value, ascii_
):
    register(lifecycle, batch_id, 1, class_id=value)
    body = registration(batch_id, 1, class_id=value)
    task_id = str(uuid4())
    conn.execute(
        "INSERT INTO dead_letters (task, task_id, batch_id, body, code, message)"
        " VALUES ('els.register_batch', %s, NULL, %s::json, 'C', 'm')",
        [task_id, json.dumps(body, ensure_ascii=ascii_)],
    )

    found = batches.find(conn, value, 100_000)

    assert ("batch", batch_id, "of this class") in [
        (row["place"], row["batch_id"], row["name"]) for row in found
    ]
    assert task_id in [row["content"] for row in found]
