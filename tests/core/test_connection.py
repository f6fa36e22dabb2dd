"""Connections to Postgres and Redis: the URL's own word wins, and silence has an end."""

import os
import shutil
import signal
import time
from contextlib import contextmanager
from datetime import UTC, timedelta
from urllib.parse import quote, urlencode, urlsplit
from uuid import uuid4

import psutil
import psycopg
import pytest
import redis
from psycopg.errors import LockNotAvailable

from core import db
from core.errors import BadSettings
from core.servers import redis_client
from core.servers.away import addresses
from core.servers.postgres_url import address, parameters
from migrations import current, head, upgrade
from ops.stack.embedded import Postgres
from ops.stack.ports import free_port
from tests.core.swallowing import Swallowing
from tests.factories import new_batch

SOON_S = 30


@pytest.fixture
def url(database_url):
    """The URL of the run's database, without options."""
    return database_url.partition("?")[0]


@pytest.fixture
def schema(conn):
    """An empty schema that is not the default one."""
    name = new_batch().replace("-", "_")
    conn.execute(f"CREATE SCHEMA {name}")
    yield name
    conn.execute(f"DROP SCHEMA {name} CASCADE")


def in_each_form(url, schema):
    """The ways in which people write a search path, and where they write hosts."""
    parts = urlsplit(url)
    at = f"{parts.hostname}:{parts.port}"
    login = f"{parts.username}:{quote(parts.password or '')}"
    option = quote(f"-c search_path={schema}")
    return {
        "percent-encoded": f"{url}?options={option}",
        "as people type it": f"{url}?options=-csearch_path={schema}",
        "with a plus": f"{url}?{urlencode({'options': f'-c search_path={schema}'})}",
        "long": f"{url}?options={quote(f'--search_path={schema}')}",
        "a driver": f"{url}?options={option}".replace("postgresql:", "postgresql+psycopg:"),
        "two hosts": f"postgresql://{login}@127.0.0.1:9,{at}{parts.path}?options={option}",
        "hosts in the query": f"postgresql://{login}@{parts.path}?host=127.0.0.1:9&host={at}"
        f"&options={option}",
    }


@pytest.mark.parametrize("form", in_each_form("postgresql://u@h:1/d", ""))
def test_migrations_and_the_service_see_the_schema_that_the_url_names(url, schema, conn, form):
    written = in_each_form(url, schema)[form]

    upgrade(written)

    with (
        db.connect_once(written) as once,
        db.connect(written, by_key=True) as pool,
        pool.connection() as pooled,
    ):
        seen = [
            each.execute("SELECT 'essay_states'::regclass::oid AS oid").fetchone()["oid"]
            for each in (once, pooled)
        ]
    meant = conn.execute(f"SELECT '{schema}.essay_states'::regclass::oid AS oid").fetchone()
    assert seen == [meant["oid"]] * 2
    assert current(written) == head()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("application_name=mine", {"application_name": "mine"}),
        ("options=-cstatement_timeout=5s", {"statement_timeout": "5s", "lock_timeout": "10s"}),
        ("options=-clock_timeout%3D1s", {"statement_timeout": "1min", "lock_timeout": "1s"}),
        ("options=-ctimezone%3DEurope/Stockholm", {"timezone": "Europe/Stockholm"}),
        ("", {"statement_timeout": "1min", "lock_timeout": "10s", "timezone": "UTC"}),
        ("sslmode=disable&connect_timeout=9", {"application_name": "els"}),
    ],
)
def test_what_the_url_says_wins_over_ours(url, said, shown):
    with db.connect_once(f"{url}?{said}") as conn:
        found = {name: conn.execute(f"SHOW {name}").fetchone()[_key(name)] for name in shown}

    assert found == shown


def _key(name):
    return "TimeZone" if name == "timezone" else name


@pytest.mark.parametrize(
    "said",
    [
        {"connect_timeout": "3", "sslmode": "prefer", "keepalives": "0"},
        {"keepalives_idle": "77", "tcp_user_timeout": "5"},
        {"target_session_attrs": "read-write", "host": "a,b", "port": "1,2"},
    ],
)
def test_no_parameter_of_the_url_is_replaced(said):
    written = parameters(address(f"postgresql://h/els?{urlencode(said)}").conninfo)

    assert {name: str(written[name]) for name in said} == said


