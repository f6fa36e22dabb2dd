"""A full batch is sealed and announced: once, verifiably, in order."""

from collections import Counter
from contextlib import contextmanager
from uuid import UUID, uuid5

import pytest

from core.errors import BrokenSeal
from core.events import EVENT_IDS, EVENT_LIMIT, manifest_sha256
from core.lifecycle import SLOTS_PER_HEADER
from core.parsing import canonical
from core.repairs import RepairContext
from core.seals import Sealed
from core.sweep import sweep
from tests.core import looks
from tests.core.crowd import at_once, until
from tests.core.story import assign, cancel, confirm, fill, register, reject, texts, upload
from tests.factories import a_content, common, essay_ids, new_batch, take

DONE = ["BatchContentProvisioningCompleted", "BatchEssaysReady"]


def test_a_full_batch_is_announced_with_its_essays(lifecycle, conn, batch_id):
    prompt = {"storage": "prompt-1"}
    fill(lifecycle, batch_id, 3, student_prompt_ref=prompt)
    placed = looks.placed(conn, batch_id)

    value = lifecycle.complete(batch_id).value

    assert value == {
        "outcome": "announced",
        "batch_id": batch_id,
        "status": "ready_for_pipeline_execution",
    }
    told = [
        {
            "essay_id": essay_id,
            "text_storage_id": text,
            "file_upload_id": f"file-{text}",
            "original_file_name": f"{text}.txt",
        }
        for text, essay_id in sorted(placed.items(), key=lambda pair: pair[1])
    ]
    common_part = {
        "batch_id": batch_id,
        "class_type": "GUEST",
        "course_code": "ENG5",
        "user_id": "teacher-1",
        "expected_count": 3,
        "failed_count": 0,
        "manifest_sha256": looks.manifest(told),
    }
    completed, ready = looks.events(conn, batch_id)
    assert [completed["type"], ready["type"]] == DONE
    assert completed["data"] == {**common_part, "provisioned_count": 3, "essays": told}
    assert ready["data"] == {
        **common_part,
        "ready_count": 3,
        "ready_essays": told,
        "student_prompt_ref": prompt,
    }
    row = looks.batch(conn, batch_id)
    assert row["manifest_sha256"] == looks.manifest(told)
    assert row["completed_at"] is not None
    assert row["ready_at"] == row["completed_at"]
    assert looks.broken(conn, batch_id) == []


@pytest.mark.parametrize("round_", range(5))
def test_a_batch_is_announced_once_whoever_calls_at_once(lifecycle, conn, batch_id, round_):
    fill(lifecycle, batch_id, 25)

    dones = at_once(*[lambda: lifecycle.complete(batch_id)] * 10)

    outcomes = [done.value["outcome"] for done in dones]
    assert sorted(outcomes) == ["announced"] + ["nothing_to_announce"] * 9
    assert looks.types(conn, batch_id) == DONE


def test_a_batch_is_announced_once_however_often_it_is_called(lifecycle, conn, batch_id, valkey):
    fill(lifecycle, batch_id, 3)

    for _ in range(3):
        lifecycle.complete(batch_id)
        valkey.flushdb()

    assert looks.types(conn, batch_id) == DONE


@pytest.mark.parametrize("waiting", [0, 2], ids=["empty", "some"])
def test_a_batch_that_is_not_full_is_not_announced(lifecycle, conn, batch_id, waiting):
    register(lifecycle, batch_id, 3)
    for text in texts(waiting):
        assign(lifecycle, batch_id, text)
    before = looks.everything(conn, batch_id)

    value = lifecycle.complete(batch_id).value

    assert value == {"outcome": "nothing_to_announce", "batch_id": batch_id}
    assert looks.everything(conn, batch_id) == before


def seals_of(lifecycle, batch_id):
    ranges = lifecycle.ranges(batch_id)
    return [seal for each in ranges for seal in lifecycle.seal_slots({batch_id: each}).values()]


