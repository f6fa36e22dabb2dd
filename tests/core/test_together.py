"""What several messages announce is placed by one claim and one commit, each with its own key."""

import pytest

from core.errors import IdempotencyConflict
from core.messages import parse
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


def assign_together(lifecycle, events):
    """Return the values of those that were placed together, None for those that were not."""
    done = lifecycle.assign_together(parsed(events))
    return [each and each.value for each in done]


def then_alone(lifecycle, events, together):
    """Take the rest as their tasks do; return all values."""
    return [
        value or take(lifecycle, task_of(event), event).value
        for event, value in zip(events, together, strict=True)
    ]


def outcomes(values):
    return [value and value["outcome"] for value in values]


def test_each_content_gets_a_slot_and_its_event_a_key(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 30)
    events = [content(batch_id, text) for text in texts(25)]

    values = assign_together(lifecycle, events)

    assert outcomes(values) == ["assigned"] * 25
    assert len({value["essay_id"] for value in values}) == 25
    assert [take(lifecycle, ASSIGN, event).value for event in events] == values, "replays"
    assert looks.broken(conn, batch_id) == []
    moments = conn.execute(
        "SELECT count(DISTINCT assigned_at) AS n FROM essay_states WHERE batch_id = %s", [batch_id]
    ).fetchone()
    assert moments == {"n": 1}


def test_the_last_of_them_says_that_the_batch_is_full(lifecycle, batch_id):
    register(lifecycle, batch_id, 3)
    events = [content(batch_id, text) for text in texts(3)]

    done = lifecycle.assign_together(parsed(events))

    assert [each.full for each in done] == [False, False, True]
    assert done[-1].slots == 3


def test_uploads_and_rejections_are_placed_with_contents(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 30)
    events = [
        contents(batch_id, texts(10)),
        rejection(batch_id),
        content(batch_id, "text-single"),
        contents(batch_id, [*texts(5, 10), *texts(5, 10)]),
    ]

    done = lifecycle.assign_together(parsed(events))

    assert outcomes([d.value for d in done]) == ["accepted", "failed_slot", "assigned", "accepted"]
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
def test_whatever_is_not_simple_is_left_to_its_own_task(lifecycle, conn, batch_id, scene):
    events, expected = scene(lifecycle, batch_id)

    together = assign_together(lifecycle, events)
    values = then_alone(lifecycle, events, together)

    assert outcomes(values) == expected
    assert looks.broken(conn, batch_id) == []
    held = {slot["essay_id"] for slot in looks.held(conn, batch_id)}
    assert lifecycle.slots.recent_claims(batch_id) <= held


def test_what_an_upload_claimed_in_vain_is_free_at_once(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 5)
    first = contents(batch_id, texts(2))
    take(lifecycle, UPLOAD, first)
    other = {**contents(batch_id, texts(3, start=1)), "event_id": first["event_id"]}

    together = assign_together(lifecycle, [other, content(batch_id, "text-more")])
    with pytest.raises(IdempotencyConflict):
        take(lifecycle, UPLOAD, other)

    assert outcomes(together) == [None, "assigned"]
    held = {slot["essay_id"] for slot in looks.held(conn, batch_id)}
    assert lifecycle.slots.free(batch_id) == {*essay_ids(5)} - held
    assert len(held) == 3


def test_an_event_id_with_two_bodies_is_a_conflict_for_one_of_them(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 5)
    first = content(batch_id, "text-1")
    other = content(batch_id, "text-2", event_id=first["event_id"])

    together = assign_together(lifecycle, [first, other])
    value = take(lifecycle, ASSIGN, first).value
    with pytest.raises(IdempotencyConflict):
        take(lifecycle, ASSIGN, other)

    assert together == [None, None]
    assert value["outcome"] == "assigned"
    assert looks.broken(conn, batch_id) == []


def test_a_full_batch_stays_as_it_is(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 3)

    together = assign_together(
        lifecycle, [content(batch_id, "late-1"), content(batch_id, "late-2")]
    )

    assert together == [None, None]
    assert looks.broken(conn, batch_id) == []


def test_contents_of_many_batches_are_placed_by_one_commit(lifecycle, conn):
    batches = [new_batch() for _ in range(4)]
    for batch in batches:
        register(lifecycle, batch, 3)
    events = [content(batch, text) for text in texts(3) for batch in reversed(batches)]

    done = lifecycle.assign_together(parsed(events))

    assert outcomes([each.value for each in done]) == ["assigned"] * 12
    assert [each.value["batch_id"] for each in done] == [event["batch_id"] for event in events]
    assert [each.full for each in done] == [False] * 8 + [True] * 4
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

    together = assign_together(lifecycle, [simple[0], *events, *simple[1:]])
    of_the_scene = together[1 : 1 + len(events)]
    values = then_alone(lifecycle, events, of_the_scene)

    assert outcomes([together[0], *together[-2:]]) == ["assigned"] * 3
    assert outcomes(values) == expected
    assert looks.broken(conn, batch_id) == looks.broken(conn, other) == []


def test_an_event_id_of_two_batches_is_a_conflict_for_one_of_them(lifecycle, conn):
    batches = sorted([new_batch(), new_batch()], reverse=True)
    for batch in batches:
        register(lifecycle, batch, 3)
    first = content(batches[0], "text-1")
    other = content(batches[1], "text-1", event_id=first["event_id"])

    together = assign_together(lifecycle, [first, other])
    with pytest.raises(IdempotencyConflict):
        take(lifecycle, ASSIGN, first)

    assert together[0] is None
    assert together[1]["batch_id"] == batches[1]
    assert [looks.broken(conn, batch) for batch in batches] == [[], []]


def test_jobs_with_the_same_batches_do_not_wait_for_each_other_for_ever(lifecycle, conn):
    batches = [new_batch() for _ in range(20)]
    for batch in batches:
        register(lifecycle, batch, 12)

    def job(number):
        order = batches if number % 2 else batches[::-1]
        events = [content(batch, f"text-{number}-{n}") for n in range(2) for batch in order]
        return lambda: lifecycle.assign_together(parsed(events))

    done = at_once(*map(job, range(6)))

    assert all(each for those in done for each in those)
    assert [looks.broken(conn, batch) for batch in batches] == [[]] * 20


def test_those_who_ask_are_told_of_each_slot(telling, conn, batch_id):
    register(telling, batch_id, 5)
    upload(telling, batch_id, ["text-before"])

    values = assign_together(telling, [content(batch_id, text) for text in texts(3)])

    told = [row for row in looks.events(conn, batch_id) if row["type"] == "EssaySlotAssigned"]
    assert {row["data"]["essay_id"] for row in told} >= {value["essay_id"] for value in values}
    assert [row["sequence"] for row in told] == [1, 2, 3, 4]
    assert looks.broken(conn, batch_id) == []
