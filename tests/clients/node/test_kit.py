"""The kit's own tests, by Node's runner, on either broker."""

import os
import re
import subprocess
from contextlib import ExitStack

import pytest

from tests.clients.node.programs import KIT
from tests.clients.programs import RedisBroker
from tests.rabbitmq.node import MISSING, SERVER
from tests.servers.tls import Authority, SecureRabbit, SecureRedis


def run(name, **environ):
    """Run a file of tests; none may be skipped for want of a broker."""
    argv = ["node", "--test", "--test-reporter=spec", f"dist/test/live/{name}.test.js"]
    done = subprocess.run(
        argv,
        cwd=KIT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert int(re.search(r"pass (\d+)", done.stdout)[1]) > 0
    assert "names no broker" not in done.stdout


def test_the_kit_on_a_broker(broker):
    run("broker", ELS_TEST_BROKER=broker.url)


@pytest.mark.parametrize("kind", [SecureRedis, SecureRabbit])
def test_the_kit_over_tls(kind, tmp_path):
    if kind is SecureRabbit and not SERVER.exists():
        pytest.skip(MISSING)
    authority = Authority(tmp_path / "authority")
    certificates, client = authority.sign("server"), authority.sign("client")
    server = kind(tmp_path / "server", certificates, client)
    server.start()
    try:
        run("tls", ELS_TEST_TLS_BROKER=server.url, ELS_TEST_TLS_FOLDER=str(client))
    finally:
        server.stop()


def test_a_sender_that_waits_for_a_replica(tmp_path):
    primary, replica = (RedisBroker(tmp_path / name) for name in ("primary", "replica"))
    with ExitStack() as undo:
        for server in (primary, replica):
            undo.callback(server.stop)
            server.start()
        run("replicas", ELS_TEST_PRIMARY=primary.url, ELS_TEST_REPLICA=replica.url)