TAMPERED = {
    "a digest": lambda seals: [{**seals[0], "digest": "0" * 64}],
    "fewer assigned": lambda seals: [{**seals[0], "provisioned": 2}],
    "more assigned": lambda seals: [{**seals[0], "provisioned": 4}],
    "a failure": lambda seals: [{**seals[0], "failed": 1}],
    "not sealed": lambda seals: [{**seals[0], "sealed": False}],
    "no seal": lambda seals: [],
    "a seal twice": lambda seals: seals * 2,
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED.keys())
def test_broken_seals_announce_nothing(lifecycle, conn, batch_id, tamper):
    fill(lifecycle, batch_id, 3)
    seals = seals_of(lifecycle, batch_id)
    before = looks.everything(conn, batch_id)

    with pytest.raises(BrokenSeal, match=batch_id):
        lifecycle.announce_ready({batch_id: Sealed(tamper(seals), accounts_agree=True)})

    assert looks.everything(conn, batch_id) == before
    done = lifecycle.announce_ready({batch_id: Sealed(seals, accounts_agree=True)})
    assert done[batch_id].value["outcome"] == "announced"


def test_a_seal_of_other_contents_is_broken(lifecycle, conn, batch_id):
    other = new_batch()
    fill(lifecycle, batch_id, 3)
    register(lifecycle, other, 3)
    upload(lifecycle, other, texts(3, start=7))

    with pytest.raises(BrokenSeal):
        lifecycle.announce_ready(
            {batch_id: Sealed(seals_of(lifecycle, other), accounts_agree=True)}
        )

    assert looks.types(conn, batch_id) == []


def test_books_that_do_not_add_up_announce_nothing(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 3)
    before = looks.everything(conn, batch_id)
    seals = seals_of(lifecycle, batch_id)

    with pytest.raises(BrokenSeal, match="counter"):
        lifecycle.announce_ready({batch_id: Sealed(seals, accounts_agree=False)})

    assert looks.everything(conn, batch_id) == before


def test_the_books_of_a_full_batch_are_sealed(lifecycle, batch_id):
    fill(lifecycle, batch_id, 2)

    assert lifecycle.seal_books([batch_id]) == {batch_id: True}


def test_the_books_of_an_open_batch_are_not_sealed(lifecycle, batch_id):
    register(lifecycle, batch_id, 2)
    assign(lifecycle, batch_id)

    assert lifecycle.seal_books([batch_id]) == {batch_id: False}


def test_batches_are_sealed_together_as_each_by_itself(lifecycle):
    batches = [new_batch() for _ in range(3)]
    fill(lifecycle, batches[0], 3)
    register(lifecycle, batches[1], 2)
    ranges = dict.fromkeys(batches, ("essay-000001", None))

    seals, books = lifecycle.seal_slots(ranges), lifecycle.seal_books(batches)

    assert seals == {
        b: seal for b in batches for seal in lifecycle.seal_slots({b: ranges[b]}).values()
    }
    assert [(seals[b]["provisioned"], seals[b]["sealed"]) for b in batches] == [
        (2, True),
        (0, False),
        (0, True),
    ]
    assert books == {batches[0]: True, batches[1]: False}, "the last one is not registered"


def test_batches_are_announced_together_as_each_by_itself(lifecycle, conn):
    guest, regular, failed, cancelled = batches = [new_batch() for _ in range(4)]
    fill(lifecycle, guest, 3)
    fill(lifecycle, regular, 2, class_id="class-1")
    register(lifecycle, failed, 1)
    reject(lifecycle, failed)
    fill(lifecycle, cancelled, 1)
    sealed = {b: Sealed(seals_of(lifecycle, b), accounts_agree=True) for b in batches}
    cancel(lifecycle, cancelled)

    done = lifecycle.announce_ready(sealed)

    assert {b: (each.value["outcome"], each.value.get("status")) for b, each in done.items()} == {
        guest: ("announced", "ready_for_pipeline_execution"),
        regular: ("announced", "awaiting_student_validation"),
        failed: ("announced", "content_ingestion_failed"),
        cancelled: ("nothing_to_announce", None),
    }
    completed = "BatchContentProvisioningCompleted"
    assert [looks.types(conn, b) for b in batches] == [
        [completed, "BatchEssaysReady"],
        [completed],
        [completed, "BatchValidationErrors"],
        ["BatchCancelled"],
    ]
    assert all(looks.broken(conn, b) == [] for b in batches)


