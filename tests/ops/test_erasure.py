"""A person who is erased is nowhere in tables and Redis, and nobody else is touched."""

import base64
import json
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from core import db
from core.events import manifest_sha256
from core.outbox import relay
from core.signs.pauses import Outage, Pause, write_pause
from ops import erasure
from ops.queries import actions
from tests import factories as make
from tests.core import looks, story
from tests.ops.place import a_place

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"


@pytest.fixture(scope="module")
def place(database_url):
    with a_place(database_url) as made:
        made.client.flushdb()
        yield made
        made.client.flushdb()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ELS_HOME", str(tmp_path))


@pytest.fixture(params=["user", "student"])
def kind(request):
    return request.param


def dump(place):
    """Every row of every table, as text."""
    with place.pool.connection() as conn:
        names = [row["tablename"] for row in conn.execute(TABLES)]
        return {
            name: sorted(row["t"] for row in conn.execute(f"SELECT x::text AS t FROM {name} x"))
            for name in names
        }


def dump_redis(place):
    """Every key of Redis with its value."""
    return {key: values(place, key) for key in place.client.scan_iter()}


def values(place, key):
    match place.client.type(key):
        case "string":
            return place.client.get(key)
        case "hash":
            return json.dumps(place.client.hgetall(key))
        case "list":
            return json.dumps(place.client.lrange(key, 0, -1))
    return ""


def a_batch(place, user, student, teacher, *, close=True):
    """A regular batch of this user and student, with every kind of row, its events delivered."""
    batch, essays = make.new_batch(), make.essay_ids(2)
    story.register(
        place.lifecycle,
        batch,
        2,
        class_id="class-1",
        user_id=user,
        metadata={"mail": f"{user} at school", "of": [{"who": user}]},
    )
    for n in range(2):
        name = f"{student}_essay {n}.txt"
        story.assign(place.lifecycle, batch, f"text-{n}", original_file_name=name)
    story.assign(
        place.lifecycle, batch, "text-over", original_file_name=f"{student} and {user}.txt"
    )
    place.lifecycle.complete(batch)
    if close:
        make_ready(place, batch, essays, student, teacher)
        relay(place.pool, [batch], lambda events: None)
    return batch


def in_base64(user, student):
    return base64.b64encode(f"\x00 {student} {user}".encode()).decode()


def make_ready(place, batch, essays, student, teacher):
    told = [{**make.association(each, student), "validated_by": teacher} for each in essays]
    make.take(place.lifecycle, "els.confirm_students", make.confirmation(batch, told))


def plant(place, user, student):
    """Put both people wherever something can be, of no batch too."""
    teacher = user
    batch = a_batch(place, user, student, teacher)
    by = actions.By(user, f"{user} asked for {student}")
    waiting = make.new_batch()
    story.assign(place.lifecycle, waiting, "text-1", original_file_name=f"{student}-{user}.txt")
    raw = in_base64(user, student)
    for body in (
        make.confirmation(batch, [{**make.association("e", student), "validated_by": user}]),
        make.registration(batch, 1, user_id=user, metadata={"student": student}),
        make.cancellation(batch, f"{user} says that {student} left"),
        {"args": [f"{student}"], "kwargs": {user: 1}},
        {"base64": raw},
    ):
        place.park(batch, body=body)
        place.park(None, body=body)
    with place.pool.connection() as conn:
        actions.record(conn, by.action("cancel", f"asked by {user}", batch, of=[user, student]))
        conn.execute(
            "UPDATE dead_letters SET message = %s WHERE batch_id = %s", [f"{user} {student}", batch]
        )
        conn.execute(
            "UPDATE batch_essay_trackers SET closed_reason = %s WHERE batch_id = %s",
            [f"as {user} and {student} asked", batch],
        )
        db.sweep.note_failure(conn, batch, "slot_drift", f"no {user}, no {student}")
    place.client.set(f"celery-task-meta-{uuid4()}", json.dumps({"who": [user, student]}))
    outage = Outage("redis", f"error of {user} and {student}")
    write_pause(place.client, Pause(uuid4().hex, outage, datetime.now(UTC)))
    return batch


