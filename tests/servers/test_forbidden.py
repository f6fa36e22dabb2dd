"""Who may do what: each program does its work with its rights, and is refused all else.

A table for each server. A program's rights are those of `els access`.
"""

import os
import re
import subprocess
import sys
from contextlib import closing

import pytest
import redis
from celery import Celery

from core.probe import probe_redis
from core.servers.finding import Severity
from core.servers.redis import check_redis
from core.settings import Settings
from core.slots import Slots
from ops.access import PROGRAMS, acl_line, redis_users, user
from ops.heartbeat import heartbeat_or_none
from ops.queries.invariants import check_batches
from ops.receivers import read_receivers
from ops.stack.ports import free_port
from tests import factories as make
from tests.live.conftest import Workers, until
from tests.ops.test_flower import ask
from tests.ops.test_flower import serve as flower
from tests.servers.conftest import program

ADMIN = "admin-password"


class Guarded:
    """A Redis of Debian's with a user for each program."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        rules = redis_users(Settings())
        lines = [f"user default on >{ADMIN} ~* &* +@all"]
        lines += [f"user {acl_line(name, [*given, f'>{name}'])}" for name, given in rules.items()]
        (folder / "users.acl").write_text("\n".join(lines) + "\n")
        options = ["--save", "", "--appendonly", "no", "--aclfile", folder / "users.acl"]
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", folder]
        argv = [program("redis-server"), *where, *options]
        with (folder / "redis.log").open("wb") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        self.admin = redis.Redis(port=self.port, password=ADMIN, decode_responses=True)
        until(self._answers, 20, "redis-server answers")

    def _answers(self):
        assert self.process.poll() is None, (self.folder / "redis.log").read_text()
        try:
            return self.admin.ping()
        except redis.ConnectionError:
            return False

    def url(self, name, database=0):
        login = f"{user(Settings(), name)}:{user(Settings(), name)}"
        return f"redis://{login}@127.0.0.1:{self.port}/{database}"

    def client(self, name):
        return redis.Redis.from_url(self.url(name), decode_responses=True)

    def refused(self):
        """List what was refused, without what a client says of itself, and what Flower asks of
        workers, which listen to nobody."""
        entries = self.admin.acl_log()
        return {
            (each["username"], each["reason"], each["object"])
            for each in entries
            if each["object"] != "client|setinfo"
            and not (each["username"] == "els-flower" and "pidbox" in each["object"])
        }

    def allow(self, settings):
        """Give the programs the rights that they have with these settings."""
        for name, rules in redis_users(settings).items():
            self.admin.execute_command("ACL", "SETUSER", name, *rules, f">{name}")

    def stop(self):
        self.admin.close()
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    server = Guarded(tmp_path_factory.mktemp("guarded"))
    yield server
    server.stop()


@pytest.fixture
def fresh(guarded):
    guarded.admin.flushall()
    guarded.admin.acl_log_reset()
    return guarded


@pytest.fixture
def running(fresh, database_url, tmp_path):
    """A worker and beat with their rights, and an upstream service with a sender's."""
    workers = Workers(tmp_path, ELS_REMOTE_CONTROL="", ELS_BROKER_URL="", ELS_SWEEP_EVERY="0.5")
    workers.queue = "els"
    own = {"ELS_EVENTS_QUEUE": "els.events"}
    workers.start(
        "-n", "w@test", command="worker --concurrency 1", ELS_REDIS_URL=fresh.url("worker"), **own
    )
    workers.start(
        "-s", str(tmp_path / "beat"), command="beat", ELS_REDIS_URL=fresh.url("beat"), **own
    )
    yield workers
    workers.stop()


@pytest.fixture
def sender(fresh):
    with closing(Celery("upstream", broker=fresh.url("sender"))) as app:
        yield app


