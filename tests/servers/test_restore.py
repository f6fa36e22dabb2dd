"""A dump under load, restored into a new database, with an empty Redis: nothing of it is lost."""

import subprocess
import threading
from contextlib import ExitStack
from uuid import uuid4

import pytest
import redis

from core import db
from core.slots import Slots
from ops.queries.invariants import check_batches, check_slots
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port
from tests import factories as make
from tests.live.conftest import Workers, until
from tests.ops.conftest import els
from tests.servers.conftest import program
from tests.servers.postgres import PASSWORD, account

SLOTS, BATCHES = 10, 30
KNOWN = (
    "SELECT batch_id, text_storage_id, essay_id FROM essay_states WHERE text_storage_id IS NOT NULL"
)


@pytest.fixture
def valkey(tmp_path):
    server = Valkey(tmp_path / "valkey", free_port(), "word")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def crew(tmp_path, valkey):
    """Start a worker and beat on a database; all end with the test."""
    with ExitStack() as undo:

        def start(url):
            logs = tmp_path / uuid4().hex[:8]
            logs.mkdir()
            workers = Workers(logs, ELS_DATABASE_URL=url, ELS_REDIS_URL=valkey.url)
            workers.upstream.conf.update(broker_url=valkey.url, result_backend=valkey.url)
            undo.callback(workers.stop)
            workers.start(command="worker --pool prefork --concurrency 1")
            workers.start("--pidfile=", command="beat")
            return workers

        yield start


def copy(node, source, target, path):
    """Dump a database with Postgres' own programs, and restore it into a new one."""
    environ = {"PGPASSWORD": PASSWORD, "PATH": "/usr/bin:/bin"}
    uid, gid, _ = account()

    def run(name, *arguments):
        done = subprocess.run(
            [program(name), *arguments], env=environ, cwd="/", user=uid, group=gid,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    run("pg_dump", "--format=custom", f"--file={path}", node.url_of(source))
    node.make(target)
    run("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={node.url_of(target)}", str(path))


def rows(url, asks, *args):
    with db.connect_once(url) as conn:
        return conn.execute(asks, args).fetchall()


def ready(url):
    asks = "SELECT batch_id FROM batch_essay_trackers WHERE ready_at IS NOT NULL"
    return {row["batch_id"] for row in rows(url, asks)}


def test_a_dump_under_load_and_reconcile_lose_nothing(node, valkey, crew):
    batches = [make.new_batch() for _ in range(BATCHES)]
    messages = [("els.register_batch", make.registration(each, SLOTS)) for each in batches]
    messages += [
        ("els.assign_content", make.content(each, f"{each}-t{n}"))
        for n in range(SLOTS)
        for each in batches
    ]
    before = crew(node.url)
    dumped = threading.Event()

    def send_all():
        for number, (task, event) in enumerate(messages):
            before.send(task, event)
            if number == len(messages) // 2:
                dumped.wait(60)  # the rest arrives after the dump, which does not have it

    sender = threading.Thread(target=send_all)
    sender.start()
    until(lambda: len(rows(node.url, KNOWN)) >= SLOTS * BATCHES // 4, 60, "contents are assigned")
    copy(node, "els", "restored", node.path.with_name("dump"))
    dumped.set()
    sender.join()
    until(lambda: ready(node.url) == {*batches}, 90, "every batch is ready before the disaster")
    before.stop()
    restored = node.url_of("restored")
    in_dump = {tuple(row.values()) for row in rows(restored, KNOWN)}
    assert 0 < len(in_dump) < SLOTS * BATCHES

    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    servers = {"ELS_DATABASE_URL": restored, "ELS_REDIS_URL": valkey.url}
    told = els("reconcile", "--yes", **servers)
    after = crew(restored)
    outcomes = {
        event["event_id"]: after.send(task, event) for task, event in messages
    }  # senders send everything again: what the dump has are repeats
    until(lambda: ready(restored) == {*batches}, 90, "every batch is ready after the disaster")

    assert told.returncode == 0, told.stdout + told.stderr
    assert len(outcomes) == len(messages)
    assert in_dump <= {tuple(row.values()) for row in rows(restored, KNOWN)}
    until(
        lambda: not rows(restored, "SELECT FROM event_outbox WHERE published_at IS NULL"),
        60,
        "every event is sent",
    )
    with (
        db.connect_once(restored) as conn,
        redis.Redis.from_url(valkey.url, decode_responses=True) as client,
    ):
        until(
            lambda: all(each.holds for each in check_batches(conn, batches)), 30, "all is at rest"
        )
        assert check_slots(conn, Slots(client), batches).holds
    assert rows(restored, "SELECT FROM dead_letters") == []


def test_a_restored_database_has_the_schema_of_the_service(node):
    copy(node, "els", "restored_again", node.path.with_name("dump"))

    checked = els("migrate", "--check", ELS_DATABASE_URL=node.url_of("restored_again"))

    assert checked.returncode == 0, checked.stdout + checked.stderr
    count = "SELECT count(*) FROM batch_essay_trackers"
    assert rows(node.url_of("restored_again"), count) == rows(node.url, count)
