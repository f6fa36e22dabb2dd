"""Workers, servers and the node are killed under load. Nothing is lost, nothing is poison."""

import os
import signal
import threading
from contextlib import contextmanager

import psutil
import pytest

from migrations import upgrade
from ops.stack.embedded import Postgres, Valkey
from ops.stack.ports import free_port
from tests import factories as make
from tests.live.conftest import until

BATCHES = 12
ESSAYS = 12
DONE_WITHIN_S = 150  # of the last fault


class Load:
    """Batches that are sent while something is hurt, each with an early content and a repeat."""

    def __init__(self, workers):
        self.workers = workers
        self.batches = [make.new_batch() for _ in range(BATCHES)]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = 0

    def _run(self):
        for batch in self.batches:
            early = make.content(batch, "text-0")
            more = [make.content(batch, f"text-{number}") for number in range(1, ESSAYS)]
            self._send("els.assign_content", early)
            self._send("els.register_batch", make.registration(batch, ESSAYS))
            for event in (*more, early):
                self._send("els.assign_content", event)

    def _send(self, task, event):
        self.workers.send_for_sure(task, event)
        self.sent += 1

    @contextmanager
    def running(self):
        """Send; hurt in the body, in steps of `until_sent`."""
        self._thread.start()
        yield self
        self._thread.join(120)
        assert not self._thread.is_alive(), "not all was sent"

    def until_sent(self, share):
        total = BATCHES * (ESSAYS + 2)
        until(lambda: self.sent >= total * share, 90, f"{share:.0%} is sent")


@pytest.fixture
def load(policed):
    """Load for two workers of two processes, and beat."""
    for _ in range(2):
        policed.start(command="worker --pool prefork --concurrency 2")
    policed.start("--schedule", str(policed.logs / "beat"), "--pidfile=", command="beat")
    policed.ready(2)
    return Load(policed)


def kill_a_parent(workers, number):
    doomed = workers.processes[number]
    os.killpg(doomed.pid, signal.SIGKILL)
    doomed.wait(10)
    workers.start(command="worker --pool prefork --concurrency 2")


def kill_a_child(workers):
    alive = [p for p in workers.processes if p.poll() is None]
    children = psutil.Process(alive[0].pid).children()
    if children:
        children[0].kill()


def test_killed_workers_lose_nothing(load, letters, assert_invariants):
    with load.running():
        load.until_sent(0.2)
        kill_a_parent(load.workers, 0)
        for share in (0.4, 0.6):
            load.until_sent(share)
            kill_a_child(load.workers)
        load.until_sent(0.8)
        kill_a_parent(load.workers, 1)

    assert_invariants(load.batches, DONE_WITHIN_S)
    assert letters() == []


@pytest.fixture
def settled(load, node, assert_invariants):
    """The same, with queues that the node has written down.

    RabbitMQ 3.10 forgets who is in a quorum queue that is seconds old when the node is killed; no
    leader is elected then, and whoever publishes waits for its confirm until the queue is deleted.
    """
    batch = make.new_batch()
    load.workers.send("els.register_batch", make.registration(batch, 1))
    load.workers.send("els.assign_content", make.content(batch))
    assert_invariants([batch])
    node.ctl("stop_app")
    node.ctl("start_app")
    return load


def test_a_killed_node_loses_nothing(settled, node, letters, assert_invariants):
    load = settled
    with load.running():
        load.until_sent(0.2)
        node.drop_connections()
        load.until_sent(0.4)
        node.do("kill")
        node.start()
        load.until_sent(0.7)
        node.ctl("stop_app")
        node.ctl("start_app")

    assert_invariants(load.batches, DONE_WITHIN_S)
    assert letters() == []


@pytest.fixture
def servers(tmp_path):
    """A Postgres and a Valkey that may be restarted, and what tells workers of them."""
    postgres = Postgres(tmp_path / "postgres", free_port(), "test-password")
    valkey = Valkey(tmp_path / "valkey", free_port(), "test-password")
    postgres.start()
    valkey.start()
    upgrade(postgres.url)
    yield postgres, valkey
    postgres.stop()
    valkey.stop()


@pytest.fixture
def beside(servers, policed):
    """Load for a worker on these servers."""
    postgres, valkey = servers
    given = {"ELS_DATABASE_URL": postgres.url, "ELS_REDIS_URL": valkey.url}
    policed.start(command="worker --pool prefork --concurrency 2", **given)
    beat = ("--schedule", str(policed.logs / "beat"), "--pidfile=")
    policed.start(*beat, command="beat", **given)
    policed.ready(1)
    return Load(policed)


def assert_all_ready(postgres, batches):
    """Wait until each batch is ready, by a database that may just have come back."""
    from core import db
    from ops.queries.invariants import check_batches

    def left():
        with db.connect_once(postgres.url) as conn:
            return [i for i in check_batches(conn, batches) if not i.holds], conn.execute(
                "SELECT count(DISTINCT batch_id) AS ready FROM event_outbox"
                " WHERE type = 'BatchEssaysReady' AND published_at IS NOT NULL"
            ).fetchone()["ready"]

    until(lambda: left() == ([], len(batches)), DONE_WITHIN_S, "each batch is ready")
    with db.connect_once(postgres.url) as conn:
        assert conn.execute("SELECT code, message FROM dead_letters").fetchall() == []


def test_two_restarts_of_postgres_lose_nothing(beside, servers):
    postgres, _ = servers

    with beside.running():
        for share in (0.3, 0.6):
            beside.until_sent(share)
            postgres.stop()
            postgres.start()

    assert_all_ready(postgres, beside.batches)


def test_a_redis_that_is_away_loses_no_content(beside, servers):
    """30 contents, while it is away for some seconds."""
    postgres, valkey = servers
    batch = make.new_batch()
    beside.workers.send("els.register_batch", make.registration(batch, 30))
    until(lambda: "registered" in beside.workers.log(), what="the batch is registered")

    valkey.stop()
    for number in range(30):
        beside.workers.send("els.assign_content", make.content(batch, f"text-{number}"))
    until(lambda: beside.workers.depth() == 0, what="the worker has taken them")
    until(lambda: "paused" in beside.workers.log(), what="the worker waits")
    valkey.start()

    assert_all_ready(postgres, [batch])
