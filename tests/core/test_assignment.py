"""Contents get slots: each at most one, each slot at most once, whatever Redis says."""

import pytest
from psycopg import Cursor

from core import db
from core.errors import IdempotencyConflict, SlotsInFlight
from core.lifecycle import Lifecycle
from core.slots import CHUNK
from tests.core import looks
from tests.core.crowd import at_once, persist
from tests.core.story import assign, cancel, fill, register, reject, texts, upload
from tests.factories import (
    a_content,
    content,
    contents,
    essay_ids,
    new_batch,
    now,
    rejection,
    take,
)

ASSIGN, UPLOAD = "els.assign_content", "els.assign_contents"


def test_a_content_takes_an_open_slot(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 3)

    value = assign(lifecycle, batch_id, "text-1", raw_file_storage_id="raw-1")

    assert value["outcome"] == "assigned"
    essay = looks.essays(conn, batch_id)[value["essay_id"]]
    expected = {
        "current_status": "ready_for_processing",
        "text_storage_id": "text-1",
        "file_upload_id": "file-text-1",
        "original_file_name": "text-1.txt",
        "raw_file_storage_id": "raw-1",
        "file_size_bytes": 1200,
    }
    assert {name: essay[name] for name in expected} == expected
    assert essay["assigned_at"] is not None
    assert looks.batch(conn, batch_id)["available_slots"] == 2
    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)
    assert slots.assignments(batch_id) == {"text-1": value["essay_id"]}


def test_the_last_content_finds_the_batch_full(lifecycle, batch_id):
    register(lifecycle, batch_id, 2)

    first = take(lifecycle, ASSIGN, content(batch_id, "text-1"))
    last = take(lifecycle, ASSIGN, content(batch_id, "text-2"))

    assert (first.full, last.full) == (False, True)


# --- many at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("same_event", [True, False], ids=["same-event", "new-events"])
@pytest.mark.parametrize("many", [3, 1], ids=["3-slots", "1-slot"])
def test_20_deliveries_of_one_content_take_one_slot(
    lifecycle, slots, conn, batch_id, same_event, many
):
    register(lifecycle, batch_id, many)
    event = content(batch_id)

    def deliver():
        told = event if same_event else content(batch_id)
        return persist(lambda: take(lifecycle, ASSIGN, told).value)

    values = at_once(*[deliver] * 20)

    assert values == [values[0]] * 20
    assert looks.placed(conn, batch_id) == {"text-1": values[0]["essay_id"]}
    assert looks.batch(conn, batch_id)["available_slots"] == many - 1
    assert looks.broken(conn, batch_id, slots=slots) == []


@pytest.mark.parametrize(
    ("many", "arriving"), [(15, 30), (100, 100)], ids=["30-for-15", "100-for-100"]
)
def test_contents_at_once_share_the_slots_without_repeats(
    lifecycle, slots, conn, batch_id, many, arriving
):
    register(lifecycle, batch_id, many)
    steps = [
        lambda text=text: persist(lambda: assign(lifecycle, batch_id, text))
        for text in texts(arriving)
    ]

    values = at_once(*steps)

    taken = [value["essay_id"] for value in values if value["outcome"] == "assigned"]
    assert sorted(taken) == essay_ids(many)
    assert [value["outcome"] for value in values].count("excess") == arriving - many
    over = looks.events(conn, batch_id, "ExcessContentProvisioned")
    assert sorted(row["data"]["text_storage_id"] for row in over) == sorted(
        looks.excess(conn, batch_id)
    )
    assert len(over) == arriving - many
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_exactly_one_of_many_contents_finds_the_batch_full(lifecycle, batch_id):
    register(lifecycle, batch_id, 20)
    steps = [
        lambda text=text: persist(lambda: take(lifecycle, ASSIGN, content(batch_id, text)))
        for text in texts(20)
    ]

    dones = at_once(*steps)

    assert [done.full for done in dones].count(True) == 1


