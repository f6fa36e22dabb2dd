"""TLS to Sentinels and to the Redis behind them: what is wrong with a certificate is refused."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery

from core.servers.handshake import NO_PRIMARY, describe
from core.servers.redis_client import connect
from core.servers.requirements import check_servers
from core.settings import Settings
from ops.client import Sender
from tasks.servers import set_broker, set_results
from tests import factories
from tests.servers.sentinels import PRIMARY, Certificates, Group
from tests.servers.tls import Authority

ELS = Path(sys.executable).parent / "els"
UNKNOWN = "no authority that we know signed its certificate"
ANOTHER_HOST = "its certificate is for another host"


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authorities")
    made = SimpleNamespace(ours=Authority(folder / "ours"), other=Authority(folder / "other"))
    made.client = made.ours.sign("client")
    made.good = made.ours.sign("good")
    return made


@pytest.fixture(scope="module")
def start(tmp_path_factory, authorities):
    """Start a group whose Redis servers, or Sentinels, have another certificate."""
    running = []

    def one(servers=authorities.good, sentinels=authorities.good):
        certificates = Certificates(servers, sentinels, authorities.client)
        running.append(Group(tmp_path_factory.mktemp("group"), certificates))
        return running[-1]

    yield one
    for group in running:
        group.stop()


@pytest.fixture(scope="module")
def group(start):
    return start()


def environ(group, database_url, **more):
    given = {
        "ELS_DATABASE_URL": database_url,
        "ELS_REDIS_URL": group.url,
        "ELS_REDIS_MASTER": PRIMARY,
    }
    return {**given, **group.tls.settings, **more}


def faults(settings):
    """Try slots, results and broker; return what is wrong with TLS for each, None if nothing."""
    app = Celery("asks", set_as_current=False)
    set_broker(app, settings.redis_url)
    set_results(app, settings.redis_url)
    with connect(settings.redis_url) as slots, app.connection() as broker:
        yield fault(slots.ping)
        yield fault(app.backend.client.ping)
        yield fault(lambda: broker.ensure_connection(max_retries=1, timeout=5))
    app.close()


def fault(call):
    try:
        call()
    except Exception as error:  # noqa: BLE001 - each library has its own
        found = describe(error)
        return found.wrong.partition(" (")[0] if found else str(error)
    return None


def test_what_is_right_is_accepted(group, database_url):
    settings = Settings.from_env(environ(group, database_url))

    assert [*faults(settings)] == [None, None, None]
    assert check_servers(settings) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ELS_TLS_CA": "other"}, UNKNOWN),
        ({"ELS_TLS_CERT": "", "ELS_TLS_KEY": ""}, "it wants a client certificate"),
        ({"ELS_REDIS_URL": ("localhost", "127.0.0.1")}, ANOTHER_HOST),
        ({"ELS_REDIS_URL": ("&ssl_cert_reqs=required", "")}, "it speaks TLS at this port"),
    ],
    ids=["another authority", "no client certificate", "another host", "no TLS in the URL"],
)
def test_sentinels_are_verified(authorities, group, database_url, tmp_path, wrong, said):
    [name, *_] = wrong
    if name == "ELS_TLS_CA":
        wrong = {name: str(authorities.other.ca)}
    if name == "ELS_REDIS_URL":
        wrong = {name: group.url.replace(*wrong[name])}
    given = environ(group, database_url, **wrong)
    settings = Settings.from_env(given)

    assert [*faults(settings)] == [NO_PRIMARY] * 3
    [found] = check_servers(settings)
    assert found.wrong.startswith(said)
    assert found.step
    with Sender(settings.redis_url, "els") as sender:
        sender.app.conf.task_publish_retry = False
        with pytest.raises(Exception, match=said):
            sender.send("els.cancel_batch", factories.cancellation("b"))
    assert said in error_of("reconcile", given, tmp_path)


def error_of(command, given, home):
    """Return the one line in which a command says why it failed."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
    done = subprocess.run(
        [ELS, command],
        env={**inherited, "ELS_HOME": str(home), **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    [line] = [line for line in done.stderr.splitlines() if line.startswith("els: ")]
    assert "Traceback" not in done.stderr
    return line


def test_the_primary_is_verified_as_the_sentinels_are(start, authorities, database_url):
    """The Sentinels' certificates are right, and all servers trust both authorities."""
    servers = authorities.other.sign("server")
    sentinels = authorities.ours.sign("sentinel")
    both = authorities.ours.ca.read_text() + authorities.other.ca.read_text()
    for folder in (servers, sentinels):
        (folder / "ca.pem").write_text(both)
    settings = Settings.from_env(environ(start(servers, sentinels), database_url))

    assert [*faults(settings)] == [UNKNOWN] * 3
    [found] = check_servers(settings)
    assert found.wrong.startswith(UNKNOWN)


def test_the_name_that_a_sentinel_gives_is_verified(start, authorities, database_url):
    servers = authorities.ours.sign("elsewhere", host="other.example")
    settings = Settings.from_env(environ(start(servers), database_url))

    assert [*faults(settings)] == [ANOTHER_HOST] * 3


def test_verification_is_turned_off_by_its_name(group, authorities, database_url):
    other = {"ELS_TLS_CA": str(authorities.other.ca), "ELS_TLS_VERIFY": "0"}
    url = group.url.replace("localhost", "127.0.0.1").replace("ssl_cert_reqs=required", "")
    given = environ(group, database_url, **other, ELS_REDIS_URL=url + "ssl_check_hostname=false")

    assert check_servers(Settings.from_env(given)) == []
