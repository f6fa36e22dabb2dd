"""What arrives before its batch is registered waits, and is taken by the registration."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.core import looks
from tests.core.crowd import at_once, persist, registration_held, until, waiting_to_register
from tests.core.story import assign, register, reject, texts, upload
from tests.factories import content, essay_ids, new_batch, take


def test_a_content_of_an_unknown_batch_waits(lifecycle, conn, batch_id):
    value = assign(lifecycle, batch_id, "text-1", content_md5_hash="abc")

    assert value == {"outcome": "pending", "batch_id": batch_id}
    (row,) = looks.waiting(conn, batch_id)
    assert row["essay_file_id"] == "file-text-1"
    assert row["text_storage_id"] == "text-1"
    assert row["content_md5_hash"] == "abc"


@pytest.mark.parametrize(
    ("waiting", "assigned", "over"),
    [(2, 2, 0), (3, 3, 0), (5, 3, 2)],
    ids=["some", "all", "more-than-slots"],
)
def test_waiting_contents_take_the_slots_in_the_order_in_which_they_came(
    lifecycle, conn, batch_id, waiting, assigned, over
):
    arrived = list(reversed(texts(waiting)))
    for text in arrived:
        assign(lifecycle, batch_id, text)

    value = register(lifecycle, batch_id, 3)

    assert value["pending_assigned"] == assigned
    assert looks.placed(conn, batch_id) == dict(zip(arrived, essay_ids(3), strict=False))
    assert looks.excess(conn, batch_id) == arrived[3:]
    assert looks.types(conn, batch_id) == ["ExcessContentProvisioned"] * over
    assert looks.waiting(conn, batch_id) == []
    assert looks.broken(conn, batch_id) == []


def test_a_waiting_upload_keeps_its_order(lifecycle, conn, batch_id):
    arrived = list(reversed(texts(50)))
    upload(lifecycle, batch_id, arrived)

    register(lifecycle, batch_id, 50)

    assert looks.placed(conn, batch_id) == dict(zip(arrived, essay_ids(50), strict=True))


def test_a_batch_that_waiting_contents_fill_is_full_at_once(lifecycle, conn, batch_id):
    upload(lifecycle, batch_id, texts(3))

    register(lifecycle, batch_id, 3)
    lifecycle.complete(batch_id)

    assert looks.batch(conn, batch_id)["status"] == "ready_for_pipeline_execution"


@pytest.mark.parametrize("more", [0, 1], ids=["excess", "assigned"])
def test_a_content_that_waited_keeps_its_first_value(lifecycle, conn, batch_id, more):
    upload(lifecycle, batch_id, ["earlier"])
    event = content(batch_id, "text-1")
    first = take(lifecycle, "els.assign_content", event).value
    register(lifecycle, batch_id, 1 + more)
    before = looks.everything(conn, batch_id)

    again = take(lifecycle, "els.assign_content", event).value

    assert again == first == {"outcome": "pending", "batch_id": batch_id}
    assert looks.everything(conn, batch_id) == before


def test_a_content_that_waited_returns_its_slot_under_a_new_event(lifecycle, slots, conn, batch_id):
    assign(lifecycle, batch_id, "text-1")
    register(lifecycle, batch_id, 3)

    value = assign(lifecycle, batch_id, "text-1")

    assert value["outcome"] == "assigned"
    assert looks.placed(conn, batch_id) == {"text-1": value["essay_id"]}
    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)


def test_a_content_waits_once_under_many_events(lifecycle, conn, batch_id):
    at_once(*[lambda: assign(lifecycle, batch_id, "text-1")] * 8)

    assert len(looks.waiting(conn, batch_id)) == 1
    assert register(lifecycle, batch_id, 3)["pending_assigned"] == 1


def test_waiting_failures_take_slots_too(lifecycle, conn, batch_id):
    reject(lifecycle, batch_id, "file-1", validation_error_detail={"chars": 3})
    assign(lifecycle, batch_id, "text-1")

    value = register(lifecycle, batch_id, 3)

    assert value["pending_assigned"] == 1
    first, second, third = looks.essays(conn, batch_id).values()
    assert first["current_status"] == "content_ingestion_failed"
    assert first["file_upload_id"] == "file-1"
    assert first["validation_error_detail"] == {"chars": 3}
    assert second["text_storage_id"] == "text-1"
    assert third["current_status"] == "awaiting_content"


def test_waiting_failures_over_the_slots_are_excess_without_an_event(lifecycle, conn, batch_id):
    for file in ["file-1", "file-2", "file-3"]:
        reject(lifecycle, batch_id, file)

    register(lifecycle, batch_id, 2)

    (over,) = looks.rows(conn, "excess_content", batch_id)
    assert (over["kind"], over["file_upload_id"]) == ("failure", "file-3")
    assert looks.types(conn, batch_id) == []


def test_what_waits_is_told_when_slot_events_are_asked_for(telling, conn, batch_id):
    upload(telling, batch_id, texts(2))
    reject(telling, batch_id, "file-1")

    register(telling, batch_id, 4)

    told = looks.events(conn, batch_id, "EssaySlotAssigned")
    assert [row["data"]["text_storage_id"] for row in told] == texts(2)
    assert [row["data"]["essay_id"] for row in told] == essay_ids(2)


@pytest.mark.parametrize("first", ["content", "registration"])
def test_no_content_falls_between_not_registered_and_pending(lifecycle, slots, pool, conn, first):
    for _ in range(5):
        batch_id = new_batch()
        steps = {
            "content": lambda b=batch_id: persist(lambda: assign(lifecycle, b)),
            "registration": lambda b=batch_id: register(lifecycle, b, 2),
        }

        with ThreadPoolExecutor(2) as crowd:
            with registration_held(pool, batch_id):
                one = crowd.submit(steps.pop(first))
                until(lambda b=batch_id: waiting_to_register(conn, b) == 1)
                two = crowd.submit(*steps.values())
                until(lambda b=batch_id: waiting_to_register(conn, b) == 2)
            one.result(), two.result()

        assert list(looks.placed(conn, batch_id)) == ["text-1"]
        assert looks.broken(conn, batch_id, slots=slots) == []


@pytest.mark.parametrize("round_", range(4))
def test_a_registration_amid_contents_loses_none(lifecycle, slots, conn, batch_id, round_):
    steps = [
        lambda text=text: persist(lambda: assign(lifecycle, batch_id, text)) for text in texts(20)
    ]
    steps.insert(round_ * 5, lambda: register(lifecycle, batch_id, 15))

    at_once(*steps)

    assert len(looks.placed(conn, batch_id)) == 15
    assert {*looks.placed(conn, batch_id), *looks.excess(conn, batch_id)} == set(texts(20))
    assert looks.broken(conn, batch_id, slots=slots) == []
