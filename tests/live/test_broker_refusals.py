"""A Redis broker that answers and refuses, or stands still, beside workers that must outlive it."""

import os
import random
import re
import signal
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from core.signs import health_file
from core.signs.heartbeat import SWEPT
from durable_redis.refusals import Refusals
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port
from tests import factories as make
from tests.live.conftest import until

pytestmark = pytest.mark.redis_only("it makes a Redis refuse")
ESSAYS = 60
REFUSED_S = 4
RESTARTS = 8
FROZEN_S = 12  # longer than a silence that counts as one
PLACED = "SELECT 1 FROM essay_states WHERE batch_id = %s AND text_storage_id IS NOT NULL"
ADMIN, PASSWORD = "admin", "admin-password"  # a user that keeps its rights
SOLO, PREFORK = "worker --pool solo", "worker --pool prefork --concurrency 2"


class Broker:
    """A Valkey of a test's own that can be made to refuse."""

    def __init__(self, home):
        self.home = home
        self.server = Valkey(home, free_port(), "password")
        self.server.start()
        self.url = self.server.url
        self.default = redis.Redis.from_url(self.url)
        self.default.execute_command(
            "ACL", "SETUSER", ADMIN, "on", f">{PASSWORD}", "~*", "&*", "+@all"
        )
        admin_url = self.url.replace("://:password@", f"://{ADMIN}:{PASSWORD}@")
        self.admin = redis.Redis.from_url(admin_url)
        self.pid = self.admin.info("server")["process_id"]

    def tell(self, *commands):
        for command in commands:
            self.admin.execute_command(*command.split())

    @contextmanager
    def refuses(self, how):
        begin, end = FAULTS[how]
        begin(self)
        try:
            yield
        finally:
            end(self)

    def break_its_disk(self):
        """Let it fail to save, so that it refuses writes with MISCONF."""
        (self.home / "dump.rdb" / "in the way").mkdir(parents=True)
        self.admin.config_set("save", "1 1")
        self.admin.set("changed", 1)
        with suppress(redis.ResponseError):
            self.admin.bgsave()
        until(
            lambda: self.admin.info("persistence")["rdb_last_bgsave_status"] == "err",
            what="saving has failed",
        )

    def be_busy(self):
        """Run a script that does not end."""
        self.admin.config_set("busy-reply-threshold", 10)

        def loop():
            with (
                suppress(redis.RedisError),
                redis.Redis.from_url(self.url, socket_timeout=60) as one,
            ):
                one.eval("while true do end", 0)

        self.script = threading.Thread(target=loop)
        self.script.start()

        def busy():
            try:
                self.default.ping()
            except redis.ResponseError as error:
                return "BUSY" in str(error)
            return False

        until(busy, what="it is busy")

    def stop_script(self):
        self.admin.execute_command("SCRIPT", "KILL")
        self.script.join()

    def stop(self):
        os.kill(self.pid, signal.SIGCONT)
        self.default.close()
        self.admin.close()
        self.server.stop()


def told(*commands):
    return lambda broker: broker.tell(*commands)


FAULTS = {
    "a replica": (told("REPLICAOF 127.0.0.1 1"), told("REPLICAOF NO ONE")),
    "a replica without data": (
        told("CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"),
        told("REPLICAOF NO ONE"),
    ),
    "out of memory": (told("CONFIG SET maxmemory 1"), told("CONFIG SET maxmemory 0")),
    "misconfigured": (Broker.break_its_disk, told("CONFIG SET stop-writes-on-bgsave-error no")),
    "without replicas": (
        told("CONFIG SET min-replicas-to-write 1"),
        told("CONFIG SET min-replicas-to-write 0"),
    ),
    "no right to scripts": (
        told("ACL SETUSER default -@scripting"),
        told("ACL SETUSER default +@scripting"),
    ),
    "no right to forget": (
        told("ACL SETUSER default -hdel"),
        told("ACL SETUSER default +hdel"),
    ),
    "no rights": (told("ACL SETUSER default -@all"), told("ACL SETUSER default +@all")),
    "no user": (
        told("ACL SETUSER default off", "CLIENT KILL USER default"),
        told("ACL SETUSER default on"),
    ),
    "busy": (Broker.be_busy, Broker.stop_script),
    "frozen": (
        lambda broker: os.kill(broker.pid, signal.SIGSTOP),
        lambda broker: os.kill(broker.pid, signal.SIGCONT),
    ),
}
TAKES_ON = {"out of memory"}  # a worker goes on: it makes room
SILENT = {"frozen"}
LATER = {"no right to forget"}  # than a worker needs to begin


