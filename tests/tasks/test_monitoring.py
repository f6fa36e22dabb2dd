"""The events that monitors get of tasks are Celery's."""

import pytest
from celery.events import EventDispatcher

from tasks.app import app
from tasks.worker.monitoring import Dispatcher

FIELDS = {"uuid": "some-id", "name": "els.relay", "retries": 0, "eta": None}


@pytest.fixture
def dispatcher():
    """Make one of a class that publishes to a list, in batches of two."""

    def make(cls, **options):
        with app.connection_for_write("memory://") as connection:
            made = cls(
                connection,
                hostname="worker@host",
                app=app,
                buffer_group=["task"],
                buffer_limit=2,
                on_send_buffered=lambda: None,
                **options,
            )
        made.published = []
        made._publish = lambda event, *args, **kwargs: made.published.append(event)
        return made

    return make


@pytest.mark.parametrize("types", [["task-received", "task-started"], ["worker-heartbeat"]])
def test_an_event_has_the_fields_that_celery_gives_it(dispatcher, types):
    ours, stock = dispatcher(Dispatcher), dispatcher(EventDispatcher)
    for each in (ours, stock):
        for name in types:
            each.send(name, **FIELDS)

    def told(dispatcher):
        [batch] = dispatcher.published
        events = batch if isinstance(batch, list) else [batch]
        return [{**event, "timestamp": 0, "clock": 0} for event in events]

    assert told(ours) == told(stock)
    assert [event["type"] for event in told(ours)] == types


def test_an_event_waits_for_its_batch(dispatcher):
    ours = dispatcher(Dispatcher)

    ours.send("task-received", **FIELDS)
    waiting = list(ours.published)
    ours.send("task-succeeded", **FIELDS)

    assert waiting == []
    [[received, succeeded]] = ours.published
    assert received["clock"] < succeeded["clock"]
    assert received["timestamp"] <= succeeded["timestamp"]


@pytest.mark.parametrize("options", [{"enabled": False}, {"groups": ["worker"]}])
def test_nothing_is_told_where_it_is_off(dispatcher, options):
    ours = dispatcher(Dispatcher, **options)

    for name in ("task-received", "task-started"):
        ours.send(name, **FIELDS)
    ours.flush()

    assert ours.published == []