def test_one_broken_seal_announces_none_of_several(lifecycle, conn):
    batches = [new_batch() for _ in range(3)]
    for batch_id in batches:
        fill(lifecycle, batch_id, 2)
    sealed = {b: Sealed(seals_of(lifecycle, b), accounts_agree=b != batches[1]) for b in batches}

    with pytest.raises(BrokenSeal, match=batches[1]):
        lifecycle.announce_ready(sealed)

    assert [looks.types(conn, batch_id) for batch_id in batches] == [[], [], []]


def test_several_who_announce_the_same_batches_do_so_once(lifecycle, conn):
    batches = [new_batch() for _ in range(12)]
    for batch_id in batches:
        fill(lifecycle, batch_id, 2)
    sealed = {b: Sealed(seals_of(lifecycle, b), accounts_agree=True) for b in batches}

    def announce(order):
        return lambda: lifecycle.announce_ready({b: sealed[b] for b in order})

    done = at_once(*map(announce, [batches, batches[::-1]] * 3))

    outcomes = Counter(each.value["outcome"] for those in done for each in those.values())
    assert outcomes == {"announced": 12, "nothing_to_announce": 60}
    assert all(looks.broken(conn, b) == [] for b in batches)


@contextmanager
def reopened(conn, batch_id):
    """Let a slot of a full batch be open although the counter says 0; then forget the batch."""
    conn.execute(
        "UPDATE essay_states SET current_status = 'awaiting_content', text_storage_id = NULL"
        " WHERE batch_id = %s AND essay_id = %s",
        [batch_id, essay_ids(1)[0]],
    )
    yield
    conn.execute("DELETE FROM batch_essay_trackers WHERE batch_id = %s", [batch_id])


