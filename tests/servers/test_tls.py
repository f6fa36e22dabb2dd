"""TLS to all three servers: what is right works, and each wrong certificate is one clear line."""

import os
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
import redis
from celery import Celery

from core import db
from core.servers.finding import Severity
from core.servers.redis_client import connect
from core.servers.requirements import check_servers
from core.settings import Settings
from migrations import upgrade
from ops.client import Sender
from ops.stack.leash import leashed
from ops.web.connections import Connections
from ops.web.readiness import Readiness
from tasks.servers import set_broker
from tests import factories
from tests.live.conftest import until
from tests.servers.tls import HOST, Authority, SecurePostgres, SecureRabbit, SecureRedis

ELS = Path(sys.executable).parent / "els"
QUEUE = "els-tls"
SERVERS = ("postgres", "redis", "rabbitmq")
SETTING = {
    "postgres": "ELS_DATABASE_URL",
    "redis": "ELS_REDIS_URL",
    "rabbitmq": "ELS_BROKER_URL",
}


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authorities")
    return SimpleNamespace(ours=Authority(folder / "ours"), other=Authority(folder / "other"))


@pytest.fixture(scope="module")
def client(authorities):
    """The settings of a client that every server takes."""
    return authorities.ours.settings("client")


@pytest.fixture(scope="module")
def start(tmp_path_factory, client):
    """Start a server with these certificates; it ends with the module."""
    kinds = {"redis": SecureRedis, "postgres": SecurePostgres, "rabbitmq": SecureRabbit}
    with ExitStack() as undo:

        def one(kind, certificates):
            mine = Path(client["ELS_TLS_CERT"]).parent
            server = kinds[kind](tmp_path_factory.mktemp(kind), certificates, mine)
            undo.callback(server.stop)
            server.start()
            return server

        yield one


@pytest.fixture(scope="module")
def servers(authorities, start):
    good = authorities.ours.sign("good")
    return {kind: start(kind, good) for kind in SERVERS}


@pytest.fixture(scope="module")
def urls(servers, client):
    """The URLs of all, with a migrated database."""
    found = {SETTING[kind]: servers[kind].url for kind in SERVERS}
    upgrade(Settings.from_env({**found, **client}).database_url)
    return found


