"""What operators do from a terminal: each action has its effect, and a row with who and why."""

import json

import pytest

from core import db
from core.db.dead_letters import DeadLetter
from core.outbox import relay
from ops import letters
from ops.queries import actions
from ops.queries.dead_letters import Letters
from ops.queries.dead_letters import letters as listed
from tests import factories as make
from tests.core import looks, story
from tests.ops.place import a_place


@pytest.fixture(scope="module")
def whole(database_url):
    with a_place(database_url) as made:
        yield made


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    """The servers, empty."""
    monkeypatch.setenv("ELS_HOME", str(tmp_path))
    whole.client.flushdb()
    with whole.pool.connection() as conn:
        conn.execute("TRUNCATE batch_essay_trackers, idempotency_keys CASCADE")
        conn.execute("TRUNCATE dead_letters, operator_actions")
    return whole


# --- cancel and amend ----------------------------------------------------------------------------


def test_a_cancellation_says_who_and_why_and_needs_no_worker(place):
    batch = make.new_batch()
    story.register(place.lifecycle, batch, 2)

    done = place.els("cancel", batch, "--reason", "sent twice", "--by", "anna", "--json")

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == [
        {"task": "els.cancel_batch", "outcome": "cancelled", "batch_id": batch}
    ]
    (action,) = place.actions(batch_id=batch)
    assert (action["actor"], action["action"], action["reason"]) == ("anna", "cancel", "sent twice")
    assert action["changes"] == {"status": ["awaiting_content_validation", "cancelled"]}
    assert "cancelled by anna: sent twice" in place.timeline(batch)
    assert "cancelled: sent twice" not in place.timeline(batch)
    with place.pool.connection() as conn:
        (event,) = looks.events(conn, batch)
    assert (event["type"], event["data"]["reason"]) == ("BatchCancelled", "sent twice")
    assert event["published_at"] is not None


def test_who_acts_is_the_user_of_the_system_unless_a_name_is_given(place, monkeypatch):
    monkeypatch.setenv("LOGNAME", "berit")
    batch = make.new_batch()
    story.register(place.lifecycle, batch, 1)

    place.els("cancel", batch, "--reason", "x")

    (action,) = place.actions(batch_id=batch)
    assert action["actor"].startswith("berit@")


@pytest.mark.parametrize(
    ("ended", "code"), [("unknown", "UNKNOWN_BATCH"), ("ready", "WRONG_BATCH_STATE")]
)
@pytest.mark.parametrize(
    "command", [("cancel",), ("amend", "--deadline", "2h")], ids=lambda c: c[0]
)
def test_what_is_refused_changes_nothing_and_leaves_no_letter(place, ended, code, command):
    batch = make.new_batch()
    if ended == "ready":
        story.fill(place.lifecycle, batch, 1)
        place.lifecycle.complete(batch)

    refused = place.els(*command, batch, "--reason", "x", "--json")

    assert refused.exit_code == 1
    assert json.loads(refused.stdout)[0]["code"] == code
    assert place.actions() == []
    with place.pool.connection() as conn:
        assert listed(conn, batch_id=None, task=None, every=True, limit=9) == []


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        (("--on-deadline", "proceed"), "on_deadline", ["fail", "proceed"]),
        (("--prompt-ref", '{"id": 7}'), "student_prompt_ref", [None, {"id": 7}]),
    ],
)
def test_an_amendment_says_the_old_value_and_the_new_one(place, given, field, value):
    batch = make.new_batch()
    story.register(place.lifecycle, batch, 1)

    done = place.els("amend", batch, *given, "--reason", "asked for", "--by", "anna")

    assert done.exit_code == 0, done.output
    (action,) = place.actions(batch_id=batch)
    assert action["changes"] == {field: value}
    assert "amended by anna: asked for" in place.timeline(batch)
    assert "amended by els.amend_batch" not in place.timeline(batch)


