"""A database in another encoding than UTF8 cannot hold every name."""

from contextlib import contextmanager

import psycopg
import pytest

from core import db
from core.servers.finding import Severity
from core.servers.postgres import check_postgres
from tests.factories import new_batch
from tests.ops.conftest import els
from tests.ops.served import at_database

ENCODINGS = ["SQL_ASCII", "LATIN1"]


@contextmanager
def encoded(url, encoding):
    name = new_batch().replace("-", "_")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
            " TEMPLATE template0"
        )
        yield at_database(url, name)
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_els_migrate_refuses_it_in_one_line(database_url, encoding, tmp_path):
    with encoded(database_url, encoding) as url:
        refused = els("migrate", "--yes", home=tmp_path, ELS_DATABASE_URL=url)

        with psycopg.connect(url) as conn:
            tables = conn.execute("SELECT FROM pg_tables WHERE schemaname = 'public'").rowcount

    said = refused.stderr.splitlines()[-1]
    assert refused.returncode == 1
    assert said.startswith(f"els: the database is in {encoding}, not in UTF8")
    assert "createdb --encoding=UTF8" in said
    assert "Traceback" not in refused.stderr
    assert tables == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_readyz_warns_of_it(database_url, encoding):
    with encoded(database_url, encoding) as url, db.connect_once(url) as conn:
        found = {each.wrong: each.severity for each in check_postgres(conn)}

    assert found[f"the database is in {encoding}, not in UTF8"] is Severity.WARNING
