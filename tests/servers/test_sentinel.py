"""Redis behind Sentinels, plain and over TLS: a primary is killed under load, nothing is lost."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from urllib.request import Request, urlopen

import pytest
from celery import Celery
from kombu import Connection

import durable_redis
from core.errors import StackError
from core.servers.redis_client import connect
from core.servers.requirements import check_servers
from core.settings import Settings
from core.slots import Slots
from durable_redis.sentinel import SentinelTransport
from ops.client import Sender
from ops.queries.invariants import check_batches, check_slots
from ops.stack.leash import leashed
from ops.stack.ports import free_port
from tasks.servers import set_broker
from tests import factories
from tests.core import looks
from tests.live.conftest import until
from tests.servers.sentinels import PRIMARY, Certificates, Group
from tests.servers.tls import Authority

ELS = Path(sys.executable).parent / "els"
QUEUE = "els-sentinel"
BATCHES, ESSAYS = 10, 20
PROMOTED_S = 10

log = logging.getLogger(__name__)


@pytest.fixture(scope="module", params=["plain", "tls"])
def group(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    tls = None
    if request.param == "tls":
        ours = Authority(folder / "ours")
        tls = Certificates(*map(ours.sign, ("servers", "sentinels", "client")))
    started = Group(folder, tls)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def environ(group, database_url):
    return {
        "ELS_DATABASE_URL": database_url,
        "ELS_REDIS_URL": group.url,
        "ELS_REDIS_MASTER": PRIMARY,
        "ELS_QUEUE": QUEUE,
        "ELS_EVENTS_QUEUE": f"{QUEUE}.events",
        "ELS_VISIBILITY_TIMEOUT": "5",
        **(group.tls.settings if group.tls else {}),
    }


@pytest.fixture(scope="module")
def settings(environ):
    return Settings.from_env(environ)


@pytest.fixture(scope="module")
def start(environ, tmp_path_factory):
    """Start `els` processes, ended with the module."""
    home, running = tmp_path_factory.mktemp("processes"), []
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}

    def one(*command, **more):
        log = home / f"{len(running)}-{command[0]}.log"
        with log.open("wb") as out:
            given = {**inherited, "ELS_HOME": str(home), **environ, **more}
            process = subprocess.Popen(
                leashed([str(ELS), *command], 9), env=given, stdout=out, stderr=out
            )
        running.append(process)
        return log

    yield one
    for process in running:
        process.terminate()
    for process in running:
        process.wait(20)


@pytest.fixture(scope="module")
def workers(start):
    """Two workers and beat."""
    for number in range(2):
        name = ("-n", f"{QUEUE}-{number}@test")
        start("worker", "--pool", "prefork", "--concurrency", "1", *name)
    start("beat")


class Load:
    """An upstream service that sends batches, each message again until the broker has it."""

    def __init__(self, settings):
        self.batches = [factories.new_batch() for _ in range(BATCHES)]
        self.sender = Sender(settings.broker_url or settings.redis_url, QUEUE)
        self.sent, self.again = 0, 0
        self.messages = [*map(self._registration, self.batches)]
        self.messages += [
            ("els.assign_content", factories.content(batch, f"text-{number}"))
            for batch in self.batches
            for number in range(ESSAYS)
        ]
        random.shuffle(self.messages)
        self.thread = Thread(target=self._send_all, daemon=True)
        self.thread.start()

    @staticmethod
    def _registration(batch):
        return "els.register_batch", factories.registration(batch, ESSAYS)

    def _send_all(self):
        with self.sender:
            for task, event in self.messages:
                until(partial(self._accepted, task, event), 60, "the broker takes a message")
                self.sent += 1

    def _accepted(self, task, event):
        with suppress(StackError, OSError):
            return self.sender.send(task, event)
        self.again += 1
        return None


def test_a_primary_that_is_killed_under_load_loses_nothing(run, group, settings, workers, conn):
    load = Load(settings)
    until(lambda: load.sent > random.uniform(0.2, 0.7) * len(load.messages), 60, "the load runs")

    killed = time.monotonic()
    dead = group.kill_primary()
    until(lambda: group.promoted(dead), PROMOTED_S, "the replica is promoted")
    promoted_s = time.monotonic() - killed

    load.thread.join(60)
    assert not load.thread.is_alive(), "the broker takes messages again"
    until(lambda: at_rest(conn, load.batches), 90, "every batch is ready and its events are sent")
    ready_s = time.monotonic() - killed
    log.info("promoted %.1f s, ready %.1f s, sent again %d", promoted_s, ready_s, load.again)

    assert outcomes(conn, load) == len(load.messages)
    with connect(settings.redis_url) as client:
        assert check_slots(conn, Slots(client), load.batches).holds
        assert events_in_queue(client) >= event_ids(conn, load.batches)
    group.revive(dead)


def at_rest(conn, batches):
    ready = conn.execute(
        "SELECT count(DISTINCT batch_id) AS ready FROM event_outbox WHERE batch_id = ANY(%s)"
        " AND type = 'BatchEssaysReady' AND published_at IS NOT NULL",
        [batches],
    ).fetchone()["ready"]
    if ready < len(batches):
        return False
    broken = [each.title for each in check_batches(conn, batches) if not each.holds]
    assert not set(broken) - looks.AT_REST_ONLY
    return not broken


def outcomes(conn, load):
    keys = [event["event_id"] for _, event in load.messages]
    return conn.execute("SELECT FROM idempotency_keys WHERE key::text = ANY(%s)", [keys]).rowcount


def event_ids(conn, batches):
    rows = conn.execute("SELECT id FROM event_outbox WHERE batch_id = ANY(%s)", [batches])
    return {str(row["id"]) for row in rows.fetchall()}


def events_in_queue(client):
    """The ids of the events that wait for downstream services."""
    messages = client.lrange(f"{QUEUE}.events", 0, -1)
    return {json.loads(message)["headers"]["id"] for message in messages}


# --- never without the durable transport ---------------------------------------------------------


def test_every_connection_is_over_the_durable_transport(settings):
    app = Celery()
    set_broker(app, settings.redis_url)

    with app.connection() as connection:
        assert isinstance(connection.transport, SentinelTransport)
        assert connection.default_channel.master_name == PRIMARY
        assert connection.default_channel.replicas == 1
    app.close()


def test_installing_takes_over_sentinel_urls_of_others_too(group):
    durable_redis.install()
    bare = group.url.partition("?")[0]

    with Connection(bare, transport_options={"master_name": PRIMARY}) as connection:
        assert isinstance(connection.transport, SentinelTransport)


# --- the other parts -----------------------------------------------------------------------------


def test_servers_behind_sentinels_lack_nothing(settings):
    assert check_servers(settings) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ELS_REDIS_MASTER": "another"}, "No master found for 'another'"),
        ({"ELS_REDIS_URL": f"sentinel://127.0.0.1:{free_port()}/0"}, "No master found"),
    ],
)
def test_sentinels_that_know_no_such_primary_are_a_fault(environ, wrong, said):
    [fault] = check_servers(Settings.from_env({**environ, **wrong}))

    assert fault.server == "broker"
    assert said in fault.wrong


def test_commands_read_heartbeats_and_slots(environ, workers, tmp_path):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
    given = {**inherited, **environ, "ELS_HOME": str(tmp_path)}

    def status():
        done = subprocess.run(
            [ELS, "status"], env=given, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    until(lambda: "no worker" not in status().lower(), 30, "workers show in the status")


def test_flower_shows_the_queue(start, workers):
    port = free_port()
    start("flower", ELS_FLOWER_PORT=str(port), ELS_FLOWER_AUTH="ann:word")

    asked = Request(f"http://127.0.0.1:{port}/api/queues/length")
    asked.add_header("Authorization", "Basic YW5uOndvcmQ=")

    def answer():
        with suppress(OSError), urlopen(asked, timeout=5) as reply:
            return json.load(reply)["active_queues"]
        return None

    queues = until(answer, 60, "Flower answers")
    assert QUEUE in {queue["name"] for queue in queues}


def test_a_message_counts_as_sent_once_a_replica_has_it(group, settings):
    primary = group.primary
    [replica] = set(group.servers) - {primary}
    with group.client(replica) as other, Sender(settings.redis_url, f"{QUEUE}-replicas") as sender:
        sender.send("els.cancel_batch", {"a": "test"})

        assert other.llen(f"{QUEUE}-replicas") == 1  # at once, not some time later


def test_a_replica_that_stands_still_refuses_the_message(group, settings):
    primary = group.primary
    [replica] = set(group.servers) - {primary}
    process = group.servers[replica]
    process.send_signal(signal.SIGSTOP)  # the primary still holds it for connected
    try:
        with Sender(settings.redis_url, f"{QUEUE}-replicas") as sender:
            sender.app.conf.task_publish_retry = False
            with pytest.raises(StackError, match="0 of 1 replicas have the message"):
                sender.send("els.cancel_batch", {"a": "test"})
    finally:
        process.send_signal(signal.SIGCONT)
    until(lambda: group.in_sync(primary), 30, "the replica is in sync again")