def test_contents_at_once_while_redis_is_flushed_again_and_again(
    lifecycle, slots, conn, batch_id, valkey
):
    register(lifecycle, batch_id, 20)
    steps = [
        lambda text=text: persist(lambda: assign(lifecycle, batch_id, text)) for text in texts(25)
    ]
    for position in range(0, len(steps), 5):
        steps.insert(position, valkey.flushdb)

    at_once(*steps)

    assert len(looks.placed(conn, batch_id)) == 20
    assert len(looks.excess(conn, batch_id)) == 5
    assert looks.broken(conn, batch_id, slots=slots) == []


# --- repeats and conflicts ------------------------------------------------------------------------


def test_a_known_content_returns_its_slot_under_new_events(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 3)
    first = assign(lifecycle, batch_id)

    again = [assign(lifecycle, batch_id, original_file_name="renamed.txt") for _ in range(3)]

    assert again == [first] * 3
    essay = looks.essays(conn, batch_id)[first["essay_id"]]
    assert essay["original_file_name"] == "text-1.txt"
    assert looks.batch(conn, batch_id)["available_slots"] == 2
    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)


@pytest.mark.parametrize("kind", ["content", "upload"])
def test_a_repeat_gives_back_the_slot_that_a_repeat_before_it_died_with(
    lifecycle, conn, slots, batch_id, kind
):
    register(lifecycle, batch_id, 3)
    single = kind == "content"
    task = "els.assign_content" if single else "els.assign_contents"
    event = content(batch_id, "text-1") if single else contents(batch_id, ["text-1"])
    take(lifecycle, task, event)
    slots.forget([batch_id])
    slots.seed(batch_id, looks.open_slots(conn, batch_id))
    slots.claim({batch_id: ["text-1"]})[batch_id]  # and dies

    take(lifecycle, task, event)

    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_a_known_content_of_a_full_batch_returns_its_slot(lifecycle, conn, batch_id, valkey):
    register(lifecycle, batch_id, 2)
    first = assign(lifecycle, batch_id, "text-1")
    assign(lifecycle, batch_id, "text-2")
    lifecycle.complete(batch_id)
    valkey.flushdb()

    assert assign(lifecycle, batch_id, "text-1") == first
    assert looks.excess(conn, batch_id) == []


def test_the_same_content_in_two_batches_takes_a_slot_in_each(lifecycle, batch_id):
    other = new_batch()
    for each in (batch_id, other):
        register(lifecycle, each, 1)

    values = [assign(lifecycle, each, "text-1") for each in (batch_id, other)]

    assert [value["outcome"] for value in values] == ["assigned", "assigned"]


def test_an_excess_content_is_told_once_under_many_events(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 1)

    values = at_once(*[lambda: persist(lambda: assign(lifecycle, batch_id, "late"))] * 10)

    assert values == [{"outcome": "excess", "batch_id": batch_id}] * 10
    assert looks.excess(conn, batch_id) == ["late"]
    (event,) = looks.events(conn, batch_id)
    assert event["type"] == "ExcessContentProvisioned"
    assert event["data"] == {
        "batch_id": batch_id,
        "text_storage_id": "late",
        "file_upload_id": "file-late",
        "original_file_name": "late.txt",
        "reason": "NO_AVAILABLE_SLOT",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"text_storage_id": "text-2"},
        {"original_file_name": "other.txt"},
        {"file_size_bytes": 1},
        {"content_md5_hash": "abc"},
        {"correlation_id": "0d5a0b66-1111-4222-8333-444455556666"},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("flushed", [False, True], ids=["warm", "flushed"])
def test_an_event_id_with_another_body_is_refused_and_its_claim_goes_back(
    lifecycle, slots, conn, batch_id, valkey, change, flushed
):
    register(lifecycle, batch_id, 3)
    event = content(batch_id)
    take(lifecycle, ASSIGN, event)
    before = looks.everything(conn, batch_id)
    if flushed:
        valkey.flushdb()

    with pytest.raises(IdempotencyConflict, match=event["event_id"]):
        take(lifecycle, ASSIGN, {**event, **change})

    assert looks.everything(conn, batch_id) == before
    if not flushed:
        assert slots.free(batch_id) == looks.open_slots(conn, batch_id)


