"""`els migrate --roles`: three roles with the least rights, written again without harm."""

import json
from types import SimpleNamespace
from urllib.parse import urlsplit

import psycopg
import pytest

from core import db
from core.probe import probe_postgres
from core.servers.postgres import missing_for_work
from migrations import upgrade
from migrations.roles import Names, RolesRefused, write_roles
from ops.queries import batches, dead_letters, numbers
from tests.factories import new_batch
from tests.ops.conftest import els
from tests.ops.served import own_database

WORD = "a password's word"
NO_RIGHT = psycopg.errors.InsufficientPrivilege


@pytest.fixture(scope="module")
def made(database_url):
    """A database with the roles, written as by a person, and the URL of each role."""
    prefix = new_batch().replace("-", "_")
    names = Names(*(f"{prefix}_{name}" for name in ("migrate", "app", "read", "page")))
    with own_database(database_url, f"{prefix}_db") as url:
        did = write_roles(url, names, dict.fromkeys(names.given, WORD))
        at = urlsplit(url)
        yield SimpleNamespace(url=url, names=names, did=did, **urls(at, names))
        drop(url, names)


def urls(at, names):
    def of(role):
        return at._replace(netloc=f"{role}:{WORD.replace(' ', '%20')}@127.0.0.1:{at.port}").geturl()

    return {name: of(role) for name, role in vars(names).items()}


def drop(url, names):
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"REASSIGN OWNED BY {names.migrate} TO CURRENT_USER")
        for name in names.given:
            conn.execute(f"DROP OWNED BY {name}")
            conn.execute(f"DROP ROLE {name}")


@pytest.mark.parametrize("role", ["app", "page"])
def test_workers_and_the_page_have_all_that_they_need(made, role):
    with db.connect_once(getattr(made, role)) as conn:
        assert missing_for_work(conn) is None
        assert probe_postgres(conn) is None


def test_the_reader_reads_everything_that_the_pages_show(made):
    with db.connect_once(made.read) as conn:
        assert numbers.counters(conn)["open"] == 0
        assert len(batches.board(conn, ["none"])) == 1
        assert dead_letters.letters(conn, batch_id=None, task=None, every=True, limit=1) == []


FORBIDDEN = {
    "app": [
        "CREATE TABLE mine ()",
        "CREATE SCHEMA mine",
        "DROP TABLE essay_states",
        "ALTER TABLE essay_states ADD COLUMN mine int",
        "CREATE INDEX ON essay_states (student_id)",
        "TRUNCATE repairs",
        "DELETE FROM batch_essay_trackers",
        "DELETE FROM essay_states",
        "DELETE FROM event_outbox",
        "DELETE FROM idempotency_keys",
        "DELETE FROM dead_letters",
        "DELETE FROM excess_content",
        "UPDATE excess_content SET reason = reason",
        "UPDATE idempotency_keys SET task = task",
        "UPDATE batch_pending_content SET batch_id = batch_id",
        "UPDATE alembic_version SET version_num = '0000'",
        "INSERT INTO alembic_version VALUES ('0000')",
        "DELETE FROM alembic_version",
        "COMMENT ON TABLE essay_states IS 'mine'",
        "SET ROLE {migrate}",
        "ALTER ROLE {read} LOGIN",
        "CREATE ROLE mine",
        "CREATE DATABASE mine",
        "ALTER SYSTEM SET fsync = off",
        "SELECT * FROM pg_authid",
        "COPY repairs TO PROGRAM 'true'",
    ],
    "read": [
        "INSERT INTO repairs (batch_id, rule) VALUES ('a', 'b')",
        "UPDATE essay_states SET student_id = NULL",
        "DELETE FROM dead_letters",
        "TRUNCATE dead_letters",
        "CREATE TABLE mine ()",
        "SELECT FROM essay_states FOR UPDATE",
        "DO $$ BEGIN LOCK TABLE essay_states IN EXCLUSIVE MODE; END $$",
        "SET ROLE {app}",
        "SELECT * FROM pg_authid",
    ],
    "migrate": [
        "CREATE ROLE mine",
        "CREATE DATABASE mine",
        "ALTER SYSTEM SET fsync = off",
        "SELECT * FROM pg_authid",
        "SET ROLE {app}",
        "COPY repairs TO PROGRAM 'true'",
    ],
}
FORBIDDEN["page"] = FORBIDDEN["app"]


@pytest.mark.parametrize("role", FORBIDDEN)
def test_what_a_role_need_not_do_is_refused(made, role):
    allowed = []
    with psycopg.connect(getattr(made, role), autocommit=True) as conn:
        if role == "read":  # its setting is a help; its rights are what refuses
            conn.execute("SET default_transaction_read_only = off")
        for statement in FORBIDDEN[role]:
            try:
                conn.execute(statement.format(**vars(made.names)))
            except psycopg.errors.InsufficientPrivilege:
                continue
            allowed.append(statement)

    assert allowed == []


