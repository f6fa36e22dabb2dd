"""However the URL of a Redis is written, slots, broker and results are at the same place in it."""

import signal
import subprocess
from contextlib import closing
from urllib.parse import quote

import pytest
import redis
from celery import Celery

from core.servers.redis_client import connect
from core.settings import Settings
from ops.stack.leash import leashed
from ops.stack.ports import free_port
from tasks.servers import set_broker, set_results
from tests.live.conftest import until
from tests.servers.conftest import program

ODD = "p@/:%#?&=+ é€"  # every character of a password that means something in a URL
DATABASE = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Debian's Redis on a port and a socket, whose user `els` has an odd password."""
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    where = ["--port", str(port), "--bind", "127.0.0.1", "--unixsocket", "socket"]
    argv = [program("redis-server"), *where, "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(leashed(argv, signal.SIGKILL), cwd=folder, stdout=subprocess.DEVNULL)
    until((folder / "socket").exists, 20, "Redis listens")
    with redis.Redis(port=port) as admin:
        admin.execute_command("ACL", "SETUSER", "els", "on", f">{ODD}", "~*", "&*", "+@all")
        admin.execute_command("ACL", "SETUSER", "default", "-@all", "+acl", "+flushall")
        yield {"PORT": str(port), "SOCKET": str(folder / "socket"), "WORD": quote(ODD, safe="")}
    process.terminate()
    process.wait(10)


@pytest.mark.parametrize(
    "url",
    [
        "redis://els:WORD@127.0.0.1:PORT/3",
        "redis://els:WORD@127.0.0.1:PORT?db=3",
        "redis://els:WORD@127.0.0.1:PORT/2?socket_timeout=5&db=3",
        "redis://127.0.0.1:PORT/3?username=els&password=WORD",
        "redis://els@127.0.0.1:PORT/3/?password=WORD&max_connections=9",
        "unix://els:WORD@SOCKET?db=3",
        "unix://els:WORD@SOCKET?socket_timeout=5&db=3",
        "unix://SOCKET?username=els&password=WORD&virtual_host=3",
        "redis+socket://els:WORD@SOCKET?virtual_host=3",
        "redis+socket://SOCKET?password=WORD&db=3&username=els",
    ],
)
def test_slots_broker_and_results_are_in_one_database_by_one_login(server, url):
    for name, value in server.items():
        url = url.replace(name, value)
    settings = Settings.from_env({"ELS_REDIS_URL": url, "ELS_BROKER_URL": url})
    with (
        redis.Redis(unix_socket_path=server["SOCKET"], username="els", password=ODD) as all_of_it,
        connect(settings.redis_url) as slots,
        closing(Celery("els", set_as_current=False)) as app,
    ):
        all_of_it.flushall()
        set_broker(app, settings.broker_url)
        set_results(app, settings.redis_url)

        slots.set("slots", 1)
        app.send_task("els.sweep", queue="els", ignore_result=True)
        app.backend.incr("results")

        found = {name: each["keys"] for name, each in all_of_it.info("keyspace").items()}
        with redis.Redis(
            unix_socket_path=server["SOCKET"], username="els", password=ODD, db=DATABASE
        ) as there:
            keys = {key.decode() for key in there.keys("*")}
    assert keys >= {"slots", "els", "results"}
    assert list(found) == [f"db{DATABASE}"]
