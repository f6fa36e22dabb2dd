"""What waits for receivers: on the pages, in the metrics, in `els explain`."""

import json

import pytest
from celery import Celery
from prometheus_client.parser import text_string_to_metric_families

from core import metrics
from core.events import cloud_event
from core.routes import Route
from ops.web.receivers import MARKS, OldestEvent
from tasks.delivery import deliver
from tests.core import story
from tests.factories import new_batch
from tests.live.conftest import until
from tests.ops.conftest import els, served

__all__ = ["served"]
QUEUE = "els.events"


class Broker:
    """Delivers a batch's events as a worker does."""

    def __init__(self, url, lifecycle):
        self.app, self.lifecycle = Celery(broker=url), lifecycle

    def ready_batch(self, minutes):
        """Make a batch ready, so many minutes ago, and deliver its events."""
        batch = new_batch()
        story.fill(self.lifecycle, batch, 2)
        self.lifecycle.complete(batch)
        with self.lifecycle.pool.connection() as conn:
            rows = conn.execute(
                "UPDATE event_outbox SET published_at = created_at - make_interval(mins => %(m)s),"
                " created_at = created_at - make_interval(mins => %(m)s)"
                " WHERE batch_id = %(batch)s RETURNING *",
                {"m": minutes, "batch": batch},
            ).fetchall()
        events = [cloud_event(row) for row in sorted(rows, key=lambda row: row["sequence"])]
        deliver(self.app, events, lambda _: [Route(task="els.event", queue=QUEUE)])
        return batch


@pytest.fixture
def broker(served):
    served.client.delete(QUEUE)
    opened = Broker(served.settings.redis_url, served.lifecycle)
    yield opened
    served.client.delete(QUEUE)
    opened.app.close()


def samples(served):
    families = text_string_to_metric_families(served.get("/metrics").text)
    return {metrics.field(s): s.value for family in families for s in family.samples}


def test_the_number_and_the_age_are_metrics(served, broker):
    count = f'els_event_queue_messages{{queue="{QUEUE}"}}'
    age = f'els_event_queue_oldest_seconds{{queue="{QUEUE}"}}'
    until(lambda: samples(served)[count] == 0, what="the queue is empty")
    before = samples(served)

    broker.ready_batch(minutes=7)
    broker.ready_batch(minutes=2)

    seen = until(lambda: (s := samples(served))[count] == 4 and s, what="four events wait")
    assert before[age] == 0
    assert 420 <= seen[age] < 440


def test_the_top_of_each_page_counts_them_and_names_late_queues(served, broker):
    until(lambda: "Events not taken" not in served.get("/").words, what="nothing is shown")

    broker.ready_batch(minutes=0)
    until(lambda: "Events not taken 2" in served.get("/").words, what="two events wait")
    broker.ready_batch(minutes=5)
    served.client.rpush(QUEUE, served.client.lpop(QUEUE))  # an old one is at the head

    until(lambda: f"Events not taken {QUEUE} 4" in served.get("/").words, what="it is late")


def test_health_lists_the_queues(served, broker):
    broker.ready_batch(minutes=3)

    def listed():
        return json.loads(served.get("/health/batches").text)["event_queues"]

    [queue] = until(lambda: (q := listed())[0]["messages"] == 2 and q, what="the events are seen")
    assert (queue["queue"], queue["receivers"]) == (QUEUE, None)
    assert 180 <= queue["oldest_seconds"] < 200


def test_the_page_of_a_batch_names_its_event(served, broker):
    batch = broker.ready_batch(minutes=3)

    title = "Delivered, but nobody takes it (BatchEssaysReady is in queue els.events, where 2 wait)"
    words = until(
        lambda: title in (page := served.get(f"/batches/{batch}").words) and page,
        what="the page names the cause",
    )
    assert "start or repair the receiver of queue els.events" in words

    served.client.delete(QUEUE)  # its receiver takes them
    until(lambda: "Delivered, but" not in served.get(f"/batches/{batch}").words, what="it is taken")


def test_the_command_names_it_too(served, broker):
    batch = broker.ready_batch(minutes=3)
    urls = {
        "ELS_DATABASE_URL": served.settings.database_url,
        "ELS_REDIS_URL": served.settings.redis_url,
    }

    def causes(**environ):
        done = els("explain", batch, "--json", **urls, **environ)
        return {cause["code"]: cause for cause in json.loads(done.stdout)["causes"]}

    def cause(code, **environ):
        """A command has 3 s, so on a slow machine it may leave the receivers out."""
        return until(lambda: causes(**environ).get(code), 60, f"{code} is named")

    elsewhere = json.dumps({"*": [{"task": "els.event", "queue": "nlp"}]})
    assert "in queue els.events, where 2 wait" in cause("event_not_taken")["title"]
    assert "event_not_taken" not in causes(ELS_EVENT_ROUTES=elsewhere)
    assert "a route sends" in cause("readiness_goes_nowhere", ELS_EVENT_ROUTES='{"*": []}')["title"]


# --- the age of the oldest event where the broker does not show it ------------------------------


def ages(*looks):
    """Return the age at each look: its time, the events that wait, those published so far."""
    oldest = OldestEvent()
    return [oldest.seconds(*look) for look in looks]


def test_an_event_that_nobody_takes_grows_older():
    assert ages((0, 0, 7), (10, 1, 8), (20, 1, 8), (90, 2, 9)) == [0, 0, 10, 80]


def test_a_queue_that_is_never_empty_is_as_old_as_its_oldest_event():
    looks = [(10 * n, 3, 5 * n) for n in range(1, 100)]

    assert set(ages(*looks)[1:]) == {0}


def test_a_receiver_that_stops_is_seen_by_the_age():
    working = [(n, 2, 2 * n) for n in range(60)]
    stopped = [(60 + n, 2 + 2 * n, 120 + 2 * n) for n in range(1, 31)]

    assert ages(*working, *stopped)[-1] == pytest.approx(30, abs=1)


def test_before_its_first_look_nothing_is_known():
    assert ages((1000, 50, 200), (1060, 50, 200)) == [0, 60]


def test_counts_that_begin_again_are_a_first_look():
    assert ages((0, 3, 900), (50, 3, 900), (60, 3, 0), (90, 3, 0)) == [0, 50, 0, 30]


def test_an_empty_queue_has_no_age():
    assert ages((0, 3, 3), (50, 0, 3), (60, 1, 4)) == [0, 0, 0]


def test_a_long_history_gets_coarser_not_longer():
    oldest = OldestEvent()

    for n in range(10 * MARKS):
        age = oldest.seconds(n, n + 1, n + 1)

    assert len(oldest._times) <= MARKS
    assert age == 10 * MARKS - 1