def test_the_owner_migrates_and_the_others_may_use_a_later_table_at_once(made):
    upgrade(made.migrate)
    with psycopg.connect(made.migrate, autocommit=True) as conn:
        conn.execute("CREATE TABLE later (n int)")
        try:
            with db.connect_once(made.page) as page, pytest.raises(NO_RIGHT):
                page.execute("DELETE FROM later")
            with db.connect_once(made.app) as app, db.connect_once(made.read) as read:
                app.execute("INSERT INTO later VALUES (1)")
                app.execute("UPDATE later SET n = 2")
                seen = read.execute("SELECT n FROM later").fetchone()
                with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                    read.execute("DELETE FROM later")
        finally:
            conn.execute("DROP TABLE later")

    assert seen == {"n": 2}


def test_the_settings_are_those_of_the_role(made):
    names = ("statement_timeout", "lock_timeout", "timezone", "default_transaction_read_only")
    seen = {}
    for role in ("app", "read", "migrate"):
        with psycopg.connect(getattr(made, role), autocommit=True) as conn:
            seen[role] = [conn.execute(f"SHOW {name}").fetchone()[0] for name in names]

    assert seen == {
        "app": ["1min", "10s", "UTC", "off"],
        "read": ["1min", "10s", "UTC", "on"],
        "migrate": ["0", "5s", "UTC", "off"],
    }


def test_a_second_time_nothing_is_done_and_what_somebody_changed_is_undone(made):
    again = write_roles(made.url, made.names, {})
    with psycopg.connect(made.url, autocommit=True) as conn:
        conn.execute(f"GRANT DELETE ON essay_states TO {made.names.app}")
        conn.execute(f"REVOKE SELECT ON repairs FROM {made.names.read}")
        conn.execute(f"ALTER ROLE {made.names.app} CREATEROLE")
    mended = write_roles(made.url, made.names, {})

    assert made.did
    assert again == []
    assert sorted(line.split()[0] for line in mended) == ["granted", "made", "took"]


def test_who_may_create_roles_and_owns_the_tables_need_not_be_superuser(database_url):
    prefix = new_batch().replace("-", "_")
    names, owner = Names(f"{prefix}_m", f"{prefix}_a", f"{prefix}_r"), f"{prefix}_owner"
    with own_database(database_url, f"{prefix}_db") as url:
        at = urlsplit(url)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE PASSWORD 'word'")
            conn.execute(f"ALTER DATABASE {at.path[1:]} OWNER TO {owner}")
            conn.execute("DROP SCHEMA public CASCADE")
            conn.execute(f"CREATE SCHEMA public AUTHORIZATION {owner}")
        its = at._replace(netloc=f"{owner}:word@127.0.0.1:{at.port}").geturl()
        upgrade(its)

        did = write_roles(its, names, {})
        again = write_roles(its, names, {})
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(f"ALTER ROLE {names.app} PASSWORD 'word'")
        with db.connect_once(its.replace(f"{owner}:", f"{names.app}:")) as conn:
            missing = missing_for_work(conn)

        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(f"REASSIGN OWNED BY {owner} TO CURRENT_USER")
        drop(url, names)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(f"DROP OWNED BY {owner}")
            conn.execute(f"DROP ROLE {owner}")

    assert did
    assert again == []
    assert missing is None


def test_one_of_the_roles_does_not_write_them(made):
    with pytest.raises(RolesRefused, match="may create roles"):
        write_roles(made.app, made.names, {})


def test_the_command_prints_what_it_did_and_no_password(database_url, tmp_path):
    prefix = new_batch().replace("-", "_")
    names = Names(f"{prefix}_m", f"{prefix}_a", f"{prefix}_r")
    (tmp_path / "passwords").write_text(json.dumps({names.app: "sesame"}))
    with own_database(database_url, f"{prefix}_db") as url:
        command = (
            "migrate", "--roles", "--role-names", ",".join(names.given),
            "--passwords", str(tmp_path / "passwords"), "--json",
        )  # fmt: skip
        told = els(*command, home=tmp_path, ELS_DATABASE_URL=url)
        wrong = els(*command[:-3], str(tmp_path / "none"), home=tmp_path, ELS_DATABASE_URL=url)
        drop(url, names)

    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["roles"] == vars(names)
    assert f"set the password of {names.app}" in found["did"]
    assert "sesame" not in told.stdout + told.stderr
    assert wrong.returncode != 0


def test_the_role_that_works_may_purge_only_where_retention_is_on(made):
    words = {"INSERT INTO repairs (batch_id, rule) VALUES ('x', 'y')", "DELETE FROM dead_letters"}
    write_roles(made.url, made.names, {}, purges=True)
    try:
        test_what_a_role_need_not_do_is_refused(made, "page")
        with db.connect_once(made.app) as conn, conn.transaction(force_rollback=True):
            for statement in words:
                conn.execute(statement)
            db.retention.purge(conn, db.retention.purgeable(conn, 1, 9), "retention")
            for kind in db.retention.WITHOUT_BATCH:
                db.retention.purge_without_batch(conn, kind, 1, 9)
            db.retention.purge_keys(conn, 1, db.retention.FIRST_KEY, 9)
    finally:
        did = write_roles(made.url, made.names, {})

    assert any("took DELETE" in line for line in did)
    with db.connect_once(made.app) as conn:
        assert missing_for_work(conn) is None
