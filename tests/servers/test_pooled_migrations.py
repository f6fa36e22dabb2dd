"""`els migrate` through PgBouncer in transaction mode: no session lasts for two transactions."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest

from core.db import connect_once
from migrations import current, head, upgrade
from tests.core.test_migrations import build, is_valid, transaction, until
from tests.servers.postgres import Node, PgBouncer, folder


@pytest.fixture(scope="module")
def node():
    with folder("postgres") as path, ExitStack() as undo:
        started = Node(path / "data")
        undo.callback(started.end)
        yield started.create(fsync="off").start()


@pytest.fixture(scope="module")
def pooler(node):
    with folder("pgbouncer") as path, ExitStack() as undo:
        started = PgBouncer(path / "pgbouncer")
        undo.callback(started.end)
        yield started.start(node.make(), default_pool_size=3)


@pytest.fixture
def url(node, pooler):
    """An empty database through the pooler, gone after the test."""
    yield pooler.url
    with psycopg.connect(node.url, autocommit=True) as conn:
        conn.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def test_several_at_once_bring_the_schema_to_head(node, url):
    with ThreadPoolExecutor(3) as crowd:
        for done in [crowd.submit(upgrade, url) for _ in range(3)]:
            done.result(60)

    assert current(node.url) == head()


def test_whoever_is_in_the_way_is_named_and_waited_for(node, url):
    upgrade(url, "0001")
    said = []
    lock = "LOCK TABLE batch_essay_trackers IN ROW EXCLUSIVE MODE"

    with ThreadPoolExecutor(1) as crowd:
        with transaction(node.url, lock) as other:
            done = crowd.submit(upgrade, url, "0002", said.append)
            pid = other.info.backend_pid
            until(lambda: any(f"session {pid}" in line for line in said))
        done.result(60)

    assert current(node.url) == "0002"


def test_an_index_is_built_beside_its_writers(node, url):
    upgrade(url)

    done = build(url)

    assert done.returncode == 0, done.stderr
    with connect_once(node.url) as conn:
        assert is_valid(conn)