def run(*command, **environ):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
    argv = [ELS, *command]
    return subprocess.run(
        argv, env={**inherited, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


# --- all is right --------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path):
    """Start `els` processes, ended with the test."""
    running = []

    def start(*command, **environ):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
        with (tmp_path / f"{command[0]}.log").open("wb") as log:
            process = subprocess.Popen(
                leashed([str(ELS), *command], 9),
                env={**inherited, "ELS_HOME": str(tmp_path), **environ},
                stdout=log,
                stderr=log,
            )
        running.append(process)
        return tmp_path / f"{command[0]}.log"

    yield start
    for process in running:
        process.terminate()
    for process in running:
        process.wait(20)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize("said", ["by settings", "by URL"])
def test_a_batch_becomes_ready_over_tls(servers, urls, client, started, broker, said):
    queue = f"{QUEUE}-{broker}-{said[-3:]}"
    environ = {**urls, **client, "ELS_QUEUE": queue, "ELS_EVENTS_QUEUE": f"{queue}.events"}
    if broker == "redis":
        del environ["ELS_BROKER_URL"]
    settings = Settings.from_env(environ)
    if said == "by URL":  # as the settings complete them
        environ = {k: v for k, v in environ.items() if not k.startswith("ELS_TLS")}
        names = {name: name.removeprefix("ELS_").lower() for name in environ if name in urls}
        environ |= {name: getattr(settings, field) for name, field in names.items()}
    batch_id = factories.new_batch()

    started("worker", "--pool", "prefork", "--concurrency", "1", **environ)
    started("beat", **environ)
    with Sender(settings.broker_url or settings.redis_url, queue) as sender:
        sender.send("els.register_batch", factories.registration(batch_id, 25))
        for number in range(25):
            sender.send("els.assign_content", factories.content(batch_id, f"text-{number}"))

    with db.connect_once(settings.database_url) as conn:
        assert conn.pgconn.ssl_in_use
        until(lambda: ready(conn, batch_id), 60, "the batch is ready and its event sent")
    assert check_servers(settings) == []
    assert run("status", batch_id, **environ).returncode == 0
    assert "ready_for_pipeline_execution" in run("status", batch_id, "--json", **environ).stdout


def ready(conn, batch_id):
    return conn.execute(
        "SELECT FROM event_outbox WHERE batch_id = %s AND type = 'BatchEssaysReady'"
        " AND published_at IS NOT NULL",
        [batch_id],
    ).rowcount


def test_everything_is_ready(urls, client):
    assert readiness({**urls, **client})["ready"]


def readiness(environ):
    settings = Settings.from_env(environ)
    connections = Connections.of(settings, settings.database_url, settings.redis_url)
    broker = Celery()
    set_broker(broker, settings.broker_url or settings.redis_url)
    try:
        return Readiness(connections, broker).check()
    finally:
        broker.close()
        connections.pool.close()


# --- something is wrong --------------------------------------------------------------------------

UNKNOWN = "no authority that we know signed its certificate"
WRONG = {
    "another authority": UNKNOWN,
    "another host": "its certificate is for another host",
    "expired": "its certificate has expired",
    "no client certificate": "it wants a client certificate",
    "client of another authority": "it does not accept our client certificate",
}


def at_another_host(url):
    return url.replace(f"@{HOST}:", "@127.0.0.1:").replace(f"//{HOST}:", "//127.0.0.1:")


@pytest.fixture(scope="module")
def expired(authorities, start):
    """URLs of servers whose certificate has expired, started when asked for."""
    old, started = authorities.ours.sign("expired", days=-1), {}

    def url(kind):
        if kind not in started:
            started[kind] = start(kind, old).url
        return started[kind]

    return url


@pytest.fixture
def broken(request, urls, client, authorities, expired):
    """Settings where one thing is wrong with one server."""

    def make(kind, wrong):
        environ, name = {**urls, **client}, SETTING[kind]
        if wrong == "another host":
            environ[name] = at_another_host(environ[name])
        elif wrong == "expired":
            environ[name] = expired(kind)
        elif wrong == "another authority":
            environ[name] = _with(environ[name], kind, "ca", authorities.other.ca)
        else:  # the server is the only one that is not given the certificate
            others = Settings.from_env(environ)
            fields = {each: SETTING[each].removeprefix("ELS_").lower() for each in SERVERS}
            environ |= {SETTING[each]: getattr(others, fields[each]) for each in SERVERS}
            environ[name] = urls[name]
            del environ["ELS_TLS_CERT"], environ["ELS_TLS_KEY"]
            if wrong == "client of another authority":
                stranger = authorities.other.folder / "stranger"
                made = stranger if stranger.exists() else authorities.other.sign("stranger")
                environ[name] = _with(environ[name], kind, "cert", made / "server.pem")
                environ[name] = _with(environ[name], kind, "key", made / "server.key")
        return environ

    return make


def _with(url, kind, what, path):
    names = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}
    if kind == "postgres":
        names = {"ca": "sslrootcert", "cert": "sslcert", "key": "sslkey"}
    return f"{url}{'&' if '?' in url else '?'}{names[what]}={path}"


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", SERVERS)
def test_what_is_wrong_with_a_certificate_is_named_with_the_next_step(broken, kind, wrong):
    environ = broken(kind, wrong)

    faults = [f for f in check_servers(Settings.from_env(environ)) if f.severity is Severity.FAULT]
    part = readiness(environ)

    [fault] = faults
    server = "broker" if kind == "rabbitmq" else kind
    assert fault.server == server
    assert WRONG[wrong] in fault.wrong, fault
    assert fault.step
    assert not part["ready"]
    assert WRONG[wrong] in part[server], part


@pytest.mark.parametrize("wrong", ["another authority", "expired", "no client certificate"])
@pytest.mark.parametrize(
    ("kind", "command"),
    [("postgres", "status"), ("redis", "reconcile"), ("rabbitmq", "submit examples/events.jsonl")],
)
def test_a_command_says_it_in_one_line(tmp_path, broken, kind, command, wrong):
    done = run(*command.split(), **broken(kind, wrong), ELS_HOME=str(tmp_path))

    assert done.returncode == 1, done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("els: ")]
    assert len(errors) == 1, done.stderr
    assert WRONG[wrong] in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", SERVERS)