def test_an_event_id_of_another_task_is_refused(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 3)
    event = content(batch_id)
    take(lifecycle, ASSIGN, event)

    with pytest.raises(IdempotencyConflict, match=ASSIGN):
        take(lifecycle, "els.reject_content", rejection(batch_id, event_id=event["event_id"]))

    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)


def test_a_conflict_about_the_last_slot_leaves_it_open(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 2)
    event = content(batch_id)
    take(lifecycle, ASSIGN, event)

    with pytest.raises(IdempotencyConflict):
        take(lifecycle, ASSIGN, {**event, "text_storage_id": "text-2"})

    assert assign(lifecycle, batch_id, "text-3")["outcome"] == "assigned"
    assert looks.batch(conn, batch_id)["available_slots"] == 0


def test_a_conflict_before_registration_is_refused(lifecycle, conn, batch_id):
    event = content(batch_id)
    take(lifecycle, ASSIGN, event)

    with pytest.raises(IdempotencyConflict):
        take(lifecycle, ASSIGN, {**event, "text_storage_id": "text-2"})

    assert len(looks.waiting(conn, batch_id)) == 1


def test_a_new_timestamp_alone_is_no_conflict(lifecycle, batch_id):
    register(lifecycle, batch_id, 3)
    event = content(batch_id)
    first = take(lifecycle, ASSIGN, event).value

    again = take(lifecycle, ASSIGN, {**event, "timestamp": now()}).value

    assert again == first


def test_of_two_bodies_with_one_event_id_at_once_one_is_refused(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 5)
    event = content(batch_id)

    def attempt(text):
        try:
            told = {**event, "text_storage_id": text}
            return persist(lambda: take(lifecycle, ASSIGN, told).value["outcome"])
        except IdempotencyConflict:
            return "refused"

    outcomes = at_once(*[lambda text=text: attempt(text) for text in texts(8)])

    assert outcomes.count("assigned") == 1
    assert outcomes.count("refused") == 7
    assert len(looks.placed(conn, batch_id)) == 1
    assert looks.broken(conn, batch_id, slots=slots) == []


# --- uploads --------------------------------------------------------------------------------------


def test_an_upload_fills_the_slots(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 10)

    done = take(lifecycle, UPLOAD, contents(batch_id, texts(10)))

    assert done.value == {"outcome": "accepted", "batch_id": batch_id, "contents": 10}
    assert done.full
    assert set(looks.placed(conn, batch_id)) == set(texts(10))
    assert slots.free(batch_id) == set()
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_an_upload_skips_the_contents_that_have_a_slot(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 10)
    known = {text: assign(lifecycle, batch_id, text)["essay_id"] for text in texts(4)}

    upload(lifecycle, batch_id, texts(8))

    placed = looks.placed(conn, batch_id)
    assert set(placed) == set(texts(8))
    assert known.items() <= placed.items()
    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)


@pytest.mark.parametrize("flushed", [False, True], ids=["warm", "flushed"])
def test_an_upload_of_too_many_leaves_the_rest_as_excess(
    lifecycle, slots, conn, batch_id, valkey, flushed
):
    register(lifecycle, batch_id, 5)
    upload(lifecycle, batch_id, texts(2))
    if flushed:
        valkey.flushdb()

    value = upload(lifecycle, batch_id, texts(8))

    assert value == {"outcome": "accepted", "batch_id": batch_id, "contents": 8}
    assert len(looks.placed(conn, batch_id)) == 5
    assert len(looks.excess(conn, batch_id)) == 3
    assert looks.types(conn, batch_id) == ["ExcessContentProvisioned"] * 3
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_a_claimant_named_twice_in_one_claim_gets_one_slot_once(lifecycle, slots, batch_id):
    register(lifecycle, batch_id, 3)

    one, other, same = slots.claim({batch_id: ["text-1", "text-2", "text-1"]})[batch_id]

    assert (one.new, other.new, same.new) == (True, True, False)
    assert one.essay_id == same.essay_id != other.essay_id
    assert len(slots.free(batch_id)) == 1