def test_the_options_of_a_service_file_count_as_the_urls(url, schema, tmp_path, monkeypatch):
    (tmp_path / "services").write_text(
        f"[els]\noptions=-c search_path={schema} -c lock_timeout=3s\nkeepalives=0\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))

    with db.connect_once(f"{url}?service=els") as conn:
        path = conn.execute("SHOW search_path").fetchone()["search_path"]
        lock_timeout = conn.execute("SHOW lock_timeout").fetchone()["lock_timeout"]

    assert (path, lock_timeout) == (schema, "3s")
    assert "keepalives=1" not in address(f"{url}?service=els").conninfo
    assert "PGSERVICE" not in os.environ


@pytest.mark.parametrize(
    "wrong",
    ["nonsense", "mysql://u:sesame@h/d", "postgresql://u:sesame%zz@h/d", "postgresql://h/d?no=1"],
)
def test_a_malformed_url_is_an_error_that_says_no_password(wrong):
    with pytest.raises(BadSettings, match="ELS_DATABASE_URL") as told:
        db.connect(wrong)

    assert "sesame" not in str(told.value)


def test_a_lock_is_reported_as_a_lock(url, schema):
    brief = f"{url}?options=-csearch_path={schema}%20-clock_timeout=200ms"
    with db.connect_once(brief) as holder, db.connect_once(brief) as waiter:
        holder.execute("CREATE TABLE held (n int)")
        with holder.transaction():
            holder.execute("LOCK TABLE held")

            with pytest.raises(LockNotAvailable):
                waiter.execute("SELECT * FROM held")


# --- silence -------------------------------------------------------------------------------------


@contextmanager
def behind_a_proxy(url):
    parts = urlsplit(url)
    with Swallowing(parts.port) as proxy:
        yield proxy, url.replace(f":{parts.port}/", f":{proxy.port}/")


@pytest.mark.slow
@pytest.mark.parametrize("new", [False, True], ids=["this one", "all"])
def test_a_swallowed_connection_is_given_up_while_a_statement_waits(url, new):
    with behind_a_proxy(url) as (proxy, through), db.connect(through, size=1) as pool:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            proxy.swallow(new=new)
            started = time.monotonic()

            with pytest.raises(psycopg.OperationalError, match="silent"):
                conn.execute("SELECT 2")
            took = time.monotonic() - started
        proxy.new_are_silent = False
        with pool.connection() as conn:
            again = conn.execute("SELECT 3 AS n").fetchone()

    assert took < SOON_S
    assert again == {"n": 3}


def test_a_slow_statement_is_no_silence(url, monkeypatch):
    monkeypatch.setattr("core.db.connection.WatchedConnection.silent_s", 0.3)
    monkeypatch.setattr("core.db.connection.WatchedConnection.again_s", 0.1)

    with db.connect_once(url) as conn:
        row = conn.execute("SELECT 1 AS n FROM pg_sleep(3)").fetchone()
        with conn.transaction():
            conn.execute("SELECT pg_sleep(1)")

    assert row == {"n": 1}


@pytest.fixture
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("frozen")
    postgres = Postgres(home / "postgres", free_port(), "password")
    postgres.start()
    yield postgres
    postgres.stop()
    shutil.rmtree(home)


def _send_all(postgres, number):
    process = psutil.Process(postgres.process.pid)
    for each in [process, *process.children(recursive=True)]:
        each.send_signal(number)


@pytest.mark.slow
def test_a_frozen_server_is_noticed_and_the_pool_goes_on_once_it_thaws(server):
    with db.connect(server.url, size=1) as pool:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            _send_all(server, signal.SIGSTOP)
            started = time.monotonic()
            try:
                with pytest.raises(psycopg.OperationalError, match="silent"):
                    conn.execute("SELECT 2")
                took = time.monotonic() - started
            finally:
                _send_all(server, signal.SIGCONT)
        with pool.connection() as conn:
            again = conn.execute("SELECT 3 AS n").fetchone()

    assert took < SOON_S
    assert again == {"n": 3}


@pytest.mark.slow
@pytest.mark.parametrize("new", [False, True], ids=["this one", "all"])
def test_a_swallowed_connection_to_redis_is_given_up_and_replaced(new):
    parts = urlsplit(os.environ["ELS_REDIS_URL"])
    with Swallowing(parts.port) as proxy:
        through = parts._replace(netloc=parts.netloc.replace(str(parts.port), str(proxy.port)))
        client = redis_client.connect(through.geturl())
        client.ping()
        proxy.swallow(new=new)
        started = time.monotonic()

        with pytest.raises(redis.TimeoutError):
            client.ping()
        took = time.monotonic() - started
        proxy.new_are_silent = False

        assert client.ping()
        client.close()

    assert took < SOON_S


def test_the_urls_own_limits_for_redis_win():
    client = redis_client.connect("redis://h/0?socket_timeout=7&health_check_interval=99")

    told = client.connection_pool.connection_kwargs
    assert (told["socket_timeout"], told["health_check_interval"]) == (7, 99)
    assert (told["socket_connect_timeout"], told["socket_keepalive"]) == (5, True)


# --- a server that takes no writes ---------------------------------------------------------------


def test_a_connection_to_a_server_that_became_read_only_is_replaced(url, schema):
    with db.connect(f"{url}?options=-csearch_path={schema}", size=1) as pool:
        with pool.connection() as conn:
            conn.execute("CREATE TABLE words (word text)")
            conn.execute("SET default_transaction_read_only = on")
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), conn.transaction():
                conn.execute("INSERT INTO words VALUES ('lost')")
        with pool.connection() as conn:
            conn.execute("INSERT INTO words VALUES ('kept')")
            words = conn.execute("SELECT word FROM words").fetchall()

    assert words == [{"word": "kept"}]