@pytest.fixture
def broker(tmp_path):
    opened = Broker(tmp_path / "broker")
    yield opened
    opened.stop()


@pytest.fixture
def service(workers, broker, tmp_path):
    """Workers whose broker is one that can be made to refuse; their slots are elsewhere."""
    return moved(workers, broker.url, tmp_path)


def moved(workers, broker_url, tmp_path):
    """Give workers and their upstream another broker."""
    workers.upstream.close()
    workers.upstream = Celery("upstream", broker=broker_url, backend=os.environ["ELS_REDIS_URL"])
    workers.upstream.conf.broker_transport_options = {"socket_timeout": 2}
    workers.home = tmp_path / "home"
    workers.settings |= {"ELS_BROKER_URL": broker_url, "ELS_HOME": str(workers.home)}
    return workers


def log_of(workers, number=0):
    text = (workers.logs / f"{number}.log").read_text()
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def send(workers, task, event, stop):
    """Send as an upstream does that keeps what the broker refuses; give up when told to."""

    def taken():
        with suppress(OperationalError, redis.RedisError, OSError):
            workers.upstream.send_task(
                task, kwargs={"event": event}, queue=workers.queue, retry=False, ignore_result=True
            )
            return True
        return stop.is_set()

    until(taken, 60, "the broker takes a message")


def letters(conn, batch):
    return conn.execute("SELECT code FROM dead_letters WHERE batch_id = %s", [batch]).fetchall()


@contextmanager
def load(workers, batch):
    """Send the contents of a batch, some of them a second, in the background; in the end, all."""
    hurry, stop = threading.Event(), threading.Event()

    def send_all():
        for number in range(ESSAYS):
            send(workers, "els.assign_content", make.content(batch, f"text-{number}"), stop)
            hurry.wait(0.1)

    sender = threading.Thread(target=send_all)
    sender.start()
    try:
        yield
        hurry.set()
        sender.join()
    finally:
        hurry.set()
        stop.set()
        sender.join()


@pytest.mark.outage
@pytest.mark.parametrize(
    ("how", "command"),
    [
        *((how, SOLO) for how in FAULTS),
        *((how, PREFORK) for how in ("a replica", "no right to forget", "no rights", "frozen")),
    ],
)
def test_a_broker_that_refuses_for_a_while_costs_no_message_and_no_worker(
    service, broker, conn, events_of, how, command
):
    batch = make.new_batch()
    worker = service.start(command=command, **service.settings)
    service.ready(1)
    service.send("els.register_batch", make.registration(batch, ESSAYS)).get(timeout=30)

    with load(service, batch):
        until(lambda: conn.execute(PLACED, [batch]).fetchone(), what="contents are placed")
        with broker.refuses(how):
            over = time.monotonic() + (FROZEN_S if how == "frozen" else REFUSED_S)
            while time.monotonic() < over:
                assert worker.poll() is None
                assert max(health_file.ages_s(service.home).values()) < 20, "its main loop turns"
                time.sleep(0.2)
        ended = time.monotonic()
    until(lambda: events_of(batch, "BatchEssaysReady"), 30, "the batch is ready")
    took_s = time.monotonic() - ended

    log = log_of(service)
    assert took_s < 25
    assert worker.poll() is None
    assert letters(conn, batch) == []
    assert len(events_of(batch, "BatchEssaysReady")) == 1
    assert log.count("broker_refuses") == log.count("broker_takes_again"), log
    assert log.count("broker_refuses") == (how not in TAKES_ON | SILENT), log
    until(lambda: not broker.admin.exists("unacked", "unacked_index"), what="all is forgotten")
    assert service.upstream.control.ping(timeout=5, limit=1), "remote control works"


