"""Two releases side by side, under load: nothing is lost, and nobody notices the upgrade."""

import json
import re
import threading
import time
from random import Random
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from core.schema import OLDEST_SCHEMA
from core.signs import health_file, heartbeat
from core.slots import Slots
from migrations import head
from ops.client import Sender
from ops.queries.invariants import check_batches, check_slots
from ops.stack.ports import free_port
from ops.torture.load import AWAITS_STUDENTS, FINAL, Load, statuses
from tasks.worker.amqp_dropped import left_name
from tests.releases import LAST, ROOT

PREFORK = ("--pool", "prefork", "--concurrency", "1")
SOLO = ("--pool", "solo")
BEAT = ("celery", "-q", "-A", "tasks.app", "beat", "--pidfile=")
HUNG_S = 30  # a worker's health file that is older makes its pod unready


def until(condition, timeout_s=90, what="the condition holds"):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{timeout_s} s passed before {what}"
        time.sleep(0.1)
    return value


class Readiness(threading.Thread):
    """Asks every pod again and again whether it is ready."""

    def __init__(self):
        super().__init__(daemon=True)
        self.pages, self.homes = {}, {}
        self.unready, self.asked = [], 0
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(0.5):
            for name, url in list(self.pages.items()):
                if (answer := ask(url))[0] != 200:
                    self.unready.append((name, answer))
                self.asked += 1
            for name, home in list(self.homes.items()):
                ages = health_file.ages_s(home)
                if not ages or min(ages.values()) > HUNG_S:
                    self.unready.append((name, ages))

    def page(self, release):
        """Serve the pages of a release, and watch them once they are ready."""
        port, name = free_port(), f"{release.name}-ops"
        release.start(name, "ops", "ops", ELS_OPS_PORT=str(port))
        url = f"http://127.0.0.1:{port}/readyz"
        until(lambda: ask(url)[0] == 200, what=f"{name} is ready: {ask(url)}")
        self.pages[name] = url

    def worker(self, release, number, pool):
        release.worker(number, *pool)
        name = f"{release.name}-{number}"
        home = release.folder / name
        until(lambda: health_file.ages_s(home), what=f"{name} runs")
        self.homes[name] = home

    def stop_worker(self, release, number):
        name = f"{release.name}-{number}"
        del self.homes[name]
        release.stop(name)

    def end(self):
        self.ended.set()
        self.join()


def ask(url):
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, error.read().decode()
    except (URLError, OSError) as error:
        return 0, str(error)


def announced(conn):
    [row] = conn.execute(
        "SELECT count(*) AS n FROM batch_essay_trackers WHERE completed_at IS NOT NULL"
    ).fetchall()
    return row["n"]


class PausedLoad(Load):
    """An upstream that sends batches the hard way until it is ended, with pauses."""

    def begin(self, waiting):
        self.paused, self.ended = threading.Event(), threading.Event()
        self.idle = threading.Event()
        arguments = (10_000, self.ended, waiting)
        self.thread = threading.Thread(target=self.run, args=arguments)

    def send(self, task, event):
        while self.paused.is_set() and not self.given_up.is_set():
            self.idle.set()
            self.given_up.wait(0.05)
        self.idle.clear()
        super().send(task, event)

    def start(self):
        self.thread.start()

    def pause(self):
        self.paused.set()
        assert not self.thread.is_alive() or self.idle.wait(30)

    def resume(self):
        self.paused.clear()

    def end(self):
        self.ended.set()
        self.thread.join()


@pytest.fixture
def load(servers):
    with Sender(servers.broker_url, "els") as sender:
        load = PausedLoad(sender, Random(15))
        load.begin(servers.waiting)
        yield load
        load.given_up.set()
        load.ended.set()
        if load.thread.is_alive():
            load.thread.join()


@pytest.fixture
def ready():
    watching = Readiness()
    watching.start()
    yield watching
    watching.end()


def batches_in(pattern, log):
    """List the batches that lines of a log name."""
    lines = (json.loads(line) for line in log.splitlines() if pattern in line and line[0] == "{")
    return {
        batch
        for line in lines
        if line["event"] == pattern
        for batch in line.get("batches", [line.get("batch_id")])
    }