@pytest.mark.parametrize("given", ["2h", "7200", "MOMENT"])
def test_a_deadline_is_given_as_a_moment_or_from_now(place, given):
    batch = make.new_batch()
    story.register(place.lifecycle, batch, 1)
    with place.pool.connection() as conn:
        row = conn.execute("SELECT now() + interval '2 hours' AS wanted").fetchone()
    option = "--deadline-s" if given.isdigit() else "--deadline"
    text = row["wanted"].isoformat() if given == "MOMENT" else given

    done = place.els("amend", batch, option, text, "--reason", "x")

    assert done.exit_code == 0, done.output
    with place.pool.connection() as conn:
        found = looks.batch(conn, batch)["deadline_at"]
    assert abs((found - row["wanted"]).total_seconds()) < 30


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("cancel", "b"), "--reason"),
        (("cancel", "b", "--reason", "  "), "--reason"),
        (("cancel", "b", "--reason", "x" * 1025), "--reason"),
        (("cancel", "b", "--reason", "x", "--by", ""), "--by"),
        (("amend", "b", "--reason", "x"), "--deadline"),
        (("amend", "b", "--deadline", "2h"), "--reason"),
        (("amend", "b", "--reason", "x", "--deadline", "2001-01-01"), "--deadline"),
        (("amend", "b", "--reason", "x", "--deadline", "soon"), "--deadline"),
        (("amend", "b", "--reason", "x", "--deadline", "1h", "--deadline-s", "1"), "both"),
        (("amend", "b", "--reason", "x", "--prompt-ref", "[1]"), "--prompt-ref"),
        (("amend", "b", "--reason", "x", "--prompt-ref", "{"), "--prompt-ref"),
        (("amend", "b", "--reason", "x", "--on-deadline", "wait"), "--on-deadline"),
        (("dead-letters", "replay"), "--all"),
        (("dead-letters", "replay", "1", "--all"), "not both"),
        (("dead-letters", "replay", "--all", "--rate", "fast"), "--rate"),
        (("dead-letters", "replay", "--all", "--rate", "0/s"), "--rate"),
        (("dead-letters", "replay", "--since", "yore"), "--since"),
        (("dead-letters", "discard", "--all"), "--reason"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_said_and_changes_nothing(place, arguments, option):
    letter = place.park()

    refused = place.els(*arguments)

    assert refused.exit_code == 2, refused.output
    assert option in refused.stderr
    assert place.actions() == []
    assert place.letter(letter)["state"] == "waiting"


# --- dead letters --------------------------------------------------------------------------------


def a_crowd(place):
    """Letters of two batches, two tasks and three codes; the numbers by name."""
    return {
        "cancel": place.park("batch-a"),
        "assign": place.park("batch-a", "els.assign_content", "RETRIES_EXHAUSTED"),
        "other": place.park("batch-b", "els.assign_content", "EXPIRED"),
        "none": place.park(None, "els.assign_content", "EXPIRED"),
        "unreadable": place.park(None, "unknown", "MALFORMED_MESSAGE", {"base64": "eA=="}),
    }


FILTERS = {
    ("--batch", "batch-a"): {"cancel", "assign"},
    ("--task", "els.assign_content"): {"assign", "other", "none"},
    ("--code", "EXPIRED"): {"other", "none"},
    ("--code", "EXPIRED", "--batch", "batch-b"): {"other"},
    ("--since", "1h"): {"cancel", "assign", "other", "none", "unreadable"},
    ("--since", "2099-01-01"): set(),
    ("--all",): {"cancel", "assign", "other", "none", "unreadable"},
}


@pytest.mark.parametrize("chosen", FILTERS, ids=" ".join)
def test_letters_that_fit_a_filter_are_sent_again(place, chosen):
    crowd, wanted = a_crowd(place), FILTERS[chosen]

    dry = json.loads(place.els("dead-letters", "replay", *chosen, "--dry-run", "--json").stdout)
    before = place.sent()
    done = place.els("dead-letters", "replay", *chosen, "--reason", "mended", "--json")

    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    readable = {crowd[name] for name in wanted} - {crowd["unreadable"]}
    assert (dry["letters"], before) == (len(wanted), [])
    assert set(result["replayed"]) == readable
    assert [each["id"] for each in result["skipped"]] == [
        crowd[name] for name in wanted & {"unreadable"}
    ]
    assert len(place.sent()) == len(readable)
    states = {number: place.letter(number)["state"] for number in crowd.values()}
    assert states == {n: "replayed" if n in readable else "waiting" for n in crowd.values()}
    assert {each["target"] for each in place.actions(name="replay")} == {
        f"dead letter {number}" for number in readable
    }


@pytest.mark.parametrize("chosen", FILTERS, ids=" ".join)
def test_letters_that_fit_a_filter_are_discarded(place, chosen):
    crowd, wanted = a_crowd(place), FILTERS[chosen]

    done = place.els("dead-letters", "discard", *chosen, "--reason", "of a test", "--by", "anna")

    assert done.stdout == f"{len(wanted)} discarded\n", done.output
    discarded = {n for n in crowd.values() if place.letter(n)["state"] == "discarded"}
    assert discarded == {crowd[name] for name in wanted}
    assert place.sent() == []
    rows = place.actions()
    assert {(each["actor"], each["reason"]) for each in rows} <= {("anna", "of a test")}
    assert len(rows) == len(wanted)


def test_a_replay_that_fails_again_is_linked_and_not_replayed_again(place):
    first = place.park("batch-a")
    story.register(place.lifecycle, "batch-a", 1)
    place.els("dead-letters", "replay", first, "--reason", "try", "--by", "anna")
    [(task, task_id)] = place.sent()
    with place.pool.connection() as conn:
        again = db.dead_letters.add(
            conn, DeadLetter(task, task_id, "batch-a", "{}", "UNKNOWN_BATCH", "why")
        )

    listed = place.els("dead-letters", "list", "--all").stdout
    before, after = place.letter(first), place.letter(again)

    assert (before["state"], before["failed_again_as"]) == ("failed_again", again)
    assert (after["state"], after["replay_of"]) == ("waiting", first)
    assert f"failed again as {again}" in listed
    assert f"replay of {first}" in listed
    assert f"dead letter {first} replayed by anna: try" in place.timeline("batch-a")
    assert json.loads(place.els("dead-letters", "replay", "--all", "--json").stdout)[
        "replayed"
    ] == [again]


def test_a_letter_that_others_hold_is_left_to_them(place):
    held, free = place.park("batch-a"), place.park("batch-a")
    with place.pool.connection() as other, other.transaction():
        other.execute("SELECT FROM dead_letters WHERE id = %s FOR UPDATE", [held])

        done = place.els("dead-letters", "discard", "--all", "--reason", "x", "--json")

    assert json.loads(done.stdout)["discarded"] == [free]


def test_what_was_sent_before_the_broker_fails_stays_noted(place):
    crowd = [place.park("batch-a") for _ in range(3)]

    class Failing:
        sent = 0

        def send(self, task, event):
            if self.sent == 2:
                raise letters.StackError("the broker does not take messages")
            self.sent += 1
            return type("Sent", (), {"task_id": f"again-{self.sent}"})

    with place.pool.connection() as conn:
        given = (
            Letters(),
            actions.By("anna", "x"),
            letters.Pace(None),
            lambda done: None,
        )
        with pytest.raises(letters.StackError):
            letters.replay(conn, Failing(), *given)

    assert [place.letter(n)["state"] for n in crowd] == ["replayed", "replayed", "waiting"]
    assert len(place.actions()) == 2


@pytest.mark.parametrize(
    ("text", "per_second"), [("10/s", 10), ("90/min", 1.5), ("2", 2), ("0.5/s", 0.5), ("7200/h", 2)]
)
def test_a_rate_is_read(text, per_second):
    assert letters.read_rate(text) == per_second


def test_a_pace_lets_no_more_through_than_its_rate():
    pace = letters.Pace(20)
    started = letters.time.monotonic()

    for _ in range(5):
        pace.wait()

    assert letters.time.monotonic() - started >= 4 / 20


def test_letters_without_a_reason_are_replayed_and_discarded_by_number_as_ever(place):
    first, second = place.park(), place.park()

    replayed = place.els("dead-letters", "replay", first)
    discarded = place.els("dead-letters", "discard", second)

    assert (replayed.stdout, discarded.stdout) == ("1 sent again\n", "1 discarded\n")
    assert [each["reason"] for each in place.actions()] == [None, None]


# --- events, the sweep, the list -----------------------------------------------------------------


def test_events_that_are_delivered_again_keep_their_first_delivery(place):
    batch, other = make.new_batch(), make.new_batch()
    for each in (batch, other):
        story.fill(place.lifecycle, each, 1)
        place.lifecycle.complete(each)
        relay(place.pool, [each], lambda events: None)
    with place.pool.connection() as conn:
        first = [event["published_at"] for event in looks.events(conn, batch)]

    dry = place.els("outbox", "republish", "--since", "1h", "--batch", batch, "--dry-run")
    done = place.els(
        *("outbox", "republish", "--since", "1h", "--batch", batch),
        *("--type", "BatchEssaysReady", "--reason", "lost downstream", "--by", "anna"),
    )
    waits = place.timeline(batch)
    relay(place.pool, [batch], lambda events: None)

    assert dry.stdout == "2 events would be delivered again\n"
    assert done.stdout.startswith("1 event queued")
    with place.pool.connection() as conn:
        kept, again = looks.events(conn, batch)
        untouched = looks.events(conn, other)
    assert (kept["published_at"], kept["first_published_at"]) == (first[0], None)
    assert again["first_published_at"] == first[1] < again["published_at"]
    assert [each["first_published_at"] for each in untouched] == [None, None]
    assert "event delivered: BatchEssaysReady" in waits
    told = place.timeline(batch)
    assert "event delivered: BatchEssaysReady" in told
    assert "event delivered again: BatchEssaysReady" in told
    assert "events to be delivered again: 1 by anna: lost downstream" in told


def test_a_sweep_by_hand_is_an_action_with_what_it_mended(place):
    batch = make.new_batch()
    story.fill(place.lifecycle, batch, 1)

    done = place.els("reconcile", batch, "--reason", "cannot wait", "--by", "anna")
    dry = place.els("reconcile", "--dry-run")

    assert (done.exit_code, dry.exit_code) == (0, 0), done.output
    (action,) = place.actions()
    assert (action["action"], action["target"]) == ("reconcile", f"batch {batch}")
    assert action["changes"]["mended"]["full_not_announced"] == 1
    assert "reconciled by anna: cannot wait" in place.timeline(batch)


def test_actions_are_listed_for_people_and_for_programs(place):
    batch, letter = make.new_batch(), place.park("batch-a")
    story.register(place.lifecycle, batch, 1)
    place.els("cancel", batch, "--reason", "sent twice", "--by", "anna")
    place.els("dead-letters", "discard", letter, "--reason", "of a test", "--by", "berit")

    told = place.els("actions", "list").stdout
    rows = json.loads(place.els("actions", "list", "--by", "anna", "--json").stdout)
    of_kind = json.loads(place.els("actions", "list", "--action", "discard", "--json").stdout)
    later = json.loads(place.els("actions", "list", "--since", "2099-01-01", "--json").stdout)

    assert "cancel  batch " + batch + "  anna" in told
    assert "    sent twice\n    status: awaiting_content_validation → cancelled" in told
    assert [row["batch_id"] for row in rows] == [batch]
    assert [row["actor"] for row in of_kind] == ["berit"]
    assert later == []


def test_many_actions_of_a_moment_are_one_line_of_the_timeline(place):
    for _ in range(3):
        place.park("batch-a")
    story.register(place.lifecycle, "batch-a", 1)

    place.els("dead-letters", "discard", "--all", "--reason", "a test", "--by", "anna")

    lines = [line for line in place.timeline("batch-a") if "discarded" in line]
    assert len(lines) == 1
    assert lines[0].endswith("discarded and 2 more by anna: a test")