def test_a_counter_that_lies_is_noticed_before_anything_is_told(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 2)

    with reopened(conn, batch_id):
        with pytest.raises(BrokenSeal):
            lifecycle.complete(batch_id)

        assert looks.types(conn, batch_id) == []
        assert looks.batch(conn, batch_id)["completed_at"] is None


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "count",
    [1, SLOTS_PER_HEADER - 1, SLOTS_PER_HEADER, SLOTS_PER_HEADER + 1, 2 * SLOTS_PER_HEADER + 300],
)
def test_the_manifest_is_what_a_consumer_computes(lifecycle, conn, batch_id, count, known):
    fill(lifecycle, batch_id, count)

    [headers] = lifecycle.headers({batch_id: count if known else None})
    lifecycle.complete(batch_id)

    assert len(headers) == -(-count // SLOTS_PER_HEADER)
    held = looks.held(conn, batch_id)
    for row in looks.events(conn, batch_id):
        assert row["data"]["manifest_sha256"] == looks.manifest(held)
    assert manifest_sha256(held) == looks.manifest(held)


def test_ids_of_any_valid_order_are_sealed(lifecycle, conn, batch_id):
    odd = ["-", "_", "0", "A", "a", "aa", "a-", "a_", "Z", "é".encode().hex(), "a0", "A-1", "--"]
    fill(lifecycle, batch_id, odd)

    lifecycle.complete(batch_id)

    completed, _ = looks.events(conn, batch_id)
    told = completed["data"]["essays"]
    assert [essay["essay_id"] for essay in told] == sorted(odd)
    assert completed["data"]["manifest_sha256"] == looks.manifest(told)


def test_failed_slots_are_in_no_manifest(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    reject(lifecycle, batch_id)
    upload(lifecycle, batch_id, texts(2))

    lifecycle.complete(batch_id)

    completed, _, _ = looks.events(conn, batch_id)
    assert len(completed["data"]["essays"]) == 2
    assert completed["data"]["manifest_sha256"] == looks.manifest(completed["data"]["essays"])


def test_an_event_over_the_limit_carries_a_reference(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 1_200)
    for start in range(0, 1_200, 400):
        long_names = [a_content(text, original_file_name="n" * 400) for text in texts(400, start)]
        take(lifecycle, "els.assign_contents", common(batch_id, contents=long_names))

    lifecycle.complete(batch_id)

    completed, ready = looks.events(conn, batch_id)
    for event, field in [(completed, "essays"), (ready, "ready_essays")]:
        assert field not in event["data"]
        reference = event["data"]["essays_ref"]
        assert (reference["field"], reference["total"]) == (field, 1_200)
        assert [essay["essay_id"] for essay in reference["first"]] == essay_ids(1_000)
        address = f"/v1/batches/{batch_id}/essays?state=ready_for_processing"
        assert reference["rest"] == address
        assert len(canonical(event["data"]).encode()) <= EVENT_LIMIT


def test_an_event_below_the_limit_carries_every_essay(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 1_200)

    lifecycle.complete(batch_id)

    completed, ready = looks.events(conn, batch_id)
    assert len(completed["data"]["essays"]) == len(ready["data"]["ready_essays"]) == 1_200


def test_what_a_registration_leaves_out_its_events_leave_out(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 1)

    lifecycle.complete(batch_id)

    for event in looks.events(conn, batch_id):
        assert not {"org_id", "class_id", "metadata", "student_prompt_ref"} & event["data"].keys()


def test_what_a_registration_says_its_events_say_to_the_letter(lifecycle, conn, batch_id):
    said = {
        "org_id": "org-1",
        "class_id": "class-1",
        "metadata": {"b": [1, None, {"å": "\u2028"}], "a": {}, "": 2.5},
        "student_prompt_ref": {"storage": "prompt-1"},
    }
    fill(lifecycle, batch_id, 1, **said)
    lifecycle.complete(batch_id)
    confirm(lifecycle, batch_id, {"essay-000000": "student-1"})

    completed, ready = [row["data"] for row in looks.events(conn, batch_id)]

    assert {name: ready[name] for name in said} == said
    said.pop("student_prompt_ref")
    assert {name: completed[name] for name in said} == said
    assert "student_prompt_ref" not in completed


def objects(metadata, prompt):
    return {"metadata": {"text": "ö" * metadata}, "student_prompt_ref": {"text": "ö" * prompt}}


def told_of(lifecycle, conn, batch_id):
    lifecycle.complete(batch_id)
    events = {row["type"]: row["data"] for row in looks.events(conn, batch_id)}
    assert all(len(canonical(data).encode()) <= EVENT_LIMIT for data in events.values())
    return events["BatchContentProvisioningCompleted"], events["BatchEssaysReady"]


def test_objects_and_essays_that_fit_together_are_told_whole(lifecycle, conn, batch_id):
    sent = objects(100_000, 100_000)
    fill(lifecycle, batch_id, 500, **sent)

    completed, ready = told_of(lifecycle, conn, batch_id)

    assert completed["metadata"] == sent["metadata"]
    assert {name: ready[name] for name in sent} == sent
    assert len(ready["ready_essays"]) == len(completed["essays"]) == 500


def test_objects_that_leave_no_room_for_the_essays_are_told_whole(lifecycle, conn, batch_id):
    sent = objects(110_000, 110_000)
    fill(lifecycle, batch_id, 1_000, **sent)

    completed, ready = told_of(lifecycle, conn, batch_id)

    assert len(completed["essays"]) == 1_000
    assert {name: ready[name] for name in sent} == sent
    assert ready["essays_ref"]["total"] == 1_000
    assert 100 < len(ready["essays_ref"]["first"]) < 1_000


def test_objects_that_leave_no_room_at_all_are_referred_to_the_larger_first(
    lifecycle, conn, batch_id
):
    sent = objects(150_000, 115_000)
    fill(lifecycle, batch_id, 3, **sent)

    completed, ready = told_of(lifecycle, conn, batch_id)

    assert completed["metadata"] == sent["metadata"]
    assert ready["student_prompt_ref"] == sent["student_prompt_ref"]
    assert "metadata" not in ready
    assert ready["objects_ref"] == {
        "metadata": {"bytes": 300_011, "rest": "batch_essay_trackers.metadata"}
    }
    assert len(ready["essays_ref"]["first"]) == 3
    assert looks.batch(conn, batch_id)["metadata"] == sent["metadata"]


def test_numbers_that_grow_when_they_are_written_out_do_not_break_the_limit(
    lifecycle, conn, batch_id
):
    fill(lifecycle, batch_id, 1, metadata={"large": [1e308] * 10_000})

    completed, ready = told_of(lifecycle, conn, batch_id)

    for data in (completed, ready):
        assert data["objects_ref"]["metadata"]["bytes"] > 3_000_000


def test_essays_with_the_longest_names_do_not_break_the_limit(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 1_000)
    for start in range(0, 1_000, 250):
        each = [a_content(text, original_file_name="ö" * 1_024) for text in texts(250, start)]
        take(lifecycle, "els.assign_contents", common(batch_id, contents=each))

    completed, ready = told_of(lifecycle, conn, batch_id)

    for data in (completed, ready):
        assert data["essays_ref"]["total"] == 1_000
        assert 100 < len(data["essays_ref"]["first"]) < 1_000


def test_the_events_of_a_batch_are_numbered_from_one(telling, conn, batch_id):
    register(telling, batch_id, 3)
    reject(telling, batch_id)
    upload(telling, batch_id, texts(4))

    telling.complete(batch_id)

    assert [row["sequence"] for row in looks.events(conn, batch_id)] == list(range(1, 8))
    assert looks.types(conn, batch_id) == [
        "EssaySlotAssigned",
        "EssaySlotAssigned",
        "ExcessContentProvisioned",
        "ExcessContentProvisioned",
        "BatchContentProvisioningCompleted",
        "BatchValidationErrors",
        "BatchEssaysReady",
    ]


def test_the_id_of_an_event_follows_from_what_it_is_about(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 1)
    assign(lifecycle, batch_id, "late")
    lifecycle.complete(batch_id)

    ids = {row["type"]: row["id"] for row in looks.events(conn, batch_id)}

    assert ids == {
        name: uuid5(EVENT_IDS, f"{batch_id}/{name}/{generation}")
        for name, generation in [
            *[(name, 1) for name in DONE],
            ("ExcessContentProvisioned", "late"),
        ]
    }
    assert UUID("6f1d5c1e-6b4c-5f0a-9d51-0c6f5a3f7f5e") == EVENT_IDS  # consumers rely on it


def swept(lifecycle, batch_id=None):
    """Sweep one batch, or all; return the rules by which something was mended."""
    found = sweep(RepairContext(lifecycle, lambda events: None), batch_id) or []
    return [each.rule for each in found if each.mended]


@pytest.mark.parametrize("flushed", [False, True], ids=["warm", "flushed"])
def test_the_sweep_announces_a_full_batch_that_nobody_announced(
    lifecycle, conn, batch_id, valkey, flushed
):
    fill(lifecycle, batch_id, 3)
    if flushed:
        valkey.flushdb()

    mended = swept(lifecycle, batch_id)

    assert mended == ["full_not_announced"]
    assert swept(lifecycle, batch_id) == []
    assert looks.types(conn, batch_id) == DONE


def test_sweeps_at_once_announce_once(lifecycle, conn):
    batches = [new_batch() for _ in range(6)]
    for batch_id in batches:
        fill(lifecycle, batch_id, 3)

    at_once(*[lambda: swept(lifecycle)] * 4)
    until(lambda: swept(lifecycle).count("full_not_announced") == 0)  # a sweep takes so many

    assert [looks.types(conn, batch_id) for batch_id in batches] == [DONE] * 6


def test_a_batch_that_cannot_be_mended_hinders_no_other(lifecycle, conn):
    crooked, straight = new_batch(), new_batch()
    fill(lifecycle, crooked, 2)
    fill(lifecycle, straight, 2)

    with reopened(conn, crooked):
        until(lambda: swept(lifecycle).count("full_not_announced") == 0)

        assert looks.types(conn, crooked) == []
        assert looks.types(conn, straight) == DONE


def test_the_sweep_leaves_an_open_batch_alone(lifecycle, conn, batch_id):
    register(lifecycle, batch_id, 3)
    assign(lifecycle, batch_id)
    before = looks.everything(conn, batch_id)

    mended = swept(lifecycle, batch_id)

    assert mended == []
    assert looks.everything(conn, batch_id) == before


def test_the_sweep_leaves_a_closed_batch_alone(lifecycle, conn, batch_id):
    fill(lifecycle, batch_id, 2)
    cancel(lifecycle, batch_id)
    before = looks.everything(conn, batch_id)

    mended = swept(lifecycle, batch_id)

    assert mended == []
    assert looks.everything(conn, batch_id) == before
