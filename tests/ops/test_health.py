"""Health and metrics over HTTP, with all servers and without some of them."""

import base64
import json
import os
import time
from contextlib import contextmanager

import psycopg
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from core import db, metrics
from core.signs.heartbeat import STARTS, forget_start, note_start, note_sweep, note_worker
from core.signs.pauses import PAUSES, server_time
from core.states import BatchStatus
from ops.alarms import all_rules
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port
from tests.core import story
from tests.factories import new_batch
from tests.live.conftest import until
from tests.ops.conftest import answering, fetch
from tests.ops.served import Served, own_database

NOBODY = "127.0.0.1:9"  # the discard port: connections are refused
NO_POSTGRES = {"ELS_DATABASE_URL": f"postgresql://els:secret-word@{NOBODY}/els"}
NO_REDIS = {
    "ELS_BROKER_URL": os.environ["ELS_REDIS_URL"],
    "ELS_REDIS_URL": f"redis://:secret-word@{NOBODY}/0",
}
NO_BROKER = {"ELS_BROKER_URL": f"redis://:secret-word@{NOBODY}/0"}


class Page:
    """A running `els ops`."""

    def __init__(self, url):
        self.url = url

    def get(self, path, **headers):
        return fetch(self.url + path, **headers)

    def json(self, path):
        status, body = self.get(path)
        return status, json.loads(body)

    def samples(self):
        """Read `/metrics`: name and labels to value."""
        status, body = self.get("/metrics")
        assert status == 200, body
        families = text_string_to_metric_families(body)
        return {metrics.field(s): s.value for family in families for s in family.samples}


@contextmanager
def serve(**environ):
    with answering("ops", "ELS_OPS_PORT", "/healthz", **environ) as (url, _):
        yield Page(url)


@pytest.fixture(scope="module")
def page(database_url):
    with serve() as running:
        yield running


def after(page, condition, what):
    """Wait until `/metrics` shows it: a look at the books is shown for a second or more."""

    def seen():
        samples = page.samples()
        return samples if condition(samples) else None

    return until(seen, 60, what)


def test_readiness_is_the_answer_of_every_part(page):
    status, ready = page.json("/readyz")

    assert status == 200
    assert ready == {"ready": True, "postgres": "ok", "redis": "ok", "broker": "ok"}


@pytest.mark.parametrize(
    ("part", "environ"),
    [("postgres", NO_POSTGRES), ("redis", NO_REDIS), ("broker", NO_BROKER)],
    ids=["postgres", "redis", "broker"],
)
def test_a_part_that_is_away_is_named_and_everything_else_is_told(database_url, part, environ):
    with serve(**environ) as page:
        status, ready = page.json("/readyz")
        health = page.json("/health/batches")
        samples = page.samples()
        alive = page.get("/healthz")

    parts = {"postgres", "redis", "broker"}
    assert status == 503
    assert {name for name in parts if ready[name] != "ok"} == {part}
    assert {name for name in parts if not samples[f'els_up{{part="{name}"}}']} == {part}
    assert ("els_pending_contents" in samples) == (part != "postgres")
    assert ('els_sweep_repairs_total{rule="slot_drift"}' in samples) == (part != "redis")
    assert ("els_slot_drift" in samples) == (part == "broker")
    assert (health[0] == 503) == (part == "postgres")
    assert health[1].get("unchecked") == {
        "postgres": None,
        "redis": ["slot_drift"],
    }.get(part, [])
    assert alive == (200, "alive\n")
    assert "secret-word" not in str([ready, health])


def test_a_database_without_the_schema_is_not_ready(database_url, conn):
    name = new_batch().replace("-", "_")
    conn.execute(f"CREATE DATABASE {name}")
    try:
        with serve(ELS_DATABASE_URL=f"{database_url.rpartition('/')[0]}/{name}") as page:
            status, ready = page.json("/readyz")
    finally:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")

    assert status == 503
    assert "els migrate" in ready["postgres"]


@pytest.fixture
def broker(tmp_path):
    server = Valkey(tmp_path / "broker", free_port(), "password")
    server.start()
    with redis.Redis.from_url(server.url) as client:
        yield server.url, client
    server.stop()