def test_a_flush_in_the_middle_of_an_uploads_claims_loses_nothing(
    lifecycle, slots, conn, batch_id, valkey, monkeypatch
):
    ask, count = slots._pipelined, CHUNK + 1
    register(lifecycle, batch_id, count)

    def flushed_after_the_first_call(script, calls):
        monkeypatch.undo()
        answers = ask(script, calls[:1])
        valkey.flushdb()
        return answers + ask(script, calls[1:])

    monkeypatch.setattr(slots, "_pipelined", flushed_after_the_first_call)
    upload(lifecycle, batch_id, texts(count))

    assert len(looks.placed(conn, batch_id)) == count
    assert slots.free(batch_id) == set()
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_an_upload_for_a_full_batch_is_all_excess(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 2)

    done = take(lifecycle, UPLOAD, contents(batch_id, texts(5, start=10)))

    assert looks.excess(conn, batch_id) == texts(5, start=10)
    assert done.value["outcome"] == "accepted"


@pytest.mark.parametrize("same_event", [True, False], ids=["same-event", "new-event"])
def test_an_upload_repeated_changes_nothing(lifecycle, slots, conn, batch_id, same_event):
    register(lifecycle, batch_id, 5)
    event = contents(batch_id, texts(8))
    first = take(lifecycle, UPLOAD, event).value
    before = looks.everything(conn, batch_id)

    again = take(lifecycle, UPLOAD, event if same_event else contents(batch_id, texts(8))).value

    assert again == first
    after = looks.everything(conn, batch_id)
    assert after | {"idempotency_keys": []} == before | {"idempotency_keys": []}
    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)


def test_uploads_of_the_same_contents_at_once_take_each_slot_once(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 40)
    orders = [texts(30), list(reversed(texts(30))), texts(30, start=10), texts(15, start=12)]
    steps = [
        lambda order=order: persist(lambda: upload(lifecycle, batch_id, order)) for order in orders
    ]

    at_once(*steps)

    assert set(looks.placed(conn, batch_id)) == set(texts(40))
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_an_upload_before_registration_waits(lifecycle, conn, batch_id):
    value = upload(lifecycle, batch_id, texts(3))

    assert value == {"outcome": "accepted", "batch_id": batch_id, "contents": 3}
    assert [row["text_storage_id"] for row in looks.waiting(conn, batch_id)] == texts(3)


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "waiting"])
def test_a_content_named_twice_in_an_upload_takes_one_slot(
    lifecycle, slots, conn, batch_id, registered
):
    if registered:
        register(lifecycle, batch_id, 4)
    value = upload(lifecycle, batch_id, ["text-1", "text-2", "text-1"])
    if not registered:
        register(lifecycle, batch_id, 4)

    assert value["contents"] == 3
    assert set(looks.placed(conn, batch_id)) == {"text-1", "text-2"}
    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)


def test_an_upload_with_the_event_id_of_another_leaves_all_claims(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 10)
    event = contents(batch_id, texts(3))
    take(lifecycle, UPLOAD, event)

    with pytest.raises(IdempotencyConflict):
        take(lifecycle, UPLOAD, {**event, "contents": [a_content(t) for t in texts(4, start=3)]})

    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)


# --- Redis forgets, or is wrong -------------------------------------------------------------------

BATCH = 25


@pytest.mark.parametrize("position", range(BATCH + 2))
def test_redis_may_be_flushed_between_any_two_steps(
    lifecycle, slots, conn, batch_id, valkey, position
):
    steps = [lambda: register(lifecycle, batch_id, BATCH)]
    steps += [lambda text=text: assign(lifecycle, batch_id, text) for text in texts(BATCH)]
    steps += [lambda: lifecycle.complete(batch_id)]
    steps.insert(position, valkey.flushdb)

    for step in steps:
        step()

    assert set(looks.placed(conn, batch_id)) == set(texts(BATCH))
    assert looks.types(conn, batch_id) == ["BatchContentProvisioningCompleted", "BatchEssaysReady"]
    assert looks.broken(conn, batch_id, slots=slots) == []


