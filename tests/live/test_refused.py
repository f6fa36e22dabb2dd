"""Each code of a refusal: its cause on real workers, and the event that a receiver gets of it."""

import os
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from core.slots import Slots
from ops.reference.outcomes import CODES
from ops.torture import refusals
from tests import factories as make
from tests.live.conftest import Workers, until
from tests.live.shop import Shop, ready_batch

ASSIGN, REGISTER = "els.assign_content", "els.register_batch"


class Refused(Shop):
    """Workers that announce what they refuse, and a receiver of it; the sender is the example."""

    def open(self, command="worker --pool solo", **settings):
        settings |= self.routes("MessageRefused")
        self.workers.start(command=command, **settings)
        self.workers.start(command="beat", **settings)
        self.workers.ready(1)
        self.receive()

    def send_and_wait(self, *messages):
        assert self.send(*messages).wait(60) == 0

    def ready_batch(self):
        """Send what makes a batch ready; return it, and the event of its content."""
        batch, messages = ready_batch()
        self.send_and_wait(*messages)
        return batch, messages[1][1]

    def refusals(self, code, after):
        """List the refusals of this code whose dead letter is newer than a number."""
        bodies = [event["data"] for event in self.inbox() if event["type"] == "MessageRefused"]
        return [body for body in bodies if body["code"] == code and body["dead_letter"] > after]

    def close(self):
        self.workers.stop()
        super().close()


@pytest.fixture(scope="module")
def shop(database_url, tmp_path_factory, on_broker):
    folder = tmp_path_factory.mktemp("refused")
    opened = Refused(folder, Workers(folder, **on_broker))
    opened.open(ELS_RETRY_FOR="1")
    yield opened
    opened.close()
    opened.workers.close()


@pytest.fixture
def last_letter(conn):
    return conn.execute("SELECT coalesce(max(id), 0) AS id FROM dead_letters").fetchone()["id"]


# --- what is wrong with a message -----------------------------------------------------------------


def invalid(shop):
    return ASSIGN, make.content(make.new_batch(), file_size_bytes=-1)


def another_body(shop):
    _, content = shop.ready_batch()
    return ASSIGN, {**content, "text_storage_id": "another"}


def another_registration(shop):
    batch, _ = shop.ready_batch()
    return REGISTER, make.registration(batch, 2)


def of_no_batch(task, build):
    return lambda shop: (task, build(make.new_batch()))


def of_no_essay(shop):
    regular = make.registration(make.new_batch(), 1, class_id="class-1")
    shop.send_and_wait((REGISTER, regular))
    nobodys = [make.association("essay-none")]
    return "els.confirm_students", make.confirmation(regular["batch_id"], nobodys)


def too_late(shop):
    batch, _ = shop.ready_batch()
    return "els.cancel_batch", make.cancellation(batch)


def misspelt(shop):
    return "els.asign_content", make.content(make.new_batch())


WRONG = {
    "a negative size": ("VALIDATION_ERROR", invalid),
    "nothing": ("VALIDATION_ERROR", lambda shop: (REGISTER, {})),
    "another body for an id": ("IDEMPOTENCY_CONFLICT", another_body),
    "another registration": ("REGISTRATION_CONFLICT", another_registration),
    "no batch to cancel": ("UNKNOWN_BATCH", of_no_batch("els.cancel_batch", make.cancellation)),
    "no batch to amend": ("UNKNOWN_BATCH", of_no_batch("els.amend_batch", make.amendment)),
    "no such essay": ("UNKNOWN_ESSAY", of_no_essay),
    "too late": ("WRONG_BATCH_STATE", too_late),
    "no such task": ("UNKNOWN_TASK", misspelt),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_sender_hears_what_is_wrong_with_its_message(shop, last_letter, name):
    code, build = WRONG[name]
    task, event = build(shop)

    shop.send_and_wait((task, event))

    [refused] = until(lambda: shop.refusals(code, last_letter), what=f"{code} is received")
    assert refused["task"] == task
    assert refused.get("event_id") == event.get("event_id")


# --- what happens to a message --------------------------------------------------------------------


def contended(shop, valkey):
    """Send a content for a slot that another message claims, and keeps."""
    batch, slots = make.new_batch(), Slots(valkey)
    shop.send_and_wait((REGISTER, make.registration(batch, 1)))
    until(lambda: slots.claim({batch: ["another"]})[batch][0].essay_id, what="it is claimed")
    shop.send_and_wait((ASSIGN, make.content(batch)))


@contextmanager
def a_bug():
    """Let Postgres refuse the rows that the service writes of a batch; give this batch."""
    batch = make.new_batch()
    with refusals.raising(os.environ["ELS_DATABASE_URL"], "23514", ["essay_states"], batch):
        yield batch


def pickled(shop, valkey):
    shop.workers.send(ASSIGN, make.content(make.new_batch()), serializer="pickle")


def expired(shop, valkey):
    late = datetime.now(UTC) - timedelta(hours=1)
    shop.workers.send(ASSIGN, make.content(make.new_batch()), expires=late)


def revoked(shop, valkey):
    task_id, worker = str(uuid4()), f"{shop.workers.queue}-0@test"
    control = shop.workers.upstream.control
    told = control.revoke(task_id, destination=[worker], reply=True, timeout=10, limit=1)
    assert told, "the worker does not answer"
    shop.workers.send(ASSIGN, make.content(make.new_batch()), task_id=task_id)


ELSEWHERE = pytest.mark.redis_only("RabbitMQ drops it itself: tests/rabbitmq/test_dropped.py")
BEFALLS = {
    "RETRIES_EXHAUSTED": contended,
    "MALFORMED_MESSAGE": pickled,
    "EXPIRED": expired,
    "REVOKED": revoked,
}


@pytest.mark.parametrize(
    "code", [pytest.param(c, marks=[ELSEWHERE] if c == "EXPIRED" else []) for c in BEFALLS]
)
def test_a_sender_hears_what_befell_its_message(shop, last_letter, valkey, code):
    BEFALLS[code](shop, valkey)

    until(lambda: shop.refusals(code, last_letter), what=f"{code} is received")
    assert len(shop.refusals(code, last_letter)) == 1


def test_a_sender_hears_of_a_bug_of_ours(shop, last_letter):
    with a_bug() as batch:
        shop.send_and_wait((REGISTER, make.registration(batch, 1)))
        until(lambda: shop.refusals("INTERNAL_ERROR", last_letter), what="it is received")

    [refused] = shop.refusals("INTERNAL_ERROR", last_letter)
    assert refused["batch_id"] == batch


def test_a_sender_hears_of_a_message_that_kills_workers(shop, workers, tmp_path, last_letter):
    mortal = Refused(tmp_path, workers)
    mortal.open("worker --pool prefork --concurrency 1", ELS_CRASHPOINT="claimed")
    event = make.content(make.new_batch())

    def received():  # by either: the workers of both deliver what waits in the one outbox
        return [r for each in (mortal, shop) for r in each.refusals("POISON_MESSAGE", last_letter)]

    try:
        mortal.send_and_wait((ASSIGN, event))

        until(received, 90, "it is received")
        assert {refused["event_id"] for refused in received()} == {event["event_id"]}
    finally:
        mortal.close()


def test_every_code_is_heard_of_here():
    heard = {code for code, _ in WRONG.values()} | BEFALLS.keys()
    assert heard | {"INTERNAL_ERROR", "POISON_MESSAGE"} == CODES.keys()