def test_a_worker_says_it_at_its_start(broken, started, kind):
    log = started("worker", "--pool", "solo", **broken(kind, "expired"), ELS_LOG_FORMAT="console")

    until(lambda: WRONG["expired"] in log.read_text(), 60, "the worker says what is wrong")
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
def test_a_bare_url_accepts_no_unknown_certificate(urls, client, kind):
    """Nothing but the URL: the authorities are the system's."""
    given = {name: value for name, value in client.items() if name != "ELS_TLS_CA"}
    settings = Settings.from_env({**given, SETTING[kind]: urls[SETTING[kind]]})

    if kind == "redis":
        with connect(settings.redis_url) as found, pytest.raises(redis.ConnectionError) as refusal:
            found.ping()
        assert "certificate verify failed" in str(refusal.value)
    app = Celery()
    set_broker(app, settings.broker_url or settings.redis_url)
    with app.connection() as connection, pytest.raises(Exception, match="certificate verify"):
        connection.ensure_connection(max_retries=1, timeout=2)


@pytest.fixture
def receiver():
    """A program of others that names the durable transport, and says nothing of TLS elsewhere."""
    with closing(Celery("receiver", set_as_current=False)) as app:
        app.conf.broker_transport = "durable_redis:Transport"
        yield app


def test_a_receiver_on_the_named_transport_accepts_no_unknown_certificate(urls, receiver):
    receiver.conf.broker_url = urls["ELS_REDIS_URL"]

    with receiver.connection() as connection, pytest.raises(Exception, match="certificate verify"):
        connection.ensure_connection(max_retries=1, timeout=2)


def test_a_receiver_on_the_named_transport_speaks_tls(urls, client, receiver, monkeypatch):
    """The system's authorities are what OpenSSL takes for them."""
    monkeypatch.setenv("SSL_CERT_FILE", client["ELS_TLS_CA"])
    own = f"ssl_certfile={client['ELS_TLS_CERT']}&ssl_keyfile={client['ELS_TLS_KEY']}"
    receiver.conf.broker_url = f"{urls['ELS_REDIS_URL']}?{own}"

    with receiver.connection() as connection:
        connection.ensure_connection(max_retries=1, timeout=2)
        with connection.SimpleQueue(f"{QUEUE}-receiver") as queue:
            queue.put("event")
            message = queue.get(timeout=10)
            message.ack()
    assert message.payload == "event"


def test_verification_is_turned_off_by_its_name(urls, client, authorities):
    other = {**client, "ELS_TLS_CA": str(authorities.other.ca), "ELS_TLS_VERIFY": "0"}
    away = {name: at_another_host(url) for name, url in urls.items()}
    away["ELS_DATABASE_URL"] = away["ELS_DATABASE_URL"].replace("verify-full", "require")

    assert check_servers(Settings.from_env({**away, **other})) == []


def test_a_plain_server_is_named(urls, client):
    plain = os.environ["ELS_REDIS_URL"].replace("redis://", "rediss://")

    [fault] = check_servers(Settings.from_env({**urls, **client, "ELS_REDIS_URL": plain}))

    assert "it speaks no TLS at this port" in fault.wrong


def test_a_sentence_of_libpq_is_enough_to_see_that_the_server_is_plain(urls, client):
    plain = os.environ["ELS_DATABASE_URL"] + "?sslmode=require"

    found = check_servers(Settings.from_env({**urls, **client, "ELS_DATABASE_URL": plain}))

    assert "it speaks no TLS at this port" in found[0].wrong


def test_tls_settings_leave_plain_urls_alone(database_url, client):
    plain = {name: os.environ[name] for name in ("ELS_DATABASE_URL", "ELS_REDIS_URL")}

    assert check_servers(Settings.from_env({**plain, **client})) == []


def test_a_remote_postgres_is_verified_where_an_authority_is_named(servers, client):
    port = servers["postgres"].port
    url = f"postgresql://els:password@{HOST}.example:{port}/els?hostaddr=127.0.0.1"

    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        db.connect_once(Settings.from_env({"ELS_DATABASE_URL": url, **client}).database_url)