@pytest.mark.parametrize(
    ("setting", "value", "status"),
    [("maxmemory-policy", "allkeys-lru", 503), ("appendonly", "no", 200)],
)
def test_what_a_server_lacks_is_listed_with_the_next_step(
    database_url, broker, setting, value, status
):
    url, client = broker
    with serve(ELS_BROKER_URL=url) as page:
        before = page.json("/readyz")
        client.config_set(setting, value)
        seen, ready = page.json("/readyz")

    assert before == (200, {"ready": True, "postgres": "ok", "redis": "ok", "broker": "ok"})
    assert seen == status
    (finding,) = ready["findings"]
    assert finding["server"] == "broker"
    assert finding["severity"] == ("fault" if status == 503 else "warning")
    assert setting in finding["wrong"]
    assert setting in finding["step"]
    assert finding["why"]
    assert (ready["broker"] == "ok") == ready["ready"] == (status == 200)


def test_a_worker_that_ends_again_and_again_is_a_warning(page, valkey):
    starts = [note_start(valkey, "worker@looping") for _ in range(3)]
    status, ready = page.json("/readyz")
    counted = page.samples()["els_restarting_workers"]
    for start in starts:
        forget_start(valkey, start)
    after = page.json("/readyz")[1]

    (finding,) = ready["findings"]
    assert (status, finding["server"], finding["severity"]) == (200, "worker", "warning")
    assert "worker@looping has started 3 times" in finding["wrong"]
    assert counted == 1
    assert "findings" not in after
    assert page.samples()["els_restarting_workers"] == 0


def test_a_worker_that_waits_five_minutes_between_two_starts_still_ends_again_and_again(
    page, valkey
):
    """Kubernetes makes the pauses longer, up to five minutes."""
    now = server_time(valkey)
    starts = {f"{at} worker@slow": at for at in (now - 690, now - 360, now - 30)}
    valkey.zadd(STARTS, starts)

    counted = page.samples()["els_restarting_workers"]
    valkey.zrem(STARTS, *starts)

    assert counted == 1


def test_a_redis_that_refuses_writes_is_named_and_not_its_silent_workers(database_url, broker):
    redis_url, client = broker
    name, batch = f"refused_{new_batch().replace('-', '_')}", new_batch()
    with own_database(database_url, name) as url, Served(url, redis_url) as served:
        story.register(served.lifecycle, batch, 2)
        client.flushall()  # the signs of life too: no worker can give one
        client.config_set("min-replicas-to-write", 1)
        shown, told = served.get(f"/batches/{batch}"), served.get(f"/v1/batches/{batch}")

    assert "Redis refuses writes" in shown.words
    codes = [cause["code"] for cause in json.loads(told.text)["causes"]]
    assert "server_refuses" in codes
    assert "no_worker" not in codes


def test_the_health_of_batches_is_said_while_redis_holds_writes_back(database_url, broker):
    redis_url, client = broker
    name = f"held_back_{new_batch().replace('-', '_')}"
    with own_database(database_url, name) as url, Served(url, redis_url) as served:
        story.register(served.lifecycle, new_batch(), 2)
        for n in range(3):  # processes that cannot renew their notes now
            note = {"server": "redis", "error": "a timeout", "since": 0, "at": 0}
            client.hset(PAUSES, f"silent:{n}", json.dumps(note))
        client.client_pause(60_000, all=False)
        began = time.monotonic()
        health = json.loads(served.get("/health/batches").text)
        seconds = time.monotonic() - began
        client.client_unpause()

    assert "server_refuses" in [cause["code"] for cause in health["service"]]
    assert health["unchecked"] == []  # counting the free slots writes nothing
    assert seconds < 5  # before, each note took 2 s, and counting the free slots as well


def test_a_read_only_database_is_not_ready(database_url, conn):
    name = f"ready_{new_batch().replace('-', '_')}"
    with own_database(database_url, name) as url, serve(ELS_DATABASE_URL=url) as page:
        conn.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        status, ready = page.json("/readyz")

    assert status == 503
    assert "read-only" in ready["postgres"]