def people():
    """A user and a student whose ids look like those of two others."""
    n = uuid4().hex[:8]
    return (f"teacher-{n}", f"student-{n}"), (f"teacher-{n}0", f"student-{n}0")


def test_a_person_is_nowhere_and_nobody_else_is_touched(place, kind):
    (user, student), (other_user, other_student) = people()
    batch, other = plant(place, user, student), plant(place, other_user, other_student)
    person = user if kind == "user" else student
    word, own_bytes = erasure.Person(kind, person).word, in_base64(user, student)

    def names(row):
        return word.search(row) or own_bytes in row

    of_others = {n: [r for r in rows if not names(r)] for n, rows in dump(place).items()}
    counted = place.els("erase", f"--{kind}", person, "--reason", "GDPR", "--dry-run", "--json")
    still = sum(person in row for rows in dump(place).values() for row in rows)

    done = place.els("erase", f"--{kind}", person, "--reason", f"for {person}", "--json")

    assert done.exit_code == 0, done.output
    after = dump(place)
    assert [row for rows in after.values() for row in rows if names(row)] == []
    assert [v for v in dump_redis(place).values() if word.search(v)] == []
    assert still > 0
    assert sum(in_base64(other_user, other_student) in row for row in after["dead_letters"]) == 2
    for table in after.keys() - {"operator_actions"}:
        others = [row for row in of_others[table] if batch not in row]
        assert [row for row in others if row not in after[table]] == [], table
    result, dry = json.loads(done.stdout), json.loads(counted.stdout)
    assert (dry["rows"], dry["redis"]) == (result["rows"], result["redis"])
    assert result["redis"] == 2
    with place.pool.connection() as conn:
        assert looks.batch(conn, other)["user_id"] == other_user
        assert {e["student_id"] for e in looks.essays(conn, other).values()} == {other_student}
        assert looks.batch(conn, batch)["user_id"] == ("erased" if kind == "user" else user)
        (action,) = actions.newest(conn, actions.Wanted(name="erase"), 1)
    assert (action["target"], action["reason"]) == (f"a {kind}", "for erased")


def test_the_other_kind_of_person_with_this_id_stays(place):
    same = f"p-{uuid4().hex[:8]}"
    batch = a_batch(place, same, same, "teacher-9")

    place.els("erase", "--student", same, "--reason", "x")

    with place.pool.connection() as conn:
        assert looks.batch(conn, batch)["user_id"] == same
        assert {e["student_id"] for e in looks.essays(conn, batch).values()} == {"erased"}


def test_the_files_of_a_student_lose_their_names_everywhere(place):
    student = people()[0][1]
    batch = make.new_batch()
    story.register(place.lifecycle, batch, 2, class_id="class-1")
    story.assign(place.lifecycle, batch, "text-0", original_file_name="Åsa Berg.txt")
    story.assign(place.lifecycle, batch, "text-1", original_file_name="Bo Ek.txt")
    place.lifecycle.complete(batch)
    with place.pool.connection() as conn:
        mine = next(
            e for e in looks.essays(conn, batch).values() if e["text_storage_id"] == "text-0"
        )
        other = next(
            e for e in looks.essays(conn, batch).values() if e["text_storage_id"] == "text-1"
        )
    told = [
        make.association(mine["essay_id"], student),
        make.association(other["essay_id"], "student-2"),
    ]
    make.take(place.lifecycle, "els.confirm_students", make.confirmation(batch, told))
    relay(place.pool, [batch], lambda events: None)

    done = place.els("erase", "--student", student, "--reason", "x")

    assert done.exit_code == 0, done.output
    everything = json.dumps(dump(place), ensure_ascii=False)
    assert "Åsa Berg" not in everything
    assert "Bo Ek.txt" in everything


