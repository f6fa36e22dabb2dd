"""Through PgBouncer: settings in force, no statement of another, no lock left, nothing lost."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from urllib.parse import quote

import psycopg
import pytest

from core import db
from core.db.connection import UnfitPooler
from core.lifecycle import Lifecycle
from core.repairs import RepairContext
from core.servers import requirements
from core.servers.redis_client import connect
from core.settings import Settings
from core.slots import Slots
from core.sweep import sweep
from migrations import head, upgrade
from ops.queries.invariants import check_batches
from ops.queries.sweep import holder
from tests import factories as make
from tests.core.swallowing import Swallowing
from tests.live.conftest import Workers, until
from tests.ops.served import Served
from tests.servers.conftest import program
from tests.servers.postgres import PgBouncer, elapsed, folder


@pytest.fixture(scope="module")
def poolers(node):
    """Pooler by mode; each started once. More settings make another one."""
    with folder("pgbouncer") as path, ExitStack() as undo:
        started = {}

        def start(mode="transaction", **settings):
            key = (mode, *settings.items())
            if key not in started:
                pooler = started[key] = PgBouncer(path / str(len(started)))
                undo.callback(pooler.end)
                pooler.start(node, mode, **settings)
            return started[key]

        yield start


@pytest.fixture
def pooler(poolers):
    return poolers()


def shown(conn, *names):
    columns = ", ".join(f"current_setting('{name}') AS n{n}" for n, name in enumerate(names))
    return tuple(conn.execute(f"SELECT {columns}").fetchone().values())


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_each_statement_and_each_transaction_has_our_settings(poolers, mode):
    names = ("statement_timeout", "lock_timeout", "timezone", "enable_seqscan", "search_path")
    options = quote(r'-c search_path=public,"Some\ Schema" -clock_timeout=3s')

    with (
        db.connect(f"{poolers(mode).url}?options={options}", by_key=True) as pool,
        pool.connection() as conn,
    ):
        alone = shown(conn, *names)
        with conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            together = shown(conn, *names)
        pooled, alone_again = conn.pooled, shown(conn, *names)

    assert pooled
    assert alone == ("1min", "3s", "UTC", "off", 'public,"Some Schema"')
    assert together[:4] == alone[:4]
    assert together[4] == 'public, "Some Schema"'
    assert alone_again == alone


def test_nothing_of_ours_stays_in_a_session_of_the_server(poolers):
    pooler = poolers("transaction", default_pool_size=1)

    with db.connect_once(pooler.url) as conn:
        conn.execute("SELECT 1")
        with conn.transaction():
            conn.execute("SELECT 1")
    with psycopg.connect(pooler.url, autocommit=True, prepare_threshold=None) as raw:
        (left,) = raw.execute("SHOW statement_timeout").fetchone()
        (statements,) = raw.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()

    assert left == "0"
    assert statements == 0 or version() >= (1, 21)  # the pooler's own, which all may use


def test_the_statement_timeout_fires(pooler):
    with db.connect_once(f"{pooler.url}?options=-cstatement_timeout%3D300ms") as conn:
        began = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("SELECT pg_sleep(20)")
        with pytest.raises(psycopg.errors.QueryCanceled), conn.transaction():
            conn.execute("SELECT pg_sleep(20)")

    assert elapsed(began) < 10


@pytest.fixture
def keeping(poolers):
    """Poolers that keep prepared statements: 200 a session of the server, or none."""

    def start(number):
        if version() >= (1, 21):
            return poolers("transaction", default_pool_size=2, max_prepared_statements=number)
        if number:
            pytest.skip("this PgBouncer keeps no prepared statements (1.21 and newer do)")
        return poolers("transaction", default_pool_size=2)

    return start


def version():
    told = subprocess.run([program("pgbouncer"), "--version"], capture_output=True, check=True)
    return tuple(map(int, re.search(rb"PgBouncer (\d+)\.(\d+)", told.stdout).groups()))


@pytest.mark.parametrize(("kept", "threshold"), [(0, None), (200, 1)])
def test_many_connections_on_few_sessions_run_their_own_statements(keeping, kept, threshold):
    """With prepared statements, they ran those of others: 26000, 42P05, or a wrong answer."""
    pooler = keeping(kept)

    def ask(n):
        with db.connect_once(pooler.url) as conn:
            for turn in range(150):  # more than psycopg keeps
                query = f"SELECT %s::int + {n} AS sum, '{n}' AS who, {turn // 3 * n} AS turn"
                row = conn.execute(query, [turn]).fetchone()
                assert row == {"sum": turn + n, "who": str(n), "turn": turn // 3 * n}
                if turn % 20 == 0:
                    with suppress(psycopg.errors.DivisionByZero), conn.transaction():
                        conn.execute(query, [turn])
                        conn.execute("SELECT 1 / 0")
            return conn.prepare_threshold

    with ThreadPoolExecutor(12) as threads:
        found = {*threads.map(ask, range(12))}

    assert found == {threshold}


def test_the_pooler_prepares_a_statement_once_for_all(keeping, node):
    pooler = keeping(200)
    for _ in range(3):
        with db.connect_once(pooler.url) as conn:
            for _ in range(4):
                conn.execute("SELECT %s::text || ' of all'", ["one"])
            names = conn.execute(
                "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%of all%'"
            ).fetchall()

    assert [name["name"].startswith("PGBOUNCER_") for name in names] == [True]


def test_a_pooler_that_ignores_options_is_no_trap(poolers):
    pooler = poolers("transaction", ignore_startup_parameters="extra_float_digits,options")

    with db.connect_once(pooler.url) as conn:
        assert shown(conn, "statement_timeout", "lock_timeout") == ("1min", "10s")


# --- what cannot be right ------------------------------------------------------------------------


def refused(url, prepare="auto"):
    urls = {"database_url": url, "redis_url": os.environ["ELS_REDIS_URL"]}
    found = requirements.check_servers(Settings(**urls, database_prepare=prepare))
    with pytest.raises(UnfitPooler):
        db.connect_once(url, prepare=prepare)
    (finding,) = found
    assert finding.severity.value == "fault"
    return finding


def test_a_pooler_of_statements_is_refused(poolers):
    finding = refused(poolers("statement").url)

    assert "each statement" in finding.wrong
    assert "pool_mode" in finding.step


def test_prepared_statements_are_refused_where_the_pooler_loses_them(keeping):
    finding = refused(keeping(0).url, prepare="on")

    assert "prepared" in finding.wrong
    assert "ELS_DATABASE_PREPARE" in finding.step


def test_prepared_statements_are_used_in_session_mode_where_asked_for(poolers):
    with db.connect_once(poolers("session").url, prepare="on") as conn:
        for _ in range(3):
            conn.execute("SELECT 1 AS mine")
        named = conn.execute(
            "SELECT count(*) AS n FROM pg_prepared_statements WHERE statement LIKE '%mine'"
        ).fetchone()

    assert named == {"n": 1}


@pytest.mark.parametrize(
    ("mode", "settings", "words"),
    [
        ("statement", {}, "pool_mode"),
        ("transaction", {"ELS_DATABASE_PREPARE": "on"}, "ELS_DATABASE_PREPARE"),
    ],
)
def test_a_worker_refuses_to_start_and_says_why(poolers, keeping, tmp_path, mode, settings, words):
    pooler = keeping(0) if mode == "transaction" else poolers(mode)
    environ = {**os.environ, "ELS_DATABASE_URL": pooler.url, "ELS_HOME": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks.app", "worker", "--pool", "solo"],
        env=environ | settings, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]


def test_the_page_is_not_ready_and_says_why(poolers):
    with Served(poolers("statement").url, os.environ["ELS_REDIS_URL"]) as page:
        ready = page.get("/readyz")

    assert ready.status == 503
    assert "pool_mode" in ready.text


# --- the service ---------------------------------------------------------------------------------


def test_the_schema_is_migrated_through_it(pooler, node):
    with psycopg.connect(node.url, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA apart")

    upgrade(f"{pooler.url}?options=-csearch_path%3Dapart")

    with psycopg.connect(node.url) as conn:
        (found,) = conn.execute("SELECT version_num FROM apart.alembic_version").fetchone()
    assert found == head()


def test_a_sweep_leaves_no_lock_and_keeps_others_out(pooler, node, slots):
    seen = SimpleNamespace(inside=None, holder=None)
    with db.connect(pooler.url, by_key=True) as pool, db.connect(node.url) as direct:
        context = RepairContext(Lifecycle(pool, slots), lambda events: None)
        with pool.connection() as other, db.sweep.lock(other) as ours, direct.connection() as conn:
            seen.inside, seen.holder = sweep(context), holder(conn)
        after = sweep(context)
        with direct.connection() as conn:
            left = holder(conn)

    assert ours
    assert seen.inside is None
    assert (seen.holder.application_name, seen.holder.sweeping) == ("els sweep", True)
    assert after is not None
    assert left is None


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_every_batch_becomes_ready_and_nothing_is_lost(poolers, node, tmp_path, on_broker, mode):
    pooler = poolers(mode, default_pool_size=3 if mode == "transaction" else 40)
    workers = Workers(tmp_path, ELS_DATABASE_URL=pooler.url, **on_broker)
    batches = [make.new_batch() for _ in range(8)]
    try:
        for _ in range(2):
            workers.start(command="worker --pool prefork --concurrency 3")
        workers.start(command="beat")
        workers.ready(2)
        for batch in batches:
            workers.send("els.register_batch", make.registration(batch, 30))
        for n in range(30):
            for batch in batches:
                workers.send("els.assign_content", make.content(batch, f"text-{n}"))
        with db.connect_once(node.url) as conn:
            until(lambda: at_rest(conn, batches), 90, "every batch is ready and announced")
            letters = conn.execute("SELECT count(*) AS n FROM dead_letters").fetchone()
            session_locks = conn.execute(
                "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory'"
                " AND pid IN (SELECT pid FROM pg_stat_activity WHERE state = 'idle')"
            ).fetchone()
    finally:
        workers.close()

    assert letters == {"n": 0}
    assert session_locks == {"n": 0}
    Slots(connect(os.environ["ELS_REDIS_URL"])).forget(batches)


def at_rest(conn, batches):
    ready = conn.execute(
        "SELECT count(*) AS n FROM batch_essay_trackers WHERE batch_id = ANY(%s)"
        " AND status = 'ready_for_pipeline_execution'",
        [batches],
    ).fetchone()
    return ready["n"] == len(batches) and all(each.holds for each in check_batches(conn, batches))


# --- silence -------------------------------------------------------------------------------------


def test_a_statement_that_is_lost_before_the_pooler_is_given_up(pooler):
    with Swallowing(pooler.port) as proxy:
        through = pooler.url.replace(f":{pooler.port}/", f":{proxy.port}/")
        with db.connect(through, size=1) as pool:
            with pool.connection() as conn:
                conn.execute("SELECT 1")
                proxy.swallow()
                began = time.monotonic()
                with pytest.raises(psycopg.OperationalError, match="silent"):
                    conn.execute("SELECT 2")
                took = elapsed(began)
            with pool.connection() as conn:
                again = conn.execute("SELECT 3 AS n").fetchone()

    assert took < 30
    assert again == {"n": 3}


def test_a_slow_statement_and_a_queue_at_the_pooler_are_no_silence(poolers, monkeypatch):
    monkeypatch.setattr("core.db.connection.WatchedConnection.silent_s", 0.3)
    monkeypatch.setattr("core.db.connection.WatchedConnection.again_s", 1)
    pooler = poolers("transaction", default_pool_size=2)

    def ask(n):
        row = connections[n].execute("SELECT %s::int AS n FROM pg_sleep(4)", [n]).fetchone()
        return row["n"]

    with ExitStack() as opened, ThreadPoolExecutor(4) as threads:
        connections = [opened.enter_context(db.connect_once(pooler.url)) for _ in range(4)]
        assert [*threads.map(ask, range(4))] == [0, 1, 2, 3]


# --- no session ----------------------------------------------------------------------------------


@contextmanager
def paused(pooler):
    """Have the pooler give nobody a session, as before a restart of the server."""
    at = pooler.url_of().rpartition("/")[0] + "/pgbouncer"
    with psycopg.connect(at, autocommit=True, prepare_threshold=None) as admin:
        assert not admin.pgconn.exec_(b"PAUSE els").error_message
        try:
            yield
        finally:
            admin.pgconn.exec_(b"RESUME els")


def test_the_page_says_soon_that_the_pooler_gives_no_session(poolers):
    pooler = poolers("transaction", admin_users="els")
    with Served(pooler.url, os.environ["ELS_REDIS_URL"]) as page:
        assert page.get("/readyz").status == 200
        with paused(pooler):
            began = time.monotonic()
            first, second = page.get("/readyz"), page.get("/readyz")
            took = elapsed(began)
        until(lambda: page.get("/readyz").status == 200, what="it is ready again")

    assert {first.status, second.status} == {503}
    assert "no session" in first.text + second.text or "no answer" in first.text + second.text
    assert took < 30


# --- sessions that stay read-only ----------------------------------------------------------------

SESSIONS = 3
WRITE = "UPDATE batch_essay_trackers SET expected_count = expected_count WHERE false"


def test_sessions_that_a_pooler_keeps_read_only_are_ended(poolers, node):
    """As when a role was read-only for a while, or a session still leads to a demoted primary."""
    pooler = poolers("transaction", default_pool_size=SESSIONS)
    with psycopg.connect(node.url, autocommit=True) as owner:
        owner.execute("ALTER ROLE els SET default_transaction_read_only = on")
        try:
            with ExitStack() as opened:
                for _ in range(SESSIONS):
                    conn = psycopg.connect(pooler.url, prepare_threshold=None)
                    opened.enter_context(conn).execute("SELECT 1")
        finally:
            owner.execute("ALTER ROLE els RESET default_transaction_read_only")

    with db.connect(pooler.url, size=SESSIONS) as pool:

        def all_write():
            try:
                with ExitStack() as lent:
                    for _ in range(SESSIONS):
                        conn = lent.enter_context(pool.connection())
                        lent.enter_context(conn.transaction())
                        conn.execute(WRITE)
            except psycopg.errors.ReadOnlySqlTransaction:
                return False
            return True

        until(all_write, 20, "every session takes writes")