def test_who_has_locked_a_table_is_named(database_url, conn):
    name = f"locked_{new_batch().replace('-', '_')}"
    with (
        own_database(database_url, name) as url,
        serve(ELS_DATABASE_URL=url) as page,
        psycopg.connect(url, application_name="payroll") as other,
    ):
        other.execute("LOCK TABLE repairs IN EXCLUSIVE MODE")
        status, ready = page.json("/readyz")
        _, health = page.json("/health/batches")

    assert status == 503
    assert "payroll" in ready["postgres"]
    assert "pg_terminate_backend" in ready["postgres"]
    assert "lock_held" in [cause["code"] for cause in health["service"]]


def test_the_health_of_batches_waits_for_nobody_who_has_locked_a_table(database_url):
    name = f"held_{new_batch().replace('-', '_')}"
    with (
        own_database(database_url, name) as url,
        serve(ELS_DATABASE_URL=url) as page,
        psycopg.connect(url, application_name="payroll") as other,
    ):
        other.execute("LOCK TABLE essay_states IN ACCESS EXCLUSIVE MODE")

        def named():
            began = time.monotonic()
            status, found = page.json("/health/batches")
            codes = [cause["code"] for cause in found["service"]]
            return (status, found, time.monotonic() - began) if "lock_held" in codes else None

        status, health, seconds = until(named, 60, "the lock is named")

    assert (status, health["status"], health["batches"]) == (200, "degraded", {})
    assert health["unchecked"] == [rule.code for rule in all_rules()]
    assert seconds < 8  # before, it waited 10 s for Postgres to give up, and named nobody


def test_a_read_url_of_another_database_is_refused(database_url, lifecycle):
    batch, name = new_batch(), f"another_{new_batch().replace('-', '_')}"
    story.register(lifecycle, batch, 1)
    with own_database(database_url, name) as other, serve(ELS_DATABASE_READ_URL=other) as page:
        status, found = page.json(f"/v1/batches/{batch}")
        samples = page.samples()

    assert (status, found["batch_id"]) == (200, batch)
    assert samples['els_up{part="replica"}'] == 0


def test_a_postgres_that_is_away_is_named_with_its_reason_and_a_step(database_url):
    url = database_url.rpartition("/")[0] + "/gone"
    with serve(ELS_DATABASE_URL=url) as page:
        began = time.monotonic()
        status, health = page.json("/health/batches")
        seconds = time.monotonic() - began

    assert status == 503
    assert 'database "gone" does not exist' in health["reason"]
    assert "ELS_DATABASE_URL" in health["step"]
    assert seconds < 8  # it tries for 3 s; before, it tried three times


def test_every_metric_of_the_contract_is_there_from_the_start(page):
    samples = page.samples()

    for status in BatchStatus:
        for class_type in ("GUEST", "REGULAR"):
            labels = f'{{class_type="{class_type}",status="{status}"}}'
            assert f"els_batches{labels}" in {_sorted(name) for name in samples}
    assert {f'els_stuck_batches{{reason="{rule.code}"}}' for rule in all_rules()} <= samples.keys()
    assert {
        'els_batch_registration_total{outcome="registered"}',
        'els_batch_registration_failures_total{sqlstate="none"}',
        "els_batch_registration_seconds_count",
        'els_content_assignment_total{outcome="assigned"}',
        "els_content_assignment_seconds_count",
        "els_batch_readiness_seconds_count",
        "els_pending_contents",
        "els_oldest_open_batch_seconds",
        "els_slot_drift",
        "els_outbox_unpublished",
        "els_outbox_oldest_seconds",
        "els_dead_letters",
        'els_sweep_repairs_total{rule="full_not_announced"}',
    } <= samples.keys()


def _sorted(name):
    head, _, labels = name.partition("{")
    return f"{head}{{{','.join(sorted(labels.rstrip('}').split(',')))}}}"


def test_no_batch_is_named_by_a_metric(page, lifecycle):
    batch = new_batch()
    story.register(lifecycle, batch)
    lifecycle.slots.forget([batch])
    after(page, lambda s: s['els_stuck_batches{reason="slot_drift"}'] > 0, "the drift is seen")

    _, body = page.get("/metrics")

    assert batch not in body
    assert "batch_id" not in body