@pytest.mark.parametrize("key", ["available_slots", "assignments", "claims"])
@pytest.mark.parametrize("repeated", [True, False], ids=["known-content", "new-content"])
def test_any_one_key_of_redis_may_be_lost(lifecycle, slots, conn, batch_id, valkey, key, repeated):
    register(lifecycle, batch_id, 4)
    first = assign(lifecycle, batch_id, "text-1")
    valkey.delete(f"batch:{{{batch_id}}}:{key}")

    value = assign(lifecycle, batch_id, "text-1" if repeated else "text-2")

    assert value["outcome"] == "assigned"
    assert (value == first) is repeated
    assert looks.broken(conn, batch_id, slots=slots) == []
    for text in texts(4):
        assign(lifecycle, batch_id, text)
    assert looks.batch(conn, batch_id)["available_slots"] == 0


@pytest.mark.parametrize("bulk", [True, False], ids=["upload", "single"])
def test_stale_free_slots_are_not_given_away(lifecycle, slots, conn, batch_id, valkey, bulk):
    register(lifecycle, batch_id, 3)
    placed = {text: assign(lifecycle, batch_id, text)["essay_id"] for text in texts(2)}
    valkey.sadd(f"batch:{{{batch_id}}}:available_slots", *placed.values(), "never-existed", "{}")

    if bulk:
        upload(lifecycle, batch_id, texts(2, start=2))
    else:
        for text in texts(2, start=2):
            assign(lifecycle, batch_id, text)

    assert placed.items() <= looks.placed(conn, batch_id).items()
    assert looks.batch(conn, batch_id)["available_slots"] == 0
    assert len(looks.excess(conn, batch_id)) == 1
    assert looks.broken(conn, batch_id, slots=slots) == []


@pytest.mark.parametrize("bulk", [True, False], ids=["upload", "single"])
def test_an_empty_name_is_no_slot(lifecycle, slots, conn, batch_id, valkey, bulk):
    register(lifecycle, batch_id, 4)
    free = f"batch:{{{batch_id}}}:available_slots"
    valkey.delete(free)
    valkey.sadd(free, "")
    valkey.hset(f"batch:{{{batch_id}}}:assignments", "text-000001", "")

    if bulk:
        upload(lifecycle, batch_id, texts(4))
    else:
        for text in texts(4):
            assign(lifecycle, batch_id, text)

    assert looks.batch(conn, batch_id)["available_slots"] == 0
    assert looks.broken(conn, batch_id, slots=slots) == []


def test_a_stale_assignment_gives_no_second_content_the_slot(lifecycle, conn, batch_id, valkey):
    register(lifecycle, batch_id, 3)
    first = assign(lifecycle, batch_id, "text-1")
    valkey.hset(f"batch:{{{batch_id}}}:assignments", "text-2", first["essay_id"])

    value = assign(lifecycle, batch_id, "text-2")

    assert value["outcome"] == "assigned"
    assert value["essay_id"] != first["essay_id"]


def test_slots_that_others_are_claiming_are_worth_a_retry(lifecycle, slots, conn, batch_id):
    register(lifecycle, batch_id, 2)
    others = slots.claim({batch_id: ["text-a", "text-b"]})[batch_id]

    with pytest.raises(SlotsInFlight, match=batch_id):
        assign(lifecycle, batch_id, "text-1")
    slots.release(batch_id, others, still_open=True)

    assert assign(lifecycle, batch_id, "text-1")["outcome"] == "assigned"
    assert looks.excess(conn, batch_id) == []


class Interrupted(Cursor):
    """A cursor that lets something happen right after Postgres told where contents are."""

    meanwhile = None

    def execute(self, query, params=None, **options):
        answer = super().execute(query, params, **options)
        if query == db.slots.LOCATIONS and self.meanwhile:
            step, type(self).meanwhile = self.meanwhile, None
            step()
        return answer


