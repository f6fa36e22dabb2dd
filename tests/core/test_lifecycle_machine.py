"""Whatever happens to one batch, in whatever order: the invariants hold."""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.catalogue import OPT_IN
from core.errors import IdempotencyConflict, Refusal
from core.faults import Fault, fault
from core.lifecycle import Lifecycle
from core.outbox import relay
from core.repairs import RepairContext
from core.sweep import sweep
from tests.core import looks
from tests.core.crowd import persist
from tests.factories import (
    amendment,
    association,
    cancellation,
    confirmation,
    content,
    contents,
    essay_ids,
    new_batch,
    now,
    registration,
    rejection,
    take,
)

TEXTS = st.sampled_from([f"text-{number}" for number in range(9)])
FILES = st.sampled_from([f"file-{number}" for number in range(3)])
KEYS = st.sampled_from(["available_slots", "assignments", "claims"])


class OneBatch(RuleBasedStateMachine):
    """One batch of a few slots, and everything that senders, Redis and other workers may do."""

    pool = slots = None  # set by the test

    @initialize(count=st.integers(1, 6), class_id=st.sampled_from([None, "class-1"]))
    def begin(self, count, class_id):
        self.batch_id, self.class_id, self.essays = new_batch(), class_id, essay_ids(count)
        self.lifecycle = Lifecycle(self.pool, self.slots, OPT_IN if count % 2 == 0 else frozenset())
        self.told = []  # every event that was carried out, with its value
        self.sent = []  # what the relay handed on

    def key(self, name):
        return f"batch:{{{self.batch_id}}}:{name}"

    def tell(self, task, event):
        """Take a step; keep what it returned. A refusal or an error that may pass is fine too."""
        try:
            value = take(self.lifecycle, task, event).value
        except Refusal:
            return
        except Exception as error:
            if fault(error) not in {Fault.CONTENTION, Fault.ENVIRONMENT}:
                raise
            return
        self.told.append((task, event, value))

    # --- what upstream does ---

    @rule()
    def register(self):
        event = registration(self.batch_id, self.essays, class_id=self.class_id)
        self.tell("els.register_batch", event)

    @rule()
    def register_with_other_essays(self):
        if looks_registered(self):
            event = registration(self.batch_id, ["essay-other"], class_id=self.class_id)
            self.tell("els.register_batch", event)

    @rule(text=TEXTS)
    def assign(self, text):
        self.tell("els.assign_content", content(self.batch_id, text))

    @rule(many=st.lists(TEXTS, min_size=1, max_size=8))
    def upload(self, many):
        self.tell("els.assign_contents", contents(self.batch_id, many))

    @rule(file=FILES)
    def reject(self, file):
        self.tell("els.reject_content", rejection(self.batch_id, file))

    @rule(subset=st.integers(0, 6))
    def confirm(self, subset):
        told = [association(essay, f"student-of-{essay}") for essay in self.essays[:subset]]
        self.tell("els.confirm_students", confirmation(self.batch_id, told))

    @rule(sure=st.integers(0, 5))
    def cancel(self, sure):
        if sure == 0:
            self.tell("els.cancel_batch", cancellation(self.batch_id))

    @rule(prompt=st.integers(0, 2), on_deadline=st.sampled_from([None, "fail", "proceed"]))
    def amend(self, prompt, on_deadline):
        fields = {"student_prompt_ref": {"number": prompt}, "on_deadline": on_deadline}
        self.tell("els.amend_batch", amendment(self.batch_id, **fields))

    @precondition(lambda self: self.told)
    @rule(which=st.integers(0, 1000), stamped_anew=st.booleans())
    def repeat(self, which, stamped_anew):
        task, event, value = self.told[which % len(self.told)]
        again = {**event, "timestamp": now()} if stamped_anew else event
        before = self.everything()

        assert take(self.lifecycle, task, again).value == value
        assert self.everything() == before

    @precondition(lambda self: self.told)
    @rule(which=st.integers(0, 1000))
    def reuse_an_event_id(self, which):
        task, event, _ = self.told[which % len(self.told)]
        before = self.everything()

        try:
            take(self.lifecycle, task, {**event, "correlation_id": self.told[0][1]["event_id"]})
        except IdempotencyConflict:
            assert self.everything() == before
        else:
            raise AssertionError("another body with the same event id was taken")

    # --- what befalls Redis ---

    @rule()
    def flush(self):
        self.slots.client.flushdb()

    @rule(name=KEYS)
    def lose_a_key(self, name):
        self.slots.client.delete(self.key(name))

    @rule(number=st.integers(0, 7))
    def offer_a_stale_slot(self, number):
        self.slots.client.sadd(self.key("available_slots"), f"essay-{number:06d}")

    @rule(text=TEXTS, number=st.integers(0, 7))
    def remember_a_wrong_assignment(self, text, number):
        self.slots.client.hset(self.key("assignments"), text, f"essay-{number:06d}")

    @rule(text=TEXTS)
    def die_after_a_claim(self, text):
        self.slots.claim({self.batch_id: [text]})[self.batch_id]

    # --- what the service does by itself ---

    @rule()
    def complete(self):
        if looks_registered(self):
            self.lifecycle.complete(self.batch_id)

    @rule()
    def relay(self):
        relay(self.pool, [self.batch_id], self.sent.extend)

    # --- what must hold ---

    def everything(self):
        with self.pool.connection() as conn:
            return looks.everything(conn, self.batch_id)

    @invariant()
    def holds(self):
        with self.pool.connection() as conn:
            assert looks.broken(conn, self.batch_id) == []

    def teardown(self):
        if not hasattr(self, "told"):
            return
        if not looks_registered(self):
            self.register()
        self.slots.client.delete(self.key("claims"))  # as if their lease were over
        sweep(RepairContext(self.lifecycle, self.sent.extend), self.batch_id)
        self.relay()
        with self.pool.connection() as conn:
            broken = looks.broken(conn, self.batch_id, at_rest=True, slots=self.slots)
            open_slots = looks.open_slots(conn, self.batch_id)
            placed = looks.placed(conn, self.batch_id)
        assert broken == []
        assert self.slots.free(self.batch_id) == open_slots
        assert [event["sequence"] for event in self.sent] == list(range(1, len(self.sent) + 1))
        for task, event, value in self.told:
            assert take(self.lifecycle, task, event).value == value
            if value["outcome"] == "assigned":
                assert placed[event["text_storage_id"]] == value["essay_id"]
        self.fill_up(open_slots)
        with self.pool.connection() as conn:
            prompt = looks.batch(conn, self.batch_id)["student_prompt_ref"]
        for event in self.sent:
            if event["type"] == "BatchEssaysReady":
                assert event["data"].get("student_prompt_ref") == prompt

    def fill_up(self, open_slots):
        """Whatever happened before, an open batch takes as many contents as it has open slots."""
        self.slots.client.flushdb()
        for essay in open_slots:
            value = persist(
                lambda text=f"new-{essay}": (
                    take(self.lifecycle, "els.assign_content", content(self.batch_id, text)).value
                )
            )
            assert value["outcome"] == "assigned"
        self.lifecycle.complete(self.batch_id)
        self.relay()
        with self.pool.connection() as conn:
            assert looks.open_slots(conn, self.batch_id) == set()
            assert looks.broken(conn, self.batch_id, at_rest=True) == []


def looks_registered(machine):
    with machine.pool.connection() as conn:
        return looks.batch(conn, machine.batch_id) is not None


@pytest.mark.slow
def test_the_invariants_hold_whatever_happens(pool, slots, monkeypatch):
    monkeypatch.setattr(OneBatch, "pool", pool)
    monkeypatch.setattr(OneBatch, "slots", slots)

    run_state_machine_as_test(
        OneBatch,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            derandomize="CI" in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