@pytest.mark.outage
def test_a_queue_that_is_no_list_is_logged_once_though_others_are_well(service, broker, valkey):
    service.start(**service.settings)
    beat = ("--schedule", str(service.logs / "beat"), "--pidfile=")
    service.start(*beat, command="beat", ELS_SWEEP_EVERY="1")
    service.ready(1)

    broker.admin.set(service.queue, "a mistake")
    until(lambda: "broker_refuses" in log_of(service), what="the worker says so")
    for _ in range(3):
        before = valkey.get(SWEPT)
        until(lambda before=before: valkey.get(SWEPT) != before, 60, "beat's messages are executed")
    broker.admin.delete(service.queue)

    until(lambda: "broker_takes_again" in log_of(service), what="the worker says so")
    log = log_of(service)
    assert (log.count("broker_refuses"), log.count("broker_takes_again")) == (1, 1), log


@pytest.mark.outage
@pytest.mark.parametrize("how", [how for how in FAULTS if how not in SILENT | LATER])
def test_a_worker_that_starts_while_its_broker_refuses_waits(service, broker, how):
    with broker.refuses(how):
        worker = service.start(**service.settings)
        until(
            lambda: how in TAKES_ON or "broker_refuses" in log_of(service),
            60,
            "the worker says that it is refused",
        )
        over = time.monotonic() + 3
        while time.monotonic() < over:
            assert worker.poll() is None
            time.sleep(0.2)

    value = service.send("els.register_batch", make.registration(make.new_batch(), 1))

    assert value.get(timeout=30)["outcome"] == "registered"
    assert worker.poll() is None
    said = log_of(service).count("broker_refuses")
    assert (
        said <= 1 if how in TAKES_ON else said == 1
    )  # a full one refuses some commands of a start
    assert "Traceback" not in log_of(service)


@pytest.mark.outage
def test_a_worker_that_is_stopped_while_its_broker_refuses_ends_and_loses_nothing(
    service, broker, conn
):
    worker = service.start(**service.settings)
    service.ready(1)
    batch = make.new_batch()
    service.send("els.register_batch", make.registration(batch, 1)).get(timeout=30)
    late = service.send("els.assign_content", make.content(batch), countdown=15)
    until(lambda: broker.admin.hlen("unacked"), what="the worker holds the message")

    with broker.refuses("a replica"):
        until(lambda: "broker_refuses" in log_of(service), what="the worker is refused")
        worker.terminate()
        worker.wait(20)
    service.start(**service.settings)

    assert late.get(timeout=60)["outcome"] == "assigned"
    assert letters(conn, batch) == []
    assert "messages_not_given_back" in log_of(service)
    assert "Traceback" not in log_of(service)


@pytest.mark.outage
@pytest.mark.timeout(300)
def test_workers_outlive_a_broker_that_restarts_again_and_again(workers, tmp_path, events_of):
    broker = Valkey(tmp_path / "broker", free_port(), "password")
    broker.start()
    service = moved(workers, broker.url, tmp_path)
    more = [service.start(**service.settings) for _ in range(3)]
    service.start("-s", str(tmp_path / "beat"), command="beat", ELS_RELAY_EVERY="0.1")
    service.ready(3)
    batches = [make.new_batch() for _ in range(RESTARTS)]

    try:
        for batch in batches:
            service.send("els.register_batch", make.registration(batch, ESSAYS))
            with load(service, batch):
                time.sleep(random.uniform(0.2, 1))
                broker.stop()
                broker.start()
        for batch in batches:
            until(lambda b=batch: events_of(b, "BatchEssaysReady"), 60, "the batch is ready")

        assert [worker.poll() for worker in more] == [None] * 3, log_of(service)
        assert "Traceback" not in "".join(log_of(service, number) for number in range(3))
    finally:
        service.close()
        broker.stop()


def test_what_a_worker_is_refused_with_can_be_read(broker):
    refusals = Refusals()
    with broker.refuses("a replica"), pytest.raises(redis.ReadOnlyError) as refused:
        broker.default.set("key", 1)

    refusals.begin(refused.value)
    first = refusals.current
    refusals.begin(refused.value)
    second, paused = refusals.current, refusals.paused
    refusals.end()

    assert first.error.startswith("READONLY ")
    assert second == first
    assert paused
    assert refusals.current is None
    assert not refusals.paused
