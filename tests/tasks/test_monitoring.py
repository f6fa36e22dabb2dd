"""What a worker's parent sends to monitors, and when."""

from types import SimpleNamespace
from uuid import UUID, uuid4

from tasks import upstream as _registered  # noqa: F401 - its tasks
from tasks.app import app
from tasks.worker import monitoring
from tasks.worker.request import QuietRequest
from tasks.worker.results import Backend


def test_an_event_is_tried_once(monkeypatch):
    tries = []
    with app.connection_for_write("memory://") as connection:
        dispatcher = app.events.Dispatcher(connection, hostname="worker@host")
    monkeypatch.setattr(dispatcher, "_publish", lambda *_, **options: tries.append(options))

    dispatcher.send("worker-heartbeat", freq=2, retry=True)

    assert isinstance(dispatcher, monitoring.Dispatcher)
    assert [options["retry"] for options in tries] == [False]


def test_task_events_wait_for_each_other(monkeypatch):
    now, flushes = [0.0], []
    monkeypatch.setattr(monitoring, "monotonic", lambda: now[0])
    consumer = SimpleNamespace(
        hub=SimpleNamespace(call_later=lambda wait_s, flush: flushes.append(now[0] + wait_s)),
        event_dispatcher=SimpleNamespace(),
        _flush_events=lambda: None,
    )
    flush = monitoring.EventFlush(consumer)

    for moment in (10.0, 10.1, 10.19, 10.3, 10.4):
        now[0] = moment
        flush.schedule()

    assert flushes == [10.2, 10.5]
    assert consumer.event_dispatcher.buffer_limit == monitoring.FLUSHED_AT_ONCE


def received(connection, event):
    receiver = app.events.Receiver(connection, {"*": print})
    return receiver.event_from_message({"clock": 1, "timestamp": 1.0, **event})[1]


def test_what_others_say_of_their_messages_is_hidden():
    given = str(uuid4())
    event = {
        "type": "task-sent",
        "uuid": given,
        "root_id": "Anna",
        "name": "els.assign_content",
        "args": "('Anna',)",
        "kwargs": "{'event': 'Anna'}",
        "eta": "Anna",
        "retries": 2,
        "queue": "els",
    }
    with app.connection_for_read("memory://") as connection:
        shown = received(connection, event)
        unknown = received(connection, {**event, "name": "els.Anna"})
        ours = received(connection, {**event, "concealed": True, "kwargs": "batch_id=b"})

    assert (shown["uuid"], shown["name"], shown["retries"]) == (given, "els.assign_content", 2)
    assert (shown["args"], shown["kwargs"], unknown["name"]) == ("…", "…", "…")
    assert "Anna" not in repr([shown, unknown])
    assert ours["kwargs"] == "batch_id=b"


def test_an_event_of_ours_shows_no_id_that_a_sender_made_up(monkeypatch):
    sent = []
    with app.connection_for_write("memory://") as connection:
        dispatcher = app.events.Dispatcher(connection, hostname="worker@host")
    monkeypatch.setattr(dispatcher, "_publish", lambda event, *_, **__: sent.append(event))
    dispatcher.buffer_group = set()

    dispatcher.send("task-received", uuid="Anna", root_id="Anna", parent_id=None)

    assert "Anna" not in repr(sent)
    assert UUID(sent[0]["uuid"]) == UUID(sent[0]["root_id"])


def test_what_a_worker_answers_about_a_message_is_not_what_it_says():
    message = SimpleNamespace(
        headers={"id": "Anna", "task": "els.cancel_batch", "argsrepr": "Anna", "eta": None},
        properties={},
        delivery_info={},
        delivery_tag="1",
        payload=None,
        body=([], {"event": {"reason": "Anna", "batch_id": "b"}}, {}),
        content_type="application/json",
        content_encoding="utf-8",
        errors=None,
    )
    request = QuietRequest(message, app=app, task=app.tasks["els.cancel_batch"], decoded=True)

    for answer in (request.info(), request.info(safe=True)):
        assert answer["kwargs"] == "batch_id=b"
        assert "Anna" not in repr(answer)


def test_a_stored_error_is_described_and_has_no_traceback():
    backend = Backend(app=app, url="redis://127.0.0.1:1/0")
    error = ValueError("Anna")

    stored = backend.prepare_exception(error)

    assert "Anna" not in repr(stored)
    assert repr(backend.exception_to_python(stored)) == "ValueError('ValueError')"