def test_what_waits_and_what_is_stuck_is_measured(page, conn, lifecycle):
    waits, stuck = new_batch(), new_batch()
    before = page.samples()
    story.assign(lifecycle, waits)
    story.register(lifecycle, stuck, 1)
    conn.execute(
        "UPDATE batch_essay_trackers SET registered_at = now() - interval '30 days',"
        " deadline_at = now() - interval '1 hour' WHERE batch_id = %s",
        [stuck],
    )

    samples = after(
        page, lambda s: s["els_pending_contents"] > before["els_pending_contents"], "it waits"
    )
    health = page.json("/health/batches")[1]

    assert samples["els_oldest_open_batch_seconds"] > 29 * 86_400
    assert samples['els_stuck_batches{reason="deadline_passed"}'] >= 1
    assert health["status"] == "degraded"
    assert {"batch_id": stuck, "reason": "deadline_passed"}.items() <= next(
        found for found in health["stuck"] if found["batch_id"] == stuck
    ).items()
    conn.execute("DELETE FROM batch_essay_trackers WHERE batch_id = %s", [stuck])


def test_what_is_not_mending_itself_is_said_with_its_last_error(page, conn, lifecycle):
    batch = new_batch()
    story.fill(lifecycle, batch, 2)
    for _ in range(2):
        db.sweep.note_failure(conn, batch, "full_not_announced", "BrokenSeal: not as they were")

    def seen():
        stuck = page.json("/health/batches")[1]["stuck"]
        return next((each for each in stuck if each["batch_id"] == batch), None)

    found = until(seen, 60, "the batch is seen")

    told = found["not_mending_itself"]
    assert (told["failures"], told["last_error"]) == (2, "BrokenSeal: not as they were")
    assert told["since"].endswith("+00:00")
    conn.execute("DELETE FROM unmended WHERE batch_id = %s", [batch])
    conn.execute("DELETE FROM batch_essay_trackers WHERE batch_id = %s", [batch])


def test_the_health_of_batches_is_degraded_while_nobody_works(page, valkey):
    def service():
        return page.json("/health/batches")[1]["service"]

    valkey.delete("els:workers", "els:swept_at")
    found = until(service, 60, "nobody works")
    status = page.json("/health/batches")[1]["status"]

    def works():
        note_worker(valkey, "worker@test")
        note_sweep(valkey)
        return service() == []

    assert [cause["code"] for cause in found] == ["no_worker", "beat_silent"]
    assert found[0]["title"] == "No worker is running"
    assert found[0]["command"] == "els worker"
    assert status == "degraded"
    until(works, 60, "somebody works")


def test_the_counts_of_workers_are_shown_with_labels_that_only_they_know(page, valkey):
    valkey.hset(metrics.HASH, 'els_retries_total{sqlstate="40P01"}', "3")
    valkey.hset(metrics.HASH, 'els_content_assignment_seconds_bucket{le="0.01"}', "7")
    valkey.hset(metrics.HASH, "els_of_an_older_release_total", "1")

    samples = page.samples()

    assert samples['els_retries_total{sqlstate="40P01"}'] == 3
    assert samples['els_retries_total{sqlstate="none"}'] == 0
    assert samples['els_content_assignment_seconds_bucket{le="0.01"}'] == 7
    assert "els_of_an_older_release_total" not in samples


def test_with_a_password_metrics_are_for_those_who_know_it(database_url):
    with serve(ELS_OPS_AUTH="ops:sesame") as page:
        known = "Basic " + base64.b64encode(b"ops:sesame").decode()

        assert page.get("/metrics")[0] == 401
        assert page.get("/metrics", Authorization=known)[0] == 200


def test_what_waits_for_a_registration_shows_at_once_and_alarms_later(page, lifecycle):
    batch = new_batch()
    with lifecycle.pool.connection() as conn:  # what others left would fill the list
        conn.execute("DELETE FROM batch_pending_content")
    story.assign(lifecycle, batch, "text-1")
    story.assign(lifecycle, batch, "text-2")

    def waiting(of, stuck):
        body = of.json("/health/batches")[1]
        found = batch in {each["batch_id"] for each in body["stuck"]}
        pending = body["pending_not_registered"]
        return pending["contents"] >= 2 and pending["batches"] >= 1 and found is stuck

    until(lambda: waiting(page, stuck=False), 60, "it is counted, and no alarm yet")
    with serve(ELS_PENDING_ALARM_S="0") as strict:
        until(lambda: waiting(strict, stuck=True), 60, "it is an alarm")
        status, board = strict.get("/")
        assert status == 200
        assert "Pending, not registered" in board