def test_manifests_still_verify_and_a_second_time_changes_nothing(place, kind):
    (user, student), _ = people()
    batch = a_batch(place, user, student, user)
    person = user if kind == "user" else student

    first = place.els("erase", f"--{kind}", person, "--reason", "x", "--json")
    before = {n: rows for n, rows in dump(place).items() if n != "operator_actions"}
    second = place.els("erase", f"--{kind}", person, "--reason", "x", "--json")

    assert json.loads(first.stdout)["rows"]
    assert json.loads(second.stdout)["rows"] == {}
    assert {n: rows for n, rows in dump(place).items() if n != "operator_actions"} == before
    with place.pool.connection() as conn:
        ready = next(e for e in looks.events(conn, batch) if e["type"] == "BatchEssaysReady")
    assert manifest_sha256(ready["data"]["ready_essays"]) == ready["data"]["manifest_sha256"]


def test_while_a_batch_needs_the_person_it_is_refused_unless_asked_for(place):
    (user, student), _ = people()
    batch = a_batch(place, user, student, user, close=False)

    refused = place.els("erase", "--user", user, "--reason", "x")
    with place.pool.connection() as conn:
        kept = looks.batch(conn, batch)["user_id"]
    done = place.els("erase", "--user", user, "--reason", "x", "--open")

    assert refused.exit_code == 1
    assert batch in refused.stderr
    assert kept == user
    assert done.exit_code == 0, done.output
    with place.pool.connection() as conn:
        assert looks.batch(conn, batch)["user_id"] == "erased"


def test_messages_that_wait_are_named_and_left(place):
    user = people()[0][0]
    letter = place.park(None, body=make.registration("b-1", 1, user_id=user))
    place.els("dead-letters", "replay", letter)
    before = place.client.lrange("els", 0, -1)

    done = place.els("erase", "--user", user, "--reason", "x", "--json")

    assert done.exit_code == 1
    assert json.loads(done.stdout)["waiting"] == {"els": 1}
    assert place.client.lrange("els", 0, -1) == before
    place.client.delete("els")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--reason", "x"),
        ("--user", "a"),
        ("--user", " ", "--reason", "x"),
        ("--user", "a", "--student", "b", "--reason", "x"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_said(place, arguments):
    assert place.els("erase", *arguments).exit_code == 2


@pytest.mark.parametrize(
    ("text", "name", "scrubbed"),
    [
        ("user-1", "note", "erased"),
        ("user-1.docx", "original_file_name", "erased.docx"),
        ("user-1_essay", "original_file_name", "erased_essay"),
        ("by user-1, late", "note", "by erased, late"),
        ("user-10", "note", "user-10"),
        ("user-1-b", "note", "user-1-b"),
        ("xuser-1 y", "note", "xuser-1 y"),
        ("user-1", "batch_id", "user-1"),
        ("user-1", "student_id", "user-1"),
        ("user-1", "validated_by", "erased"),
    ],
)
def test_an_id_is_a_word_of_its_own(text, name, scrubbed):
    scrub = erasure.Scrub(erasure.Person("user", "user-1"), {})

    assert scrub.value({name: text})[name] == scrubbed


@pytest.mark.parametrize("person", ['Åsa "B" Ek', "a\\b", "x@school.example", "%_*"])
def test_an_id_may_be_any_text(place, person):
    batch = a_batch(place, person, "student-5", person)

    done = place.els("erase", "--user", person, "--reason", "x", "--json")

    assert done.exit_code == 0, done.output
    with place.pool.connection() as conn:
        assert looks.batch(conn, batch)["user_id"] == "erased"
        assert {e["validated_by"] for e in looks.essays(conn, batch).values()} == {"erased"}
        assert all(e["data"].get("user_id") != person for e in looks.events(conn, batch))