def test_with_its_rights_each_program_does_its_work(fresh, running, sender, conn):
    batch = make.new_batch()
    events = [make.registration(batch, 2), make.contents(batch, ["text-1", "text-2"])]
    tasks = ["els.register_batch", "els.assign_contents"]

    for task, event in zip(tasks, events, strict=True):
        sender.send_task(task, kwargs={"event": event}, queue="els", ignore_result=True)
    sender.send_task(
        "els.assign_content",
        kwargs={"event": make.content(batch, "text-3")},
        queue="els",
        ignore_result=True,
        priority=6,
    )

    def at_rest():
        query = (
            "SELECT count(*) AS n FROM event_outbox"
            " WHERE batch_id = %s AND published_at IS NOT NULL"
        )
        return conn.execute(query, [batch]).fetchone()["n"] >= 3

    until(at_rest, 60, "the batch is ready, and its events are sent")
    until(lambda: fresh.admin.exists("els:swept_at"), 60, "beat ticks, and the sweep runs")
    assert [each for each in check_batches(conn, [batch]) if not each.holds] == []
    assert fresh.refused() == set()


def test_with_its_rights_the_page_sees_all(fresh, running):
    until(lambda: fresh.admin.zcard("els:workers"), 60, "the worker runs")
    with fresh.client("ops") as client:
        found = check_redis(client, "broker")
        heartbeat = heartbeat_or_none(client, fresh.url("ops"), Settings().queues)
        receivers = read_receivers(Settings(), client, fresh.url("ops"))
        refused = probe_redis(Slots(client))

    assert [each.wrong for each in found if each.severity is Severity.FAULT] == []
    assert refused is None
    assert heartbeat.workers == ["w@test"]
    assert heartbeat.waiting is not None
    assert [*heartbeat.signs] == ["w@test"]
    assert [queue.name for queue in receivers.queues] == [Settings().events_queue]
    assert fresh.refused() == set()


def test_with_its_rights_flower_shows_the_tasks_of_workers(fresh, running, sender):
    batch = make.new_batch()
    login, url = {"ELS_FLOWER_AUTH": "flower:sesame"}, fresh.url("flower")
    with flower(ELS_REDIS_URL=url, ELS_BROKER_URL=url, **login) as (page, _):
        until(fresh.admin.pubsub_numpat, 60, "Flower listens")
        sender.send_task(
            "els.register_batch",
            kwargs={"event": make.registration(batch, 2)},
            queue="els",
            ignore_result=True,
        )

        until(lambda: batch in ask(f"{page}/api/tasks")[2], 60, "Flower shows the task")
    assert fresh.refused() == set()


def test_with_its_rights_a_program_sends_to_another_database(fresh):
    fresh.allow(Settings(redis_url=fresh.url("worker", 2)))
    try:
        for name, queue in (("sender", "els"), ("beat", "els.control")):
            with closing(Celery(name, broker=fresh.url(name, 2))) as app:
                app.send_task("els.sweep", queue=queue, ignore_result=True)
    finally:
        fresh.allow(Settings())

    assert fresh.refused() == set()


def test_with_its_rights_a_worker_that_may_be_steered_is_steered(fresh, running):
    steered = Settings(remote_control=True, broker_url=fresh.url("worker", 2))
    fresh.allow(steered)
    urls = {"ELS_REDIS_URL": steered.broker_url, "ELS_REMOTE_CONTROL": "true"}
    try:
        running.start("-n", "steered@test", command="worker --pool solo", **urls)
        with closing(Celery("operator", broker=steered.broker_url)) as app:
            replies = until(lambda: app.control.ping(timeout=2, limit=1), 60, "it answers")
        refused = fresh.refused()
    finally:
        fresh.allow(Settings())  # from here on the worker is refused

    assert replies == [{"steered@test": {"ok": "pong"}}]
    assert refused == set()


RECEIVER = """
from celery import Celery
app = Celery("downstream", broker={url!r})
app.conf.update(
    broker_transport={transport!r},
    task_default_queue="els.events",
    worker_enable_remote_control=False,
    broker_transport_options={{
        "unacked_key": "els.events.unacked",
        "unacked_index_key": "els.events.unacked_index",
        "unacked_mutex_key": "els.events.unacked_mutex",
    }},
)
@app.task(name="els.events.batch_cancelled")
def receive(event):
    print("received %s" % event)
"""


