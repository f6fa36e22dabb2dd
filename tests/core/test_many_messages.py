"""Many messages are assigned by one claim and one commit; each has its own key and result."""

import pytest

from core.errors import ELSError
from core.model import Message
from core.parsing import parse
from tests.core import looks
from tests.core.crowd import at_once
from tests.core.story import assign, cancel, fill, register, texts, upload
from tests.factories import (
    LIMIT,
    MODELS,
    content,
    contents,
    essay_ids,
    new_batch,
    registration,
    rejection,
    take,
)

ASSIGN, UPLOAD, REJECT = "els.assign_content", "els.assign_contents", "els.reject_content"


def task_of(event):
    return UPLOAD if "contents" in event else ASSIGN if "text_storage_id" in event else REJECT


def parsed(events):
    return [parse(MODELS[task_of(e)], task_of(e), e, LIMIT) for e in events]


def assign_all(lifecycle, events):
    """Return for each message its `StepResult`, or the error that concerns it alone."""
    return lifecycle.assign([Message.of(*each) for each in parsed(events)])


def outcomes(results):
    return [each.code if isinstance(each, ELSError) else each.value["outcome"] for each in results]


def test_each_content_gets_a_slot_and_its_event_a_key(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 30)
    events = [content(batch_id, text) for text in texts(25)]

    results = assign_all(lifecycle, events)
    values = [result.value for result in results]

    assert outcomes(results) == ["assigned"] * 25
    assert len({value["essay_id"] for value in values}) == 25
    assert [take(lifecycle, ASSIGN, event).value for event in events] == values, "replays"
    assert looks.broken(conn, batch_id) == []
    moments = conn.execute(
        "SELECT count(DISTINCT assigned_at) AS n FROM essay_states WHERE batch_id = %s", [batch_id]
    ).fetchone()
    assert moments == {"n": 1}


def test_each_of_them_says_that_the_batch_is_full(lifecycle, batch_id):
    register(lifecycle, batch_id, 3)
    events = [content(batch_id, text) for text in texts(3)]

    results = assign_all(lifecycle, events)

    assert [(each.full, each.slots) for each in results] == [(True, 3)] * 3


def test_uploads_and_rejections_are_placed_with_contents(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 30)
    events = [
        contents(batch_id, texts(10)),
        rejection(batch_id),
        content(batch_id, "text-single"),
        contents(batch_id, [*texts(5, 10), *texts(5, 10)]),
    ]

    done = assign_all(lifecycle, events)

    assert outcomes(done) == ["accepted", "failed_slot", "assigned", "accepted"]
    assert [d.value.get("contents") for d in done] == [10, None, None, 10]
    assert [d.became for d in done] == [
        {"assigned": 10},
        {"failed_slot": 1},
        {"assigned": 1},
        {"assigned": 5},
    ]
    replays = [take(lifecycle, task_of(event), event).value for event in events]
    assert replays == [d.value for d in done]
    assert looks.broken(conn, batch_id) == []
    moments = conn.execute(
        "SELECT count(DISTINCT assigned_at) AS n FROM essay_states WHERE batch_id = %s", [batch_id]
    ).fetchone()
    assert moments == {"n": 1}


def too_many(lifecycle, batch_id):
    register(lifecycle, batch_id, 2)
    return [content(batch_id, text) for text in texts(4)], ["assigned"] * 2 + ["excess"] * 2


def unknown(lifecycle, batch_id):
    return [content(batch_id, text) for text in texts(3)], ["pending"] * 3


def closed(lifecycle, batch_id):
    register(lifecycle, batch_id, 3)
    cancel(lifecycle, batch_id)
    return [content(batch_id, text) for text in texts(3)], ["closed"] * 3


def repeats(lifecycle, batch_id):
    register(lifecycle, batch_id, 5)
    before = content(batch_id, "text-0")
    take(lifecycle, ASSIGN, before)
    twice = content(batch_id, "text-1")
    anew = content(batch_id, "text-1")  # another event of the same content
    return [before, twice, twice, anew, content(batch_id, "text-2")], ["assigned"] * 5


def uploads_with_repeats(lifecycle, batch_id):
    register(lifecycle, batch_id, 12)
    upload(lifecycle, batch_id, texts(4))
    events = [
        contents(batch_id, texts(4, start=2)),  # two of these are placed
        contents(batch_id, texts(2, start=4)),  # both are in the one before
        contents(batch_id, texts(2, start=8)),
    ]
    return events, ["accepted"] * 3


def an_upload_too_many(lifecycle, batch_id):
    register(lifecycle, batch_id, 5)
    return [contents(batch_id, texts(3, start)) for start in (0, 3)], ["accepted"] * 2


def waited_for_their_batch(lifecycle, batch_id):
    events = [content(batch_id, text) for text in texts(3)]
    for event in events:
        take(lifecycle, ASSIGN, event)
    take(lifecycle, "els.register_batch", registration(batch_id, 5))
    more = content(batch_id, "text-more")
    return [*events, more], [*["pending"] * 3, "assigned"]


def of_a_forgetful_redis(lifecycle, batch_id):
    register(lifecycle, batch_id, 5)
    assign(lifecycle, batch_id, "text-1")
    lifecycle.slots.forget([batch_id])
    lifecycle.slots.seed(batch_id, ["essay-000000", "essay-000001", "no-slot", "nor-this"])
    return [content(batch_id, text) for text in texts(4)], ["assigned"] * 4


