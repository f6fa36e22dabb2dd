"""`els migrate` through PgBouncer in transaction mode: no session lasts for two transactions."""

import os
import pwd
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest

from core.db import connect_once
from migrations import current, head, upgrade
from ops.stack.embedded import free_port, leashed
from tests.core.test_migrations import build, is_valid, transaction
from tests.core.test_schema import a_database
from tests.servers.conftest import program

CONFIG = """
[databases]
* = host={host} port={port} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
auth_type = any
pool_mode = transaction
default_pool_size = 3
ignore_startup_parameters = options,extra_float_digits
unix_socket_dir =
"""


@pytest.fixture(scope="module")
def pooled(database_url, tmp_path_factory):
    """Make the URL of a database through a pooler."""
    found, listen = urlsplit(database_url), free_port()
    folder = tmp_path_factory.mktemp("pgbouncer")
    config = folder / "pgbouncer.ini"
    config.write_text(
        CONFIG.format(
            host=found.hostname,
            port=found.port,
            user=found.username,
            password=found.password,
            listen=listen,
        )
    )
    argv = [program("pgbouncer"), "-q", "/dev/stdin"]
    user = _somebody()
    with config.open() as given, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            leashed(argv, signal.SIGKILL), stdin=given, stdout=log, stderr=log, user=user
        )
    try:
        wait_for(listen)
        yield lambda url: f"postgresql://somebody@127.0.0.1:{listen}{urlsplit(url).path}"
    finally:
        process.kill()
        process.wait(10)


def _somebody():
    """Return whom PgBouncer runs as: it refuses root."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None


def wait_for(port):
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(f"postgresql://somebody@127.0.0.1:{port}/postgres").close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


@pytest.fixture
def scratch(database_url):
    with a_database(database_url) as url:
        yield url


@contextmanager
def migrating(url, *arguments):
    said, failed = [], []

    def run():
        try:
            upgrade(url, *arguments, say=said.append)
        except Exception as error:  # noqa: BLE001 - the edge of a thread
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield said
    thread.join(60)
    assert not thread.is_alive()
    assert failed == []


def test_several_at_once_bring_the_schema_to_head(pooled, scratch):
    url = pooled(scratch)

    with migrating(url), migrating(url), migrating(url):
        pass

    assert current(scratch) == head()


def test_whoever_is_in_the_way_is_named_and_waited_for(pooled, scratch):
    url = pooled(scratch)
    upgrade(url, "0001")

    with migrating(url, "0002") as said:
        lock = "LOCK TABLE batch_essay_trackers IN ROW EXCLUSIVE MODE"
        with transaction(scratch, lock) as other:
            pid = other.info.backend_pid
            deadline = time.monotonic() + 30
            while not any(f"session {pid}" in line for line in said):
                assert time.monotonic() < deadline, said
                time.sleep(0.05)

    assert current(scratch) == "0002"


def test_an_index_is_built_beside_its_writers(pooled, scratch):
    upgrade(pooled(scratch))

    done = build(pooled(scratch))

    assert done.returncode == 0, done.stderr
    with connect_once(scratch) as conn:
        assert is_valid(conn)
