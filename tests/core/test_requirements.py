"""What servers lack is found on real ones, each with its reason and the next step."""

import os
import socket
import threading
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
import redis

from core import db
from core.schema import head_revision
from core.servers import finding
from core.servers.away import away
from core.servers.postgres import check_postgres, missing_for_work
from core.servers.redis import check_redis
from core.servers.redis_client import connect_once
from core.servers.requirements import check_servers
from core.servers.rights import RIGHTS
from core.settings import Settings
from migrations import head
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port
from tests.factories import new_batch
from tests.live.conftest import until
from tests.ops.served import own_database


def severities(findings):
    return {each.wrong: each.severity.value for each in findings}


@pytest.fixture
def valkey_of_its_own(tmp_path):
    @contextmanager
    def start(*commands):
        server = Valkey(tmp_path / "valkey", free_port(), "password")
        server.start()
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            try:
                for command in commands:
                    client.execute_command(*command.split())
                yield client
            finally:
                server.stop()

    return start


def test_servers_as_the_stack_starts_them_lack_nothing(database_url):
    settings = Settings(database_url=database_url, redis_url=os.environ["ELS_REDIS_URL"])

    assert check_servers(settings) == []


def test_the_newest_revision_is_known_without_alembic():
    assert head_revision() == head()


# --- Redis ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy", ["allkeys-lru", "allkeys-random", "volatile-ttl", "volatile-lfu", "allkeys-lfu"]
)
def test_an_evicting_broker_is_a_fault_and_evicted_slots_are_a_warning(valkey_of_its_own, policy):
    with valkey_of_its_own(f"CONFIG SET maxmemory-policy {policy}") as client:
        broker, slots = check_redis(client, "broker"), check_redis(client, "redis")

    assert severities(broker) == {f"maxmemory-policy is {policy}": "fault"}
    assert severities(slots) == {f"maxmemory-policy is {policy}": "warning"}
    assert all(each.why and each.step for each in broker + slots)


