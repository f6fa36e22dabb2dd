"""The probe: it meets whatever stops the service's own writes, and leaves nothing behind."""

from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pytest
import redis
from psycopg import sql

from core.probe import probe_postgres, probe_redis
from core.servers.rights import OF_MESSAGES
from core.signs.pauses import EXPIRY, PAUSES, Outage, Pause, delete_pause, write_pause
from core.slots import Slots
from migrations.schema import metadata
from ops.signs import read_pauses

SINCE = datetime(2026, 1, 31, 8, tzinfo=UTC)
TABLES = sorted(metadata.tables)


@contextmanager
def refusing(conn, table, state):
    """Let the server refuse every write to a table with this SQLSTATE."""
    conn.execute(
        f"CREATE OR REPLACE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN RAISE EXCEPTION 'the server refuses' USING ERRCODE = '{state}'; END$$"
    )
    conn.execute(
        sql.SQL(
            "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON {}"
            " FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse()"
        ).format(sql.Identifier(table))
    )
    try:
        yield
    finally:
        conn.execute(sql.SQL("DROP TRIGGER refuse ON {}").format(sql.Identifier(table)))


def test_servers_that_are_well_take_the_probe_and_keep_nothing_of_it(conn, slots):
    before = {table: count(conn, table) for table in TABLES}

    assert probe_postgres(conn) is None
    assert probe_postgres(conn, size=1000) is None
    assert probe_redis(slots) is None
    assert {table: count(conn, table) for table in TABLES} == before
    assert slots.client.keys() == []


def count(conn, table):
    query = sql.SQL("SELECT count(*) AS n FROM {}").format(sql.Identifier(table))
    return conn.execute(query).fetchone()["n"]


@pytest.mark.parametrize("table", sorted(OF_MESSAGES))
def test_the_probe_writes_to_every_table_of_the_messages(conn, table):
    with refusing(conn, table, "58030"):
        outage = probe_postgres(conn)

    assert (outage.server, outage.sqlstate) == ("postgres", "58030")
    assert "the server refuses" in outage.error


def test_what_would_be_refused_at_a_commit_refuses_the_probe(conn):
    conn.execute(
        "CREATE OR REPLACE FUNCTION pg_temp.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'the server refuses' USING ERRCODE = '53100'; END$$"
    )
    conn.execute(
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON idempotency_keys"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pg_temp.refuse()"
    )
    try:
        outage = probe_postgres(conn)
    finally:
        conn.execute("DROP TRIGGER refuse ON idempotency_keys")

    assert outage.sqlstate == "53100"


def test_a_read_only_server_refuses_the_probe(database_url):
    with psycopg.connect(database_url, row_factory=psycopg.rows.dict_row, autocommit=True) as other:
        other.execute("SET default_transaction_read_only = on")
        outage = probe_postgres(other)

    assert outage.sqlstate == "25006"


def test_a_redis_without_a_right_to_write_refuses_the_probe(valkey):
    valkey.execute_command(
        "ACL", "SETUSER", "reader", "on", "nopass", "~*", "+@read", "+@connection"
    )
    info = valkey.connection_pool.connection_kwargs
    reader = redis.Redis(
        host=info["host"], port=info["port"], username="reader", password="", decode_responses=True
    )
    try:
        outage = probe_redis(Slots(reader))
    finally:
        reader.close()
        valkey.execute_command("ACL", "DELUSER", "reader")

    assert outage.server == "redis"
    assert "NoPermission" in outage.error


def test_a_process_that_waits_is_listed_until_it_goes_on(slots):
    pause = Pause("host:1", Outage("postgres", "read-only", "25006"), SINCE)
    client = slots.client

    write_pause(client, pause)
    listed = read_pauses(client)
    delete_pause(client, "host:1")

    assert listed == [pause]
    assert read_pauses(client) == []


def test_a_process_that_was_killed_while_it_waited_is_forgotten(slots, monkeypatch):
    monkeypatch.setattr("ops.signs.PAUSE_FRESH_S", -1)
    write_pause(slots.client, Pause("host:1", Outage("redis", "away"), SINCE))

    assert read_pauses(slots.client) == []
    assert 0 < slots.client.ttl(PAUSES) <= EXPIRY.total_seconds()