SCENES = [
    too_many,
    unknown,
    closed,
    repeats,
    uploads_with_repeats,
    an_upload_too_many,
    waited_for_their_batch,
    of_a_forgetful_redis,
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_a_message_that_does_not_fit_is_settled_as_if_it_came_alone(
    lifecycle, conn, batch_id, scene
):
    events, expected = scene(lifecycle, batch_id)

    results = assign_all(lifecycle, events)

    assert outcomes(results) == expected
    assert looks.broken(conn, batch_id) == []
    held = {slot["essay_id"] for slot in looks.held(conn, batch_id)}
    assert lifecycle.slots.recent_claims(batch_id) <= held


def test_the_claims_of_a_refused_upload_are_free_at_once(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 5)
    first = contents(batch_id, texts(2))
    take(lifecycle, UPLOAD, first)
    other = {**contents(batch_id, texts(3, start=1)), "event_id": first["event_id"]}

    results = assign_all(lifecycle, [other, content(batch_id, "text-more")])

    assert outcomes(results) == ["IDEMPOTENCY_CONFLICT", "assigned"]
    held = {slot["essay_id"] for slot in looks.held(conn, batch_id)}
    assert lifecycle.slots.free(batch_id) == {*essay_ids(5)} - held
    assert len(held) == 3


def test_an_event_id_with_two_bodies_is_a_conflict_for_one_of_them(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 5)
    first = content(batch_id, "text-1")
    other = content(batch_id, "text-2", event_id=first["event_id"])

    results = assign_all(lifecycle, [first, other])

    assert outcomes(results) == ["assigned", "IDEMPOTENCY_CONFLICT"]
    assert looks.broken(conn, batch_id) == []


def test_contents_of_a_full_batch_are_excess(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 3)

    results = assign_all(lifecycle, [content(batch_id, "late-1"), content(batch_id, "late-2")])

    assert outcomes(results) == ["excess", "excess"]
    assert looks.broken(conn, batch_id) == []


def test_contents_of_many_batches_are_placed_by_one_commit(lifecycle, conn):
    batches = [new_batch() for _ in range(4)]
    for batch in batches:
        register(lifecycle, batch, 3)
    events = [content(batch, text) for text in texts(3) for batch in reversed(batches)]

    done = assign_all(lifecycle, events)

    assert outcomes(done) == ["assigned"] * 12
    assert [each.value["batch_id"] for each in done] == [event["batch_id"] for event in events]
    assert all(each.full for each in done)
    assert [take(lifecycle, ASSIGN, event).value for event in events] == [e.value for e in done]
    assert all(looks.broken(conn, batch) == [] for batch in batches)
    moments = conn.execute(
        "SELECT count(DISTINCT assigned_at) AS n FROM essay_states WHERE batch_id = ANY(%s)",
        [batches],
    ).fetchone()
    assert moments == {"n": 1}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_what_is_not_simple_holds_no_other_batch_up(lifecycle, conn, batch_id, scene):
    other = new_batch()
    register(lifecycle, other, 3)
    simple = [content(other, text) for text in texts(3)]
    events, expected = scene(lifecycle, batch_id)

    results = assign_all(lifecycle, [simple[0], *events, *simple[1:]])

    assert outcomes([results[0], *results[-2:]]) == ["assigned"] * 3
    assert outcomes(results[1:-2]) == expected
    assert looks.broken(conn, batch_id) == looks.broken(conn, other) == []


def test_an_event_id_of_two_batches_is_a_conflict_for_one_of_them(lifecycle, conn):
    batches = sorted([new_batch(), new_batch()], reverse=True)
    for batch in batches:
        register(lifecycle, batch, 3)
    first = content(batches[0], "text-1")
    other = content(batches[1], "text-1", event_id=first["event_id"])

    results = assign_all(lifecycle, [first, other])

    assert outcomes(results) == ["assigned", "IDEMPOTENCY_CONFLICT"]
    assert [looks.broken(conn, batch) for batch in batches] == [[], []]


def test_jobs_with_the_same_batches_do_not_wait_for_each_other_for_ever(lifecycle, conn):
    batches = [new_batch() for _ in range(20)]
    for batch in batches:
        register(lifecycle, batch, 12)

    def job(number):
        order = batches if number % 2 else batches[::-1]
        events = [content(batch, f"text-{number}-{n}") for n in range(2) for batch in order]
        return lambda: assign_all(lifecycle, events)

    done = at_once(*map(job, range(6)))

    assert {outcome for results in done for outcome in outcomes(results)} == {"assigned"}
    assert [looks.broken(conn, batch) for batch in batches] == [[]] * 20


def test_those_who_ask_are_told_of_each_slot(telling, conn, batch_id):
    register(telling, batch_id, 5)
    upload(telling, batch_id, ["text-before"])

    results = assign_all(telling, [content(batch_id, text) for text in texts(3)])

    told = [row for row in looks.events(conn, batch_id) if row["type"] == "EssaySlotAssigned"]
    assert {row["data"]["essay_id"] for row in told} >= {each.value["essay_id"] for each in results}
    assert [row["sequence"] for row in told] == [1, 2, 3, 4]
    assert looks.broken(conn, batch_id) == []
