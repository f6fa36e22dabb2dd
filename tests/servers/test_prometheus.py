"""A real Prometheus logs in to a real ops page and fires every alert once.

Each alert gets the state that it warns of, in servers of this file alone; only its durations are
shortened.
"""

import json
import re
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import psycopg
import pytest
import yaml
from celery import Celery

from core import db, metrics
from core.db.dead_letters import DeadLetter
from core.lifecycle import Lifecycle
from core.metrics import Pusher
from core.servers.redis_client import connect
from core.signs.heartbeat import STARTS, SWEPT, note_start, note_sweep, note_worker, write_sign
from core.signs.pauses import Outage, Pause, delete_pause, server_time, write_pause
from core.slots import Slots
from migrations import upgrade
from ops.brief_postgres import pool_for_pages
from ops.stack.embedded import Postgres, Valkey
from ops.stack.leash import leashed
from ops.stack.ports import free_port
from tests import factories as make
from tests.core import story
from tests.live.conftest import until
from tests.ops.conftest import ROOT, answering
from tests.servers.conftest import program

DEPLOY = ROOT / "deploy/prometheus"
WORKER = "worker@test"
PASSWORD = "sesame"
FIRES_S = 40
END_SESSIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


class Watched:
    """A service that lives by what a test writes, its ops page, and a Prometheus."""

    def __init__(self, urls, prometheus_url, page):
        self.database_url, self.redis_url = urls
        self.prometheus_url, self.page = prometheus_url, page
        self.client = connect(self.redis_url)
        self.pool = pool_for_pages(self.database_url, size=4)
        self.lifecycle = Lifecycle(self.pool, Slots(self.client))
        self.pusher = Pusher(self.client)
        self.upstream = Celery("upstream", broker=self.redis_url)

    def close(self):
        self.pool.close()
        self.client.close()
        self.upstream.close()

    def lives(self):
        """Give the signs of life of a worker and of the sweep."""
        note_worker(self.client, WORKER)
        note_sweep(self.client)

    def sql(self, statement, *values):
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            connection.execute(statement, values)

    def ask(self, path):
        with urllib.request.urlopen(self.prometheus_url + path, timeout=10) as answer:
            return json.load(answer)["data"]

    def firing(self):
        """Return the alerts that fire, by name: their labels."""
        alerts = self.ask("/api/v1/alerts")["alerts"]
        return {a["labels"]["alertname"]: a["labels"] for a in alerts if a["state"] == "firing"}

    def fires(self, name, meanwhile):
        """Wait until an alert fires, and return its labels."""

        def look():
            meanwhile()
            return self.firing().get(name)

        return until(look, FIRES_S, f"{name} fires")

    def quiet(self, name, meanwhile):
        def look():
            meanwhile()
            return name not in self.firing()

        until(look, FIRES_S, f"{name} is over")


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    prometheus = program("prometheus")
    home = tmp_path_factory.mktemp("watched")
    postgres = Postgres(home / "postgres", free_port(), "test-password")
    valkey = Valkey(home / "valkey", free_port(), "test-password")
    try:
        for server in (postgres, valkey):
            server.start()
        upgrade(postgres.url)
        urls = postgres.url, valkey.url
        settings = {"ELS_DATABASE_URL": urls[0], "ELS_REDIS_URL": urls[1], "ELS_BROKER_URL": ""}
        login = {"ELS_OPS_AUTH": f"prometheus:{PASSWORD}"}
        with (
            answering("ops", "ELS_OPS_PORT", "/healthz", **settings, **login) as (url, page),
            scraping(prometheus, home, url) as prometheus_url,
        ):
            watched = Watched(urls, prometheus_url, page)
            yield watched
            watched.close()
    finally:
        valkey.stop()
        postgres.stop()


