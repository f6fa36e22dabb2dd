"""What a worker's parent sends to monitors, and when."""

from types import SimpleNamespace

from tasks.app import app
from tasks.worker import monitoring


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