@pytest.mark.parametrize("transport", ["redis", "durable_redis:Transport"])
def test_with_its_rights_a_worker_of_others_receives_events(fresh, tmp_path, transport):
    code = RECEIVER.format(url=fresh.url("receiver"), transport=transport)
    (tmp_path / "downstream.py").write_text(code)
    with closing(Celery("els", broker=fresh.url("worker"))) as app:
        app.send_task("els.events.batch_cancelled", kwargs={"event": 7}, queue="els.events")
    options = ["--pool", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    argv = [sys.executable, "-m", "celery", "-A", "downstream", "worker", *options]
    log = tmp_path / "downstream.log"
    with log.open("wb") as out:
        receiver = subprocess.Popen(argv, cwd=tmp_path, stdout=out, stderr=out)
    try:
        until(lambda: "received 7" in log.read_text(), 40, "the event is received")
        until(lambda: not fresh.admin.exists("els.events.unacked"), what="it is acknowledged")
    finally:
        receiver.terminate()
        receiver.wait(20)

    assert fresh.refused() == set()


SLOTS = "batch:{b}:available_slots"
FORBIDDEN = {
    # An upstream service may put messages into `els`, and see and change nothing.
    "sender": [
        *("LRANGE els 0 -1", "LINDEX els 0", "RPOP els", "LPOP els", "DEL els", "UNLINK els"),
        *("BRPOP els 1", "LSET els 0 x", "LTRIM els 1 0", "LREM els 0 x", "RENAME els other"),
        *("EXPIRE els 1", "LPUSH els.internal x", "LPUSH els.control x", "LPUSH els.events x"),
        *("LPUSH els.malformed x", "LPUSH other x", "SADD _kombu.binding.els.internal x"),
        *("HGETALL unacked", "HDEL unacked tag", "DEL unacked", "ZADD unacked_index 1 x"),
        *(f"SADD {SLOTS} essay", f"DEL {SLOTS}", "ZADD els:workers 1 ghost", "SET els:swept_at 1"),
        *("HSET els:pauses worker x", "SET els:tick:els:els.sweep 1", "GET celery-task-meta-1"),
        *("PUBLISH /0.celery.pidbox x", "PUBLISH /0.celeryev/worker.heartbeat x"),
        *("SUBSCRIBE /0.celeryev/worker.heartbeat", "FLUSHALL", "FLUSHDB", "CONFIG GET *"),
        *("CONFIG SET appendonly no", "SHUTDOWN NOSAVE", "KEYS *", "SCAN 0"),
        *("MONITOR", "CLIENT LIST", "CLIENT KILL ID 1", "ACL LIST", "ACL SETUSER x", "SAVE"),
        *("REPLICAOF NO ONE", "MODULE LIST", "SCRIPT FLUSH", "SWAPDB 0 1", "INFO"),
        # A key of another type would stop the workers.
        *("SADD els x", "LPUSH _kombu.binding.els x", "SMEMBERS els"),
    ],
    "worker": [
        *("FLUSHALL", "FLUSHDB", "CONFIG SET maxmemory 1", "KEYS *", "SCAN 0", "ACL LIST"),
        *("SHUTDOWN NOSAVE", "SCRIPT FLUSH", "SCRIPT KILL", "CLIENT KILL ID 1", "MONITOR"),
        *(
            "DEL other",
            "LPUSH other x",
            "PUBLISH /0.celery.pidbox x",
            "SWAPDB 0 1",
        ),
        *("FUNCTION FLUSH", "FUNCTION DELETE x", "FUNCTION LOAD x", "FUNCTION DUMP"),
    ],
    "beat": [
        *("LPUSH els x", "LPUSH els.internal x", "LRANGE els 0 -1", "DEL els", f"DEL {SLOTS}"),
        *("ZADD els:workers 1 ghost", "FLUSHALL", "HGETALL unacked", "CONFIG GET *"),
    ],
    "ops": [
        *("LPUSH els x", "DEL els", "RPOP els", "LPUSH els.internal x", "LPUSH els.control x"),
        *("LPUSH els.events x", f"SADD {SLOTS} essay", f"DEL {SLOTS}", f"SPOP {SLOTS}"),
        *(f"SET {SLOTS} x", "ZADD els:workers 1 ghost", "HSET els:pauses worker x"),
        *("HDEL unacked tag", "SET els:swept_at 1", "FLUSHALL", "CONFIG SET appendonly no"),
        *("PUBLISH /0.celery.pidbox x", "CLIENT KILL ID 1", "SHUTDOWN NOSAVE", "KEYS *"),
    ],
    "flower": [
        *("LPUSH els x", "LRANGE els 0 -1", "DEL els", "HGETALL unacked", f"SMEMBERS {SLOTS}"),
        *("PUBLISH /0.celery.pidbox x", "GET celery-task-meta-1", "FLUSHALL", "CONFIG GET *"),
        *("PSUBSCRIBE *", "HGETALL els:pauses"),
        *(f"SADD {queue} x" for queue in ("els", "els.internal", "els.control", "els.events")),
        *("SREM els x", "SCARD els", "DEL els.events"),
    ],
    "receiver": [
        *("LPUSH els x", "RPOP els", "BRPOP els 1", "LPUSH els.internal x", "HGETALL unacked"),
        *("DEL unacked", f"SMEMBERS {SLOTS}", "FLUSHALL", "CONFIG GET *", "HGET unacked tag"),
        *("PUBLISH /0.celery.pidbox x", "SUBSCRIBE /0.celeryev/x", "ZADD els:workers 1 ghost"),
    ],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_refused_what_is_not_its_work(fresh, name):
    with fresh.client(name) as client:
        allowed = [act for act in FORBIDDEN[name] if not _refused(client, *act.split())]

    assert allowed == []
    assert fresh.admin.dbsize() == 0


def _refused(client, *command):
    try:
        client.execute_command(*command)
    except redis.exceptions.NoPermissionError:
        return True
    return False


@pytest.mark.parametrize("name", ["worker", "ops", "beat", "receiver"])
def test_a_script_gets_no_further_than_its_user(fresh, name):
    with fresh.client(name) as client:
        with pytest.raises(redis.ResponseError, match=r"(?i)permission|NOPERM|can't (access|run)"):
            client.eval("return redis.call('DEL', KEYS[1])", 1, "other")
        with pytest.raises(redis.ResponseError, match=r"(?i)permission|NOPERM|can't (access|run)"):
            client.eval("return redis.call('LPUSH', 'other', 'x')", 0)

    assert fresh.admin.dbsize() == 0


def test_fifty_acts_and_more_are_refused():
    assert sum(map(len, FORBIDDEN.values())) >= 50


def test_nobody_can_log_in_before_he_has_a_password(guarded):
    for name, rules in redis_users(Settings(queue="new")).items():
        guarded.admin.execute_command("ACL", "SETUSER", name, *rules)
        for password in ("", "x", name):
            with pytest.raises(redis.AuthenticationError):
                redis.Redis(port=guarded.port, username=name, password=password).ping()


def test_rights_are_given_again_and_passwords_stay(fresh, tmp_path):
    """As docs/access.md does it, where a release or a setting changes the rights."""
    environ = {**os.environ, "ELS_QUEUE": "again", "ELS_HOME": str(tmp_path)}
    asks = [sys.executable, "-m", "ops", "access", "redis"]
    told = subprocess.run(asks, env=environ, capture_output=True, text=True, check=True)
    login = [program("redis-cli"), "-p", str(fresh.port), "--no-auth-warning", "-a", ADMIN]

    def give():
        lines = re.sub("^user ", "ACL SETUSER ", told.stdout, flags=re.MULTILINE)
        return subprocess.run(login, input=lines, capture_output=True, text=True, check=True).stdout

    first = give()
    fresh.admin.execute_command("ACL", "SETUSER", "again-sender", ">secret", "~other")
    second = give()

    assert first.split() == second.split() == ["OK"] * len(PROGRAMS)
    with redis.Redis(port=fresh.port, username="again-sender", password="secret") as client:
        assert client.lpush("again", "message") == 1
        assert _refused(client, "LPUSH", "other", "x")


def test_the_command_prints_what_redis_takes(guarded, tmp_path):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
    told = subprocess.run(
        [sys.executable, "-m", "ops", "access", "redis"],
        env={**environ, "ELS_QUEUE": "essays", "ELS_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = told.stdout.splitlines()

    assert [line.split()[1] for line in lines] == [f"essays-{name}" for name in PROGRAMS]
    (tmp_path / "users.acl").write_text(told.stdout)
    check = [
        program("redis-server"),
        "--port",
        "0",
        "--aclfile",
        tmp_path / "users.acl",
        "--save",
        "",
    ]
    server = subprocess.Popen([*check, "--unixsocket", tmp_path / "s"], stdout=subprocess.DEVNULL)
    try:
        until((tmp_path / "s").exists, 10, "Redis takes the file")
        assert server.poll() is None
    finally:
        server.terminate()
        server.wait(10)
