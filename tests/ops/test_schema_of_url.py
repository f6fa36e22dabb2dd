"""A whole run on a database whose URL names another schema than `public`."""

import json
import os
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.factories import new_batch
from tests.ops.conftest import els


@pytest.fixture
def url(database_url):
    """A database of its own with the schema `els`, which the URL names."""
    name = new_batch().replace("-", "_")
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
        made = urlsplit(database_url)._replace(path=f"/{name}").geturl()
        with psycopg.connect(made, autocommit=True) as inside:
            inside.execute("CREATE SCHEMA els")
        yield f"{made}?options=-csearch_path=els&application_name=the-demo"
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_whole_run_stays_in_the_schema_that_the_url_names(url, tmp_path):
    redis_url = os.environ["ELS_REDIS_URL"].rpartition("/")[0] + "/7"
    urls = {"ELS_DATABASE_URL": url, "ELS_REDIS_URL": redis_url}

    told = els("demo", "--json", home=tmp_path / "home", **urls)
    status = els("status", "--json", home=tmp_path / "home", **urls)

    assert told.returncode == 0, told.stdout + told.stderr
    assert json.loads(told.stdout)["ok"]
    assert len(json.loads(status.stdout)) == 2
    with psycopg.connect(url.partition("?")[0]) as conn:
        schemas = conn.execute(
            "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename IN"
            " ('essay_states', 'alembic_version', 'event_outbox')"
        ).fetchall()
    assert schemas == [("els",)]
