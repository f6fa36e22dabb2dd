"""What Debian's Postgres refuses or holds back, as the page names it."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg

from core.servers.identity import identity_of
from tests.live.conftest import until
from tests.ops.served import Served


@contextmanager
def awaiting_a_standby(node):
    """Hold a commit back for a synchronous standby that is gone."""
    with (
        psycopg.connect(node.url, autocommit=True) as admin,
        psycopg.connect(node.url) as writer,
        ThreadPoolExecutor(1) as other,
    ):
        writer.execute("CREATE TABLE waits ()")
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'gone'")
        admin.execute("SELECT pg_reload_conf()")
        until(lambda: "gone" in str(names_of(admin)), what="the setting is in force")
        commit = other.submit(writer.commit)
        try:
            yield
        finally:
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("SELECT pg_reload_conf()")
            commit.result(20)


def names_of(conn):
    return conn.execute("SHOW synchronous_standby_names").fetchone()


def test_the_page_is_not_ready_while_commits_wait_for_a_standby(node, valkey):
    with Served(node.url, os.environ["ELS_REDIS_URL"]) as page:
        assert page.get("/readyz").status == 200
        with awaiting_a_standby(node):
            refused = until(lambda: _unready(page), what="the page says so")
        until(lambda: page.get("/readyz").status == 200, what="it is ready again")

    assert "for a synchronous standby (synchronous_standby_names: gone)" in refused.text
    assert "ALTER SYSTEM RESET synchronous_standby_names" in refused.text


def _unready(page):
    answer = page.get("/readyz")
    return answer if answer.status == 503 else None


def test_a_role_that_sees_no_schema_has_no_identity(node):
    """Else `els explain` says that a worker uses another database, where a right was taken away."""
    assert identity_of(node.url)
    assert identity_of(f"{node.url}?options=-c%20search_path%3Dnowhere") is None
