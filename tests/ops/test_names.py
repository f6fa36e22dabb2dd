"""Names and storage keys, from a sender's file through a whole running service to every reader."""

import json
import re
from html import unescape
from urllib.parse import quote

import psycopg
import pytest
from psycopg.rows import dict_row

from tests import factories as make
from tests.core import looks
from tests.live.conftest import until
from tests.names import BAD_KEYS, BAD_NAMES, KEYS, NAMES
from tests.ops.conftest import fetch

PEOPLE = ("user_id", "org_id", "class_id", "course_code")


@pytest.fixture
def books(service):
    with psycopg.connect(
        service.env["database_url"], autocommit=True, row_factory=dict_row
    ) as opened:
        yield opened


def lines(events):
    """Write JSON Lines as most senders do: what is no ASCII as it is."""
    return "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)


def submit(service, *events):
    told = service.els("submit", "-", "--wait", "--json", stdin=lines(events))
    return json.loads(told.stdout)


def other(key):
    """A content that is called like the claim of a rejected file once was."""
    return "rejected:" + key[:200]


def story(batch, name, key):
    """A regular batch of two texts, one of which is told of twice, and a rejected file."""
    people = dict.fromkeys(PEOPLE, name)
    keys = {"file_upload_id": key, "raw_file_storage_id": key}
    return [
        make.registration(batch, 3, **people, metadata={name: name}),
        make.content(batch, key, **keys),
        make.common(batch, contents=[make.a_content(t, **keys) for t in (key, other(key))]),
        make.rejection(batch, key[:200]),
    ]


def delivered(books, batch):
    rows = looks.events(books, batch)
    return rows if len(rows) == 3 and all(row["published_at"] for row in rows) else None


def page(service, path):
    status, text = fetch(service.env["ops_url"] + path)
    assert status == 200
    return text


def test_every_name_and_key_is_read_back_to_the_letter(service, books):
    ways = [*zip(NAMES.values(), [*KEYS.values()] * 3, strict=False)]
    batches = {make.new_batch(): way for way in ways}
    events = [event for batch, way in batches.items() for event in story(batch, *way)]

    told = submit(service, *events)

    # A content may overtake its registration on the way to another process.
    assert {line["outcome"] for line in told} - {"pending"} == {
        "registered",
        "assigned",
        "accepted",
        "failed_slot",
    }
    for batch in batches:
        until(lambda b=batch: looks.batch(books, b)["completed_at"], what="the batch is complete")
    confirmations = [
        make.confirmation(
            batch,
            [make.association(e, name, validated_by=name) for e in looks.essays(books, batch)],
            class_id=name,
        )
        for batch, (name, _) in batches.items()
    ]
    assert {line["outcome"] for line in submit(service, *confirmations)} == {"confirmed"}
    for batch, (name, key) in batches.items():
        rows = until(lambda b=batch: delivered(books, b), what="its events are delivered")
        tracker, essays = looks.batch(books, batch), looks.essays(books, batch)
        assert {tracker[field] for field in PEOPLE} == {name}
        assert {e["student_id"] for e in essays.values()} == {name}
        assert {e["text_storage_id"] for e in essays.values()} == {
            None,
            key,
            other(key),
        }
        ready = rows[-1]["data"]
        assert {ready[field] for field in PEOPLE} == {name}
        assert ready["metadata"] == {name: name}
        assert {essay["student_id"] for essay in ready["ready_essays"]} == {name}
        assert looks.broken(books, batch, at_rest=True) == []


def test_the_pages_show_names_and_keys_to_the_letter_and_link_to_them(service):
    batches = {make.new_batch(): name for name in NAMES.values()}
    keys = dict(zip(batches, [*KEYS.values()] * 3, strict=False))
    submit(
        service, *(make.registration(b, 1, user_id=n, course_code=n) for b, n in batches.items())
    )
    submit(service, *(make.content(b, k, file_upload_id=k) for b, k in keys.items()))

    for batch, name in batches.items():
        text = page(service, f"/batches/{batch}?slot=essay-000000")
        found = re.search(r'course <bdi>(.*?)</bdi> · user <a href="(.*?)"><bdi>(.*?)</bdi>', text)
        assert [unescape(found[1]), unescape(found[3])] == [name, name]
        assert f"<dt>Text</dt><dd><bdi>{keys[batch]}</bdi></dd>" in unescape(text)
        board = page(service, unescape(found[2]))
        assert f"/batches/{batch}" in board
        assert f'value="{name}"' in unescape(board)
        assert f"· <bdi>{name}</bdi> · <bdi>{name}</bdi>" in unescape(board)
        assert "<script>" not in board
        assert f"/batches/{batch}" in page(service, "/?q=" + quote(name[: len(name) // 2 + 1]))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Swedish", "of S3"),
        ("quotes", "quotes"),
        ("a subject of Auth0", "backslashes"),
        ("blanks around", "markup of a terminal"),
        ("255 of four bytes", "255 characters"),
    ],
)
def test_find_finds_a_name_and_a_key_for_people_and_for_programs(service, name, key):
    name, key, batch = NAMES[name], KEYS[key], make.new_batch()
    submit(
        service,
        make.registration(batch, 1, user_id=name),
        make.content(batch, key, file_upload_id=key),
    )

    found = {
        wanted: json.loads(service.els("find", "--json", "--limit", 10_000, "--", wanted).stdout)
        for wanted in (name, key)
    }
    shown = service.els("find", "--limit", 10_000, "--", key).stdout

    assert [row["name"] for row in found[name] if row["batch_id"] == batch] == ["of this user"]
    assert [row["content"] for row in found[key] if row["batch_id"] == batch] == [key]
    assert f"  {key}  " in "".join(line for line in shown.splitlines() if batch in line)


@pytest.mark.parametrize("bad", ["256 letters", "empty", "tab", "newline", "DEL", "the last of C1"])
def test_what_is_no_name_is_kept_as_a_dead_letter_that_find_finds(service, bad):
    value, rule = BAD_NAMES[bad]
    batch = make.new_batch()

    [told] = submit(service, make.registration(batch, 1, user_id=value))
    found = service.els("find", "--json", "--", value) if value else None

    assert (told["outcome"], told["code"]) == ("dead_letter", "VALIDATION_ERROR")
    assert "user_id: " in told["message"]
    assert rule in told["message"]
    assert found is None or batch in found.stdout


def test_what_is_no_key_is_kept_as_a_dead_letter(service):
    batch = make.new_batch()
    bad = [value for value, _ in BAD_KEYS.values() if isinstance(value, str)]

    told = submit(service, *(make.content(batch, value) for value in bad))

    assert {line["code"] for line in told} == {"VALIDATION_ERROR"}
    assert all("text_storage_id: " in line["message"] for line in told)