class Upgrade:
    """The releases, the load and the looks at both, for the steps of an upgrade."""

    def __init__(self, releases, servers, ready, load, conn, valkey):
        self.last, self.this, self.coming = releases
        self.servers, self.ready, self.load = servers, ready, load
        self.conn, self.valkey = conn, valkey

    def go_on(self, batches=8):
        """Wait until so many more batches are announced."""
        done = announced(self.conn) + batches
        until(lambda: announced(self.conn) >= done, what=f"{batches} more batches are announced")

    def migrate(self, release):
        migrated = release.els("migrate")
        assert migrated.returncode == 0, migrated.stderr

    def check(self):
        """Ask this release where the schema stands."""
        checked = self.this.els("migrate", "--check", "--json")
        return checked.returncode, json.loads(checked.stdout)["state"]

    def last_alone(self):
        self.migrate(self.last)
        self.ready.worker(self.last, 1, PREFORK)
        self.ready.worker(self.last, 2, SOLO)
        self.ready.page(self.last)
        self.beat(self.last)
        self.load.start()
        self.go_on(5)

    def side_by_side(self):
        """On the schema of the last release, if this code works on it, then on this one's."""
        self.ready.worker(self.this, 1, PREFORK)
        self.ready.worker(self.this, 2, SOLO)
        if works_on_the_last_schema():
            self.ready.page(self.this)
            self.go_on(16)
        else:
            until(lambda: self.this.log().count("worker_waits_to_start") == 2, what="both wait")
            self.go_on()
        assert self.check() == ((0, "head") if head() == LAST["schema"] else (1, "behind"))
        self.migrate(self.this)
        assert self.check() == (0, "head")
        if not works_on_the_last_schema():
            self.ready.page(self.this)
        self.go_on(16)

    def on_the_next_schema(self):
        """Which only adds: both go on, and a worker starts on a schema that it does not know."""
        self.migrate(self.coming)
        assert self.check() == (1, "ahead")
        self.go_on()
        self.ready.stop_worker(self.this, 2)
        self.ready.worker(self.this, 3, SOLO)
        self.go_on()

    def beat(self, release):
        """Start beat while nothing is under way: the sweep that it sends first repairs nothing."""
        swept = self.valkey.get(heartbeat.SWEPT)
        self.load.pause()
        until(lambda: queues(self.servers) == {} and complete(self.conn), what="all is complete")
        release.start(f"{release.name}-beat", *BEAT, ELS_SWEEP_EVERY="3600")
        until(lambda: self.valkey.get(heartbeat.SWEPT) != swept, what="a worker has swept")
        self.load.resume()

    def this_alone_and_back(self):
        self.last.stop("last-beat")
        self.beat(self.this)
        self.go_on()
        self.ready.stop_worker(self.last, 1)
        self.ready.stop_worker(self.last, 2)
        self.go_on()
        self.ready.worker(self.last, 3, PREFORK)
        self.go_on()

    def end(self):
        self.load.end()
        batches = sorted(self.load.batches)
        until(
            lambda: all_at_their_end(self.conn, self.load, batches),
            what="every batch came to its end",
        )
        until(lambda: queues(self.servers) == {}, what="the queues are empty")
        self.ready.end()
        return batches


@pytest.fixture
def releases(release, last_tree, next_tree):
    trees = {"last": last_tree, "this": ROOT, "next": next_tree}
    return [release(name, tree) for name, tree in trees.items()]


@pytest.mark.parametrize("servers", ["redis", "rabbitmq"], indirect=True)
def test_an_upgrade_under_load_loses_nothing_and_leaves_nothing_to_the_sweep(
    releases, servers, ready, load, conn, valkey
):
    upgrade = Upgrade(releases, servers, ready, load, conn, valkey)

    upgrade.last_alone()
    upgrade.side_by_side()
    upgrade.on_the_next_schema()
    upgrade.this_alone_and_back()
    batches = upgrade.end()

    assert [each for each in check_batches(conn, batches) if not each.holds] == []
    assert check_slots(conn, Slots(valkey), batches).holds
    assert [each for each in load.check(conn) if not each.holds] == []
    assert [rows(conn, table) for table in ("dead_letters", "repairs", "unmended")] == [[]] * 3
    assert ready.unready == []
    assert ready.asked > 50
    logs = {each.name: each.log() for each in (upgrade.last, upgrade.this)}
    for log in logs.values():
        assert not re.findall(r".*(?:left_to_the_sweep|Traceback).*", log)
        assert batches_in("announced", log)
    # A chord of the last release that this one completed.
    assert batches_in("completion_dispatched", logs["last"]) & batches_in("announced", logs["this"])


def works_on_the_last_schema():
    return LAST["schema"] >= OLDEST_SCHEMA


def complete(conn):
    """Tell whether no batch is full that is not announced."""
    [row] = conn.execute(
        "SELECT count(*) AS n FROM batch_essay_trackers"
        " WHERE full_at IS NOT NULL AND completed_at IS NULL AND closed_at IS NULL"
    ).fetchall()
    return row["n"] == 0


def all_at_their_end(conn, load, batches):
    found = statuses(conn, batches)
    for batch_id, status in found.items():
        if status == AWAITS_STUDENTS:
            load.confirm_students(batch_id)
    [unsent] = conn.execute(
        "SELECT count(*) AS n FROM event_outbox WHERE published_at IS NULL"
    ).fetchall()
    ended = all(found.get(batch_id) in FINAL for batch_id in batches)
    return ended and not load.unanswered(conn) and unsent["n"] == 0


def queues(servers):
    """Count what waits, and what workers hold; not the events, which nobody takes here.

    Nor the message by which workers learn of a limit of time.
    """
    left = left_name("els")
    found = servers.queues().items()
    return {name: count for name, count in found if "events" not in name and name != left}


def rows(conn, table):
    return [dict(row) for row in conn.execute(f"SELECT * FROM {table}").fetchall()]
