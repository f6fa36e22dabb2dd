"""Events go to the broker: where the routes say, by their ids, and with nothing private to see."""

import pytest

from core.lifecycle import Lifecycle
from core.settings import Route
from tasks import resources as program
from tasks.resources import resources
from tests.core import looks
from tests.core.crowd import until
from tests.core.story import fill, texts
from tests.factories import cancellation, content, contents, registration

REGISTER, ASSIGN, UPLOAD = "els.register_batch", "els.assign_content", "els.assign_contents"


@pytest.fixture
def route(monkeypatch):
    """Send types of events elsewhere."""

    def to(**routes):
        told = {
            name: [Route(task=task, queue=queue) for task, queue in routes[name]] for name in routes
        }
        changed = program.settings.model_copy(update={"event_routes": told})
        monkeypatch.setattr(program, "settings", changed)

    return to


def test_events_reach_the_queue_in_order_with_their_ids(send, conn, batch_id, messages):
    send(REGISTER, registration(batch_id, 2))
    send(UPLOAD, contents(batch_id, texts(3)))

    sent = messages()

    assert [message["headers"]["task"] for message in sent] == [
        "els.events.excess_content_provisioned",
        "els.events.batch_content_provisioning_completed",
        "els.events.batch_essays_ready",
    ]
    stored = looks.events(conn, batch_id)
    assert [message["headers"]["id"] for message in sent] == [str(row["id"]) for row in stored]
    assert [message["kwargs"]["event"]["data"] for message in sent] == [
        row["data"] for row in stored
    ]
    assert all(message["kwargs"].keys() == {"event"} for message in sent)
    assert all(message["args"] == [] for message in sent)
    assert all(message["headers"]["ignore_result"] for message in sent)
    assert all(row["published_at"] for row in stored)


def test_what_monitors_see_of_an_event_names_no_file(send, batch_id, messages):
    send(REGISTER, registration(batch_id, 1))
    send(ASSIGN, content(batch_id, original_file_name="Anna Andersson.txt"))

    for message in messages():
        assert "Anna" not in str(message["headers"])
        assert message["headers"]["argsrepr"] == "()"
        shown = message["headers"]["kwargsrepr"]
        assert message["headers"]["id"] in shown
        assert batch_id in shown
        assert "Anna" in str(message["kwargs"])


def test_a_type_may_go_to_several_consumers(send, batch_id, messages, route):
    route(BatchCancelled=[("billing.cancelled", "billing"), ("audit.event", "audit")])
    send(REGISTER, registration(batch_id, 1))

    send("els.cancel_batch", cancellation(batch_id))

    assert messages() == []
    (billing,), (audit,) = messages("billing"), messages("audit")
    assert billing["headers"]["task"] == "billing.cancelled"
    assert audit["headers"]["task"] == "audit.event"
    assert billing["kwargs"] == audit["kwargs"]


def test_a_catch_all_gets_each_type_that_has_no_entry_of_its_own(send, batch_id, messages, route):
    route(**{"*": [("els.event", "nlp")], "BatchEssaysReady": [("billing.ready", "billing")]})
    send(REGISTER, registration(batch_id, 1))

    send(UPLOAD, contents(batch_id, texts(2)))

    caught = messages("nlp")
    assert {message["headers"]["task"] for message in caught} == {"els.event"}
    assert [message["kwargs"]["event"]["type"] for message in caught] == [
        "ExcessContentProvisioned",
        "BatchContentProvisioningCompleted",
    ]
    assert [message["headers"]["task"] for message in messages("billing")] == ["billing.ready"]
    assert messages() == []


def test_a_type_may_go_nowhere_and_counts_as_delivered(send, conn, batch_id, messages, route):
    route(BatchCancelled=[])
    send(REGISTER, registration(batch_id, 1))

    send("els.cancel_batch", cancellation(batch_id))

    assert messages() == []
    assert looks.broken(conn, batch_id, at_rest=True) == []


def test_slots_are_told_where_a_route_asks(send, batch_id, messages, route):
    route(EssaySlotAssigned=[("els.events.slot", "slots")])
    resources.cache_clear()
    try:
        send(REGISTER, registration(batch_id, 2))
        send(ASSIGN, content(batch_id))
    finally:
        resources().pool.close()
        resources.cache_clear()

    (told,) = messages("slots")
    assert told["kwargs"]["event"]["data"]["text_storage_id"] == "text-1"


def test_events_that_the_broker_did_not_take_are_relayed_later(
    send, conn, batch_id, messages, valkey
):
    send(REGISTER, registration(batch_id, 1))
    valkey.set("els.events", "no list")  # the broker can take nothing on this queue

    value = send(ASSIGN, content(batch_id))

    assert value["outcome"] == "assigned"
    first, *_ = looks.events(conn, batch_id)
    assert (first["published_at"], first["attempts"]) == (None, 1)
    assert "WRONGTYPE" in first["last_error"]

    valkey.delete("els.events")
    program.app.tasks["els.relay"].apply().get()

    sent = [m["kwargs"]["event"] for m in messages() if batch_id in str(m["headers"])]
    assert [event["sequence"] for event in sent] == [1, 2]
    assert looks.broken(conn, batch_id, at_rest=True) == []


def test_the_sweep_announces_and_its_events_are_sent(pool, slots, conn, batch_id, messages):
    fill(Lifecycle(pool, slots), batch_id, 2)

    until(lambda: program.app.tasks["els.sweep"].apply().get().get("full_not_announced", 0) == 0)

    assert looks.types(conn, batch_id) == [
        "BatchContentProvisioningCompleted",
        "BatchEssaysReady",
    ]
    assert looks.broken(conn, batch_id, at_rest=True) == []
    assert len([m for m in messages() if batch_id in str(m["headers"])]) == 2
