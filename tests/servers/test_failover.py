"""Several hosts: the one that takes writes is found, and a primary that dies loses nothing."""

import os
import shutil
import threading
import time
import urllib.request
from contextlib import ExitStack

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from core import db
from core.servers.redis_client import connect
from core.slots import Slots
from migrations import current, head, upgrade
from ops.queries.invariants import check_batches
from tests import factories as make
from tests.live.conftest import Workers, until
from tests.ops.conftest import els
from tests.ops.served import Served
from tests.servers.postgres import PASSWORD, Node, folder

SETTINGS = {"wal_level": "replica", "hot_standby": "on", "max_wal_senders": "5"}
BATCHES, CONTENTS = 30, 40


class Pair:
    """A primary and its standby, which confirms each commit; `fail_over` makes it the primary."""

    def __init__(self, path, undo):
        self.path, self.undo, self.made = path, undo, 0
        self.primary = self._node()
        self.primary.create(**SETTINGS).start().make()
        upgrade(self.primary.url)
        self.add_standby()

    def _node(self):
        node = Node(self.path / str(self.made))
        self.made += 1
        self.undo.callback(node.end)
        return node

    def add_standby(self):
        self.standby = self._node().copy(self.primary, "standby").start()
        with psycopg.connect(self.primary.url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            conn.execute("SELECT pg_reload_conf()")
            until(lambda: streams(conn), 30, "the standby confirms commits")

    def fail_over(self):
        """Kill the primary, promote the standby; return how long nobody took writes."""
        began = time.monotonic()
        self.primary.kill()
        self.standby.promote()
        return time.monotonic() - began

    def renew(self):
        """Make a new standby where the old primary was."""
        shutil.rmtree(self.primary.path)
        self.primary = self.standby
        self.add_standby()

    @property
    def url(self):
        """Both hosts, the standby first: order must not matter."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in (self.standby, self.primary))
        return f"postgresql://els:{PASSWORD}@{hosts}/els"


def streams(conn):
    row = conn.execute("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
    return row.fetchone()[0] == 1


@pytest.fixture(scope="module")
def pair():
    with folder("pair") as path, ExitStack() as undo:
        yield Pair(path, undo)


def test_whoever_writes_finds_the_primary_among_the_hosts(pair, tmp_path):
    forms = [
        pair.url,
        pair.url.replace("postgresql:", "postgresql+psycopg:"),
        f"postgresql://els:{PASSWORD}@/els?host=127.0.0.1:{pair.standby.port}"
        f"&host=127.0.0.1:{pair.primary.port}",
    ]
    for url in forms:
        with db.connect_once(url) as once, db.connect(url) as pool, pool.connection() as pooled:
            seen = [
                conn.execute("SELECT pg_is_in_recovery() AS standby").fetchone()["standby"]
                for conn in (once, pooled)
            ]
        assert seen == [False, False]
        assert current(url) == head()

    told = els("migrate", "--yes", home=tmp_path, ELS_DATABASE_URL=pair.url)
    assert told.returncode == 0, told.stderr


def test_a_primary_that_dies_under_load_loses_nothing(
    pair, tmp_path, on_broker, run, record_property
):
    workers = Workers(tmp_path, ELS_DATABASE_URL=pair.url, **on_broker)
    batches = [make.new_batch() for _ in range(BATCHES)]
    sender = threading.Thread(target=load, args=(workers, batches))
    try:
        for _ in range(2):
            workers.start(command="worker --pool prefork --concurrency 2")
        workers.start(command="beat")
        workers.ready(2)
        sender.start()
        with db.connect_once(pair.primary.url) as conn:
            some = BATCHES * CONTENTS / 10
            before = until(lambda: (n := assigned(conn, batches)) > some and n, 60, "work goes on")
        away_s = pair.fail_over()
        sender.join(60)
        with db.connect_once(pair.standby.url) as conn:
            until(lambda: all_ready(conn, batches), 120, "every batch is ready")
            until(lambda: at_rest(conn, batches), 60, "every event is delivered")
            letters = conn.execute("SELECT count(*) AS n FROM dead_letters").fetchone()["n"]
    finally:
        workers.close()
    record_property("promoted", f"after {away_s:.1f} s, with {before} contents assigned")
    pair.renew()
    Slots(connect(os.environ["ELS_REDIS_URL"])).forget(batches)

    assert letters == 0
    assert away_s < 10
    assert before < BATCHES * CONTENTS


def load(workers, batches):
    for batch in batches:
        workers.send("els.register_batch", make.registration(batch, CONTENTS))
    for n in range(CONTENTS):
        for batch in batches:
            workers.send("els.assign_content", make.content(batch, f"text-{n}"))


def assigned(conn, batches):
    row = conn.execute(
        "SELECT count(*) AS n FROM essay_states WHERE batch_id = ANY(%s)"
        " AND text_storage_id IS NOT NULL",
        [batches],
    )
    return row.fetchone()["n"]


def all_ready(conn, batches):
    row = conn.execute(
        "SELECT count(*) AS n FROM batch_essay_trackers WHERE batch_id = ANY(%s)"
        " AND status = 'ready_for_pipeline_execution'",
        [batches],
    )
    return row.fetchone()["n"] == len(batches)


def at_rest(conn, batches):
    return all(each.holds for each in check_batches(conn, batches))


# --- the read replica ----------------------------------------------------------------------------


def metric(page, name, **labels):
    with urllib.request.urlopen(f"{page.url}/metrics", timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    found = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return found[0] if found else None


@pytest.fixture
def page(pair):
    hosts = f"postgresql://els:{PASSWORD}@127.0.0.1:{pair.standby.port}/els"
    with Served(pair.url, os.environ["ELS_REDIS_URL"], database_read_url=hosts) as served:
        yield served


def test_the_pages_read_from_the_replica_and_show_how_far_it_is_behind(pair, page):
    batch = make.new_batch()
    with psycopg.connect(pair.standby.url, autocommit=True) as standby:
        until(lambda: metric(page, "els_replica_lag_seconds") == 0, what="the lag is known")
        standby.execute("SELECT pg_wal_replay_pause()")
        try:
            with psycopg.connect(pair.primary.url, autocommit=True) as primary:
                primary.execute("SET synchronous_commit = local")
                primary.execute("INSERT INTO repairs (batch_id, rule) VALUES (%s, 'a')", [batch])
            until(lambda: (metric(page, "els_replica_lag_seconds") or 0) >= 2, what="a lag grows")
            board = page.get("/")
            listed = page.get("/v1/events")
        finally:
            standby.execute("SELECT pg_wal_replay_resume()")
        until(lambda: metric(page, "els_replica_lag_seconds") == 0, what="it catches up")
        used = standby.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'els'"
        ).fetchone()[0]

    assert "Replica behind" in board.text
    assert listed.status == 200
    assert float(listed.headers["els-replica-lag"]) >= 2
    assert used > 0
    assert metric(page, "els_up", part="replica") == 1
    assert page.get("/readyz").status == 200


def test_without_its_replica_the_pages_read_from_the_primary_and_say_so(pair, page):
    until(lambda: metric(page, "els_replica_lag_seconds") == 0, what="the lag is known")
    with psycopg.connect(pair.primary.url, autocommit=True) as primary:
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        primary.execute("SELECT pg_reload_conf()")
    pair.standby.kill()
    try:
        until(lambda: metric(page, "els_up", part="replica") == 0, what="it is away")
        board = until(lambda: said(page.get("/")), what="the page says so")
        lag, primary_up = (
            metric(page, "els_replica_lag_seconds"),
            metric(page, "els_up", part="postgres"),
        )
        ready = page.get("/readyz")
    finally:
        pair.standby.start()
    until(lambda: metric(page, "els_up", part="replica") == 1, what="it is back")

    assert "Open" in board
    assert (lag, primary_up) == (None, 1)
    assert ready.status == 200, ready.text


def said(answer):
    text = "The read replica does not answer"
    return answer.text if answer.status == 200 and text in answer.text else None