@contextmanager
def scraping(prometheus, home, page_url):
    """Run Prometheus with our rules on the page, each second."""
    port = free_port()
    (home / "password").write_text(PASSWORD)
    (home / "alerts.yml").write_text(hurried((DEPLOY / "alerts.yml").read_text()))
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [job] = config["scrape_configs"]
    job["static_configs"] = [{"targets": [page_url.partition("//")[2]]}]
    job["basic_auth"] = {"username": "prometheus", "password_file": str(home / "password")}
    (home / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        prometheus,
        f"--config.file={home}/prometheus.yml",
        f"--storage.tsdb.path={home}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (home / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(leashed(command, 9), stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        until(partial(ready, url), 30, "Prometheus is ready")
        yield url
    finally:
        process.terminate()
        process.wait(15)


def hurried(rules):
    """Shorten the durations of the rules: minutes and tens of seconds to seconds."""
    rules = re.sub(r"\bfor: \d+[ms]\b", "for: 1s", rules)
    return re.sub(r"(\[|offset )\d+m\b", r"\g<1>15s", rules)


def ready(url):
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
            return True
    except OSError:
        return False


def test_prometheus_logs_in_with_the_password_of_a_file(watched):
    def target():
        targets = watched.ask("/api/v1/targets")["activeTargets"]
        return [each for each in targets if each["health"] == "up"]

    [scraped] = until(target, 20, "the page is scraped")
    assert scraped["lastError"] == ""


# --- what makes each alert fire -------------------------------------------------------------------


def no_worker(w):
    w.client.delete("els:workers")
    return {}, lambda: note_sweep(w.client)


def crash_loop(w):
    """A worker of one name starts again and again, and lives in between, as under a supervisor."""

    def live_and_die():
        w.lives()
        note_start(w.client, "worker@crashing")

    for _ in range(3):
        note_start(w.client, "worker@crashing")
    return {}, live_and_die


def silent_sweep(w):
    return {}, lambda: (w.client.set(SWEPT, time.time() - 120), note_worker(w.client, WORKER))


def wrong_counter(w):
    batch = registered(w)
    w.sql("UPDATE batch_essay_trackers SET available_slots = 1 WHERE batch_id = %s", batch)
    return {"reason": "counter_wrong"}, w.lives


def past_deadline(w):
    batch = registered(w)
    w.sql(
        "UPDATE batch_essay_trackers SET deadline_at = now() - interval '1 min'"
        " WHERE batch_id = %s",
        batch,
    )
    return {}, w.lives


def old_event(w):
    batch = registered(w)
    story.assign(w.lifecycle, batch)
    story.assign(w.lifecycle, batch, "text-2")
    story.assign(w.lifecycle, batch, "text-3")  # excess: its event waits
    w.sql(
        "UPDATE event_outbox SET created_at = now() - interval '2 min' WHERE batch_id = %s", batch
    )
    return {}, w.lives


def pending_though_registered(w):
    batch, waits = registered(w), make.new_batch()
    story.assign(w.lifecycle, waits, "early")
    w.sql("UPDATE batch_pending_content SET batch_id = %s WHERE batch_id = %s", batch, waits)
    return {}, w.lives


def drifted_slots(w):
    registered(w)
    w.client.delete(*w.client.scan_iter("batch:*"))
    return {}, w.lives


def letter(w, code):
    batch = make.new_batch()
    with w.pool.connection() as conn:
        db.dead_letters.add(conn, DeadLetter("els.assign_content", batch, batch, "{}", code, "x"))


def dead_letter(w):
    letter(w, "VALIDATION_ERROR")
    return {}, w.lives


def bug(w):
    letter(w, "INTERNAL_ERROR")
    return {"code": "INTERNAL_ERROR"}, w.lives


def failing_registrations(w):
    metrics.retried("els.register_batch", "40P01")
    w.pusher.push()
    return {"sqlstate": "40P01"}, w.lives


def send(w, number, **fields):
    with w.upstream.connection_for_write() as connection:
        producer = w.upstream.amqp.Producer(connection)
        for _ in range(number):
            event = make.content(make.new_batch()) | fields
            w.upstream.send_task(
                "els.assign_content", kwargs={"event": event}, queue="els", producer=producer
            )


def growing_queue(w):
    send(w, 1_001)
    return {"queue": "els"}, lambda: (w.lives(), send(w, 5))


def old_queue(w):
    w.client.delete("els")
    send(w, 1, timestamp=(datetime.now(UTC) - timedelta(minutes=11)).isoformat())
    return {"queue": "els"}, w.lives


def untaken_event(w):
    since = (datetime.now(UTC) - timedelta(minutes=6)).isoformat()
    event = {"id": str(uuid4()), "time": since}
    w.upstream.send_task("els.event", kwargs={"event": event}, queue="els.events")
    return {"queue": "els.events"}, w.lives


def paused_worker(w):
    outage = Outage("postgres", "ReadOnlySqlTransaction: read-only", "25006")
    pause = Pause("host:1", outage, datetime.now(UTC) - timedelta(minutes=2))
    return {"server": "postgres", "sqlstate": "25006"}, lambda: (
        w.lives(),
        write_pause(w.client, pause),
    )


def refused_writes(w):
    def refuse():
        w.lives()
        metrics.paused("postgres", "53100")
        w.pusher.push()

    return {"server": "postgres", "sqlstate": "53100"}, refuse


def read_only(w):
    w.sql("ALTER DATABASE els SET default_transaction_read_only = on")
    w.sql(END_SESSIONS)
    return {"part": "postgres"}, w.lives


def stuck_message(w):
    def hold():
        w.lives()
        now = server_time(w.client)
        write_sign(w.client, WORKER, {"at": now, "held": 1, "began_at": now - 400})

    return {}, hold


def silent_readiness(w):
    def become_ready():
        w.lives()
        metrics.ready(5)
        w.pusher.push()

    return {}, become_ready


def registered(w):
    batch = make.new_batch()
    story.register(w.lifecycle, batch, 2)
    return batch


def cleared(w):
    """Make the service well again."""
    with psycopg.connect(w.database_url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        if connection.execute("SELECT FROM pg_db_role_setting").rowcount:
            connection.execute("ALTER DATABASE els RESET default_transaction_read_only")
            connection.execute(END_SESSIONS)
        connection.execute(
            "TRUNCATE batch_essay_trackers, essay_states, batch_pending_content, excess_content,"
            " event_outbox, dead_letters, idempotency_keys CASCADE"
        )
    w.client.delete("els", "els.events", STARTS, *w.client.scan_iter("batch:*"))
    delete_pause(w.client, "host:1")
    write_sign(w.client, WORKER, {"at": server_time(w.client)})


STATES = {
    "ElsNoWorker": no_worker,
    "ElsWorkerRestarts": crash_loop,
    "ElsSweepSilent": silent_sweep,
    "ElsBatchStuck": wrong_counter,
    "ElsBatchPastDeadline": past_deadline,
    "ElsOutboxOld": old_event,
    "ElsPendingThoughRegistered": pending_though_registered,
    "ElsSlotDrift": drifted_slots,
    "ElsDeadLettersWaiting": dead_letter,
    "ElsMessagesFail": bug,
    "ElsRegistrationFailing": failing_registrations,
    "ElsQueueGrows": growing_queue,
    "ElsQueueOld": old_queue,
    "ElsEventsNotTaken": untaken_event,
    "ElsWorkerPaused": paused_worker,
    "ElsWritesRefused": refused_writes,
    "ElsNotReady": read_only,
    "ElsMessageStuck": stuck_message,
    "ElsReadinessSilent": silent_readiness,
}
LAST = "ElsServiceDown"  # it ends the page


@pytest.mark.parametrize("alert", STATES)
def test_an_alert_fires_in_its_state_and_is_over_after_it(watched, alert):
    watched.quiet(alert, watched.lives)

    labels, meanwhile = STATES[alert](watched)
    fired = watched.fires(alert, meanwhile)

    assert labels.items() <= fired.items()
    cleared(watched)
    watched.quiet(alert, watched.lives)


def test_every_alert_of_ours_has_its_state_here():
    [group] = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]

    assert {rule["alert"] for rule in group["rules"]} == {*STATES, LAST}


def test_a_page_that_ends_fires_the_alert_about_it(watched):
    watched.quiet(LAST, watched.lives)

    watched.page.terminate()

    assert watched.fires(LAST, watched.lives)["severity"] == "critical"