@pytest.mark.parametrize(
    ("commands", "found"),
    [
        (["CONFIG SET appendonly no"], {"appendonly is off": "warning"}),
        (["REPLICAOF 127.0.0.1 1"], {"it is a replica": "fault"}),
        (
            ["REPLICAOF 127.0.0.1 1", "CONFIG SET replica-read-only no"],
            {"it is a replica": "fault"},
        ),
        (["CONFIG SET maxmemory 1"], {"OOM": "fault"}),
        (["CONFIG SET min-replicas-to-write 2"], {"NOREPLICAS": "fault"}),
        (["ACL SETUSER default -client|tracking"], {"client|tracking": "fault"}),
        (["ACL SETUSER default -set"], {"'set' command": "fault"}),
        (["ACL SETUSER default resetkeys ~els*"], {"No permissions": "fault"}),
        (["ACL SETUSER default -eval"], {"'eval' command": "fault"}),
        (["ACL SETUSER default -config"], {}),
        (["ACL SETUSER default -info"], {"cannot be checked": "warning"}),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_a_broker_lacks_is_named(valkey_of_its_own, commands, found):
    with valkey_of_its_own(*commands) as client:
        seen = severities(check_redis(client, "broker"))

    assert len(seen) == len(found), seen
    for (told, severity), (words, meant) in zip(seen.items(), found.items(), strict=True):
        assert words.lower() in told.lower() or "used memory" in told
        assert severity == meant


def test_the_step_fits_what_holds_a_redis_up(valkey_of_its_own):
    with valkey_of_its_own("CONFIG SET busy-reply-threshold 10") as client:
        port = client.connection_pool.connection_kwargs["port"]
        asks = connect_once(f"redis://:password@127.0.0.1:{port}/0", timeout_s=1)
        client.client_pause(60_000, all=False)
        (paused,) = check_redis(asks, "redis")
        client.client_unpause()
        script = threading.Thread(target=run_until_killed, args=[client])
        script.start()
        (busy,) = until(lambda: check_redis(asks, "redis"), 5, "it is busy")
        asks.script_kill()
        script.join()

    assert "holds writes back" in paused.wrong
    assert "UNPAUSE" in paused.step
    assert "BUSY" in busy.wrong
    assert "SCRIPT KILL" in busy.step


def run_until_killed(client):
    with pytest.raises(redis.ResponseError, match=r"(?i)script killed"):
        client.eval("while true do end", 0)


def test_a_redis_that_is_away_is_a_fault():
    client = redis.Redis(port=9)

    (finding,) = check_redis(client, "redis")

    assert finding.severity.value == "fault"
    assert "ELS_REDIS_URL" in finding.step


@pytest.mark.parametrize(
    "broker_url",
    [
        "amqp://u:p@127.0.0.1:9//",
        "amqps://u:p@127.0.0.1:9//",
        "sentinel://127.0.0.1:9/0?master_name=x",
        "unix:///no/such.sock",
    ],
)
def test_a_broker_that_is_away_is_a_fault(database_url, broker_url):
    urls = {"database_url": database_url, "redis_url": os.environ["ELS_REDIS_URL"]}

    found = check_servers(Settings(**urls, broker_url=broker_url))

    assert [each.server for each in found] == ["broker"]


# --- Postgres ------------------------------------------------------------------------------------


@pytest.fixture
def database(database_url, conn):
    """A migrated database of its own, and a role on it that may do nothing yet."""
    name = new_batch().replace("-", "_")
    conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'word'")
    with own_database(database_url, name) as url:
        own = urlsplit(url)
        yield url, own._replace(netloc=f"{name}:word@127.0.0.1:{own.port}").geturl(), name
    conn.execute(f"DROP ROLE {name}")


def grant_all(url, role):
    with db.connect_once(url) as owner:
        owner.execute(f"GRANT SELECT ON alembic_version TO {role}")
        for table, verbs in RIGHTS.items():
            owner.execute(f"GRANT {', '.join(verbs)} ON {table} TO {role}")


@pytest.mark.parametrize(
    ("table", "verb"),
    [(table, verb) for table, verbs in RIGHTS.items() for verb in verbs][::3],
)
def test_a_right_that_is_missing_is_named(database, table, verb):
    url, of_role, role = database
    grant_all(url, role)
    with db.connect_once(of_role) as conn:
        before = missing_for_work(conn)
        with db.connect_once(url) as owner:
            owner.execute(f"REVOKE {verb} ON {table} FROM {role}")
        after = missing_for_work(conn)

    assert before is None
    assert after.severity.value == "fault"
    assert after.step == f"GRANT {verb} ON {table} TO {role}"


@pytest.mark.parametrize(
    ("statement", "words", "severity"),
    [
        ("ALTER DATABASE NAME SET synchronous_commit = off", "synchronous_commit", "warning"),
        ("ALTER DATABASE NAME SET default_transaction_read_only = on", "read-only", "fault"),
        ("UPDATE alembic_version SET version_num = '0001'", "0001", "fault"),
        ("UPDATE alembic_version SET version_num = '9999'", "9999", "fault"),
        ("DROP TABLE repairs", "repairs", "fault"),
        ("DROP TABLE alembic_version", "no schema", "fault"),
    ],
)
def test_what_a_database_lacks_is_named(database, conn, statement, words, severity):
    url, *_ = database
    statement = statement.replace("NAME", urlsplit(url).path[1:])
    with db.connect_once(url) as owner:
        owner.execute(statement)

    with db.connect_once(url) as asking:
        (finding,) = check_postgres(asking)

    assert words in finding.wrong
    assert finding.severity.value == severity


@pytest.mark.parametrize(
    "scope", ["DATABASE {name}", "ROLE {name}", "ROLE {name} IN DATABASE {name}"]
)
def test_whoever_made_a_database_read_only_is_named_with_what_undoes_it(database, scope):
    url, of_role, name = database
    grant_all(url, name)
    scope = scope.format(name=name)
    with db.connect_once(url) as owner:
        owner.execute(f"ALTER {scope} SET default_transaction_read_only = on")
        with db.connect_once(of_role) as asking:
            found = missing_for_work(asking)
        for statement in found.step.split("; "):
            owner.execute(statement)
        with db.connect_once(of_role) as asking:
            after = missing_for_work(asking)

    assert "default_transaction_read_only" in found.wrong
    assert f"ALTER {scope} RESET" in found.step
    assert after is None


def test_row_level_security_is_a_fault_unless_a_policy_says_who_sees_what(database):
    url, of_role, role = database
    grant_all(url, role)
    with db.connect_once(url) as owner, db.connect_once(of_role) as asking:
        owner.execute("ALTER TABLE event_outbox ENABLE ROW LEVEL SECURITY")
        of_owner, hidden = missing_for_work(owner), missing_for_work(asking)
        owner.execute(f"CREATE POLICY all_rows ON event_outbox TO {role} USING (true)")
        with_policy = missing_for_work(asking)

    assert of_owner is with_policy is None
    assert "event_outbox" in hidden.wrong
    assert hidden.step == "ALTER TABLE event_outbox DISABLE ROW LEVEL SECURITY"


@pytest.mark.parametrize("shift_s", [-60, 60])
def test_a_clock_that_is_off_is_named(conn, valkey, monkeypatch, shift_s):
    class Shifted(finding.datetime):
        @classmethod
        def now(cls, zone=None):
            return super().now(zone) + timedelta(seconds=shift_s)

    monkeypatch.setattr(finding, "datetime", Shifted)

    found = [*check_postgres(conn), *check_redis(valkey, "broker")]

    word = "behind" if shift_s > 0 else "ahead of"
    assert [word in each.wrong and each.severity.value for each in found] == ["warning"] * 2


# --- TLS -----------------------------------------------------------------------------------------


def test_a_server_without_tls_is_named_although_another_one_is_away():
    with socket.create_server(("127.0.0.1", 0)) as plain:
        threading.Thread(target=_greet, args=(plain,), daemon=True).start()
        at = [f"amqps://127.0.0.1:{port}" for port in (free_port(), plain.getsockname()[1])]

        found = away("broker", ";".join(at), ConnectionRefusedError("Connection refused"))

    assert found.wrong.startswith("it speaks no TLS at this port")


def _greet(server):
    client, _ = server.accept()
    with client:
        client.sendall(b"AMQP\0\0\x09\1")