# Redis has just forgotten who claimed what, and a content is delivered under two events: the first
# takes the last slot between the second's look where the content is and its note of excess.
@pytest.mark.parametrize("task", [ASSIGN, UPLOAD, "els.reject_content"])
@pytest.mark.parametrize("then", ["full", "cancelled"])
def test_a_content_that_takes_the_last_slot_meanwhile_is_not_excess_too(
    slots, conn, batch_id, database_url, monkeypatch, task, then
):
    build = {
        ASSIGN: lambda: content(batch_id, "text-1"),
        UPLOAD: lambda: contents(batch_id, ["text-1"]),
        "els.reject_content": lambda: rejection(batch_id, "file-1"),
    }[task]
    with db.connect(database_url, size=1) as one, db.connect(database_url) as other:
        with one.connection() as connection:
            connection.cursor_factory = Interrupted
        ours, theirs = Lifecycle(one, slots), Lifecycle(other, slots)
        register(ours, batch_id, 1)
        slots.client.flushdb()

        def meanwhile():
            take(theirs, task, build())
            if then == "cancelled":
                cancel(theirs, batch_id)

        monkeypatch.setattr(Interrupted, "meanwhile", staticmethod(meanwhile))
        persist(lambda: take(ours, task, build()))

    assert Interrupted.meanwhile is None
    assert looks.broken(conn, batch_id) == []
    assert looks.rows(conn, "excess_content", batch_id) == []


# --- slot events ----------------------------------------------------------------------------------


def test_a_slot_is_told_only_where_it_is_asked_for(lifecycle, telling, conn, batch_id):
    register(lifecycle, batch_id, 5)

    assign(lifecycle, batch_id, "quiet")
    value = assign(telling, batch_id, "told")

    (event,) = looks.events(conn, batch_id)
    assert event["type"] == "EssaySlotAssigned"
    assert event["data"] == {
        "batch_id": batch_id,
        "essay_id": value["essay_id"],
        "text_storage_id": "told",
        "file_upload_id": "file-told",
        "original_file_name": "told.txt",
    }


def test_a_rejected_file_is_not_told_as_a_slot(telling, conn, batch_id):
    register(telling, batch_id, 2)

    reject(telling, batch_id)

    assert looks.events(conn, batch_id) == []


@pytest.mark.parametrize("flushed", [False, True], ids=["warm", "flushed"])
def test_every_content_of_an_upload_is_told_once(telling, conn, batch_id, valkey, flushed):
    register(telling, batch_id, 5)
    if flushed:
        valkey.flushdb()

    for _ in range(2):
        upload(telling, batch_id, texts(6))

    told = looks.events(conn, batch_id, "EssaySlotAssigned")
    assert {row["data"]["text_storage_id"]: row["data"]["essay_id"] for row in told} == (
        looks.placed(conn, batch_id)
    )
    assert len(told) == 5
    assert looks.broken(conn, batch_id) == []


def test_slots_are_told_in_sequence_when_many_are_taken_at_once(telling, conn, batch_id):
    register(telling, batch_id, 20)
    steps = [lambda t=t: persist(lambda: assign(telling, batch_id, t)) for t in texts(20)]

    at_once(*steps)

    assert [row["sequence"] for row in looks.events(conn, batch_id)] == list(range(1, 21))


def test_a_lifecycle_on_an_empty_redis_never_calls_a_content_excess(pool, conn, valkey, slots):
    batches = [new_batch() for _ in range(5)]
    for batch_id in batches:
        register(Lifecycle(pool, slots), batch_id, 5)
    valkey.flushdb()

    for batch_id in batches:
        values = at_once(
            *[
                lambda b=batch_id, t=t: persist(lambda: assign(Lifecycle(pool, slots), b, t))
                for t in texts(5)
            ]
        )

        assert [value["outcome"] for value in values] == ["assigned"] * 5