def test_a_prepared_statement_goes_on_after_its_table_was_altered(url, schema):
    within = f"{url}?options=-csearch_path={schema}"
    with db.connect(within, size=1) as pool, pool.connection() as conn:
        conn.execute("CREATE TABLE words (word text)")
        for _ in range(2):
            conn.execute("SELECT word FROM words", prepare=True)
        with psycopg.connect(url, autocommit=True) as other:
            other.execute(f"ALTER TABLE {schema}.words ALTER word TYPE varchar(9)")
        words = conn.execute("SELECT word FROM words").fetchall()

    assert words == []


@pytest.mark.parametrize(
    ("said", "attrs"),
    [
        ("postgresql://u@a,b/d", "read-write"),
        ("postgresql://u@a:1,b:2/d", "read-write"),
        ("postgresql+psycopg://u@/d?host=a:1&host=b:2", "read-write"),
        ("host=a,b dbname=d", "read-write"),
        ("hostaddr=127.0.0.1,127.0.0.2 dbname=d", "read-write"),
        ("postgresql://u@a,b/d?target_session_attrs=any", "any"),
        ("postgresql://u@a/d", None),
    ],
)
def test_among_several_hosts_the_one_that_takes_writes_is_meant(said, attrs):
    assert parameters(address(said).conninfo).get("target_session_attrs") == attrs
    if "any" not in said:
        assert "target_session_attrs" not in parameters(address(said, writes=False).conninfo)


@pytest.mark.parametrize(
    ("query", "hosts", "ports"),
    [
        ("host=a:1&host=b:2", "a,b", "1,2"),
        ("host=a:1&host=b", "a,b", "1,"),
        ("host=a:1&host=b&port=3", "a,b", "1,3"),
        ("port=3&host=a:1,b", "a,b", "1,3"),
        ("host=a&host=b&port=1&port=2", "a,b", "1,2"),
        ("host=a,b&port=3", "a,b", "3"),
        ("host=::1", "::1", None),
        ("host=fe80::1&port=3", "fe80::1", "3"),
        ("host=[::1]:1&host=b", "::1,b", "1,"),
        ("host=/run/postgresql&port=3", "/run/postgresql", "3"),
        ("port=3", None, "3"),
    ],
)
def test_each_host_of_a_query_keeps_its_own_port(query, hosts, ports):
    read = parameters(f"postgresql+psycopg:///d?{query}")

    assert (read.get("host"), read.get("port")) == (hosts, ports)


def test_a_server_that_a_url_names_by_its_address_alone_is_asked_there():
    asked = [at for at, _ in addresses("hostaddr=10.0.0.1,10.0.0.2 port=1,2 dbname=d")]

    assert asked == [("10.0.0.1", 1), ("10.0.0.2", 2)]


@pytest.mark.parametrize(
    ("options", "settings", "left"),
    [
        ("-c search_path=a,b", {"search_path": "a,b"}, ""),
        (
            r"-csearch_path=a,\ b --lock-timeout=3s",
            {"search_path": "a, b", "lock_timeout": "3s"},
            "",
        ),
        ("-c a.b=1 -c a.b=2", {"a.b": "2"}, ""),
        ("endpoint=ep-1 -c work_mem=8MB", {"work_mem": "8MB"}, "endpoint=ep-1"),
    ],
)
def test_settings_are_taken_out_of_the_options(options, settings, left):
    found = address(f"postgresql://h/d?options={quote(options)}", {})

    assert dict(found.settings) == settings
    assert parameters(found.conninfo).get("options", "") == left


def test_a_setting_that_the_server_refuses_is_never_the_fault_of_a_message(url):
    with pytest.raises(psycopg.OperationalError, match="statement_timeout") as told:
        db.connect_once(f"{url}?options=-cstatement_timeout%3Dsoon")

    assert told.value.sqlstate is None


STYLES = {"datestyle": "'German'", "intervalstyle": "iso_8601", "client_encoding": "LATIN1"}


def test_styles_that_a_role_has_change_nothing(database_url, conn):
    role = f"styled_{uuid4().hex[:8]}"
    conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'word'")
    try:
        for name, value in STYLES.items():
            conn.execute(f"ALTER ROLE {role} SET {name} = {value}")
        at = urlsplit(database_url)
        url = at._replace(netloc=f"{role}:word@{at.hostname}:{at.port}").geturl()
        with db.connect_once(url) as styled:
            row = styled.execute(
                "SELECT now() AS at, interval '36 hours' AS lasts, %s AS text", ["łódź"]
            ).fetchone()
    finally:
        conn.execute(f"DROP ROLE {role}")

    assert row["at"].tzinfo is UTC
    assert row["lasts"] == timedelta(hours=36)
    assert row["text"] == "łódź"
