"""The programs of a manifest, started by hand: its commands, variables, secrets and checks.

They run as the user of the image, where root starts the tests, and each sees its own secrets alone.
"""

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from celery import Celery
from kombu import Connection, Exchange, Queue

from core import db
from ops.stack.leash import Account, leashed
from ops.stack.ports import free_port
from tests import factories as make
from tests.live.conftest import until
from tests.ops.conftest import fetch
from tests.ops.manifests import read

PROGRAMS = Path(sys.executable).parent
LONG_RUNNING = ("worker", "beat", "ops", "flower")
STOPPED_WELL = (0, -signal.SIGTERM)  # uvicorn ends by the signal, once it is done
OF_THE_IMAGE = 10001  # as in the Dockerfile


@cache
def account():
    """Whom the programs run as: the user of the image, or ourselves, who may become nobody else.

    Where root's own folders hold this Python, that user may also read what is closed to him.
    """
    if os.geteuid():
        return Account()
    ids = (f"--reuid={OF_THE_IMAGE}", f"--regid={OF_THE_IMAGE}", "--clear-groups")
    prefix = ("setpriv", *ids, "--inh-caps=-all")
    reaches = [*prefix, "test", "-x", os.path.realpath(sys.executable)]
    if subprocess.run(reaches, check=False).returncode:
        right = "-all,+dac_read_search"
        prefix = ("setpriv", *ids, f"--inh-caps={right}", f"--ambient-caps={right}")
    return Account(prefix=prefix)


@contextmanager
def open_folder():
    """A folder that other users may enter, as pytest's are not; gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="deployed-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def secrets_at(made, addresses):
    """Read the files of `scripts/secrets`, with the addresses of a test's own servers."""
    found = {}
    for path in made.iterdir():
        text = path.read_text()
        for theirs, ours in addresses.items():
            text = text.replace(theirs, ours)
        found[path.name] = text
    return found


class Deployed:
    """The programs of one platform; `secrets` has the contents of their files."""

    def __init__(self, platform, folder, secrets, **variables):
        self.programs = read(platform, **variables)
        self.folder, self.secrets = folder, secrets
        self.ports = {"ops": free_port(), "flower": free_port()}
        self.health_port = free_port()
        self.processes = {}
        for program in self.programs.values():
            self._hand_over(program)

    def _hand_over(self, program):
        for part in ("secrets", "home"):
            path = self.folder / program.name / part
            path.mkdir(parents=True, mode=0o700)
        for name, source in program.secrets.items():
            path = self.folder / program.name / "secrets" / name
            path.write_text(self.secrets[source])
            path.chmod(0o400)
        if not os.geteuid():
            for path in (self.folder / program.name).rglob("*"):
                os.chown(path, OF_THE_IMAGE, OF_THE_IMAGE)

    def argv(self, name, command=None):
        secrets = str(self.folder / name / "secrets")
        words = [each.replace("{secrets}", secrets) for each in command or self.command(name)]
        return [shutil.which(words[0], path=PROGRAMS), *words[1:]]

    def command(self, name):
        return self.programs[name].command

    def environ(self, name):
        """Return the environment of a program, on loopback, with ports and a home of its own."""
        given = self.programs[name].environ
        secrets = self.folder / name / "secrets"
        named = {key: value.format(secrets=secrets) for key, value in given.items()}
        home = str(self.folder / name / "home")
        ours = {"ELS_HOME": home, "HOME": home}
        if port := self.ports.get(name):
            upper = name.upper()
            ours |= {f"ELS_{upper}_HOST": "127.0.0.1", f"ELS_{upper}_PORT": str(port)}
        if "ELS_HEALTH_PORT" in given:
            ours["ELS_HEALTH_PORT"] = str(self.health_port)
        return {"PATH": f"{PROGRAMS}:{os.defpath}", "LANG": "C.UTF-8", **named, **ours}

    def run(self, name, command=None):
        """Run the command of a program, or another where it runs, to its end."""
        return subprocess.run(
            [*account().prefix, *self.argv(name, command)],
            env=self.environ(name),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, name):
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                leashed(self.argv(name), signal.SIGKILL, account()),
                env=self.environ(name),
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def healthy(self, name):
        assert self.processes[name].poll() is None, self.log(name)[-2000:]
        program = self.programs[name]
        checks = [self.run(name, check).returncode == 0 for check in program.checks]
        port = self.health_port if "ELS_HEALTH_PORT" in program.environ else self.ports.get(name)
        pages = [fetch(f"http://127.0.0.1:{port}{path}")[0] == 200 for path in program.pages]
        return all(checks) and all(pages)

    def page(self, name, path, **headers):
        return fetch(f"http://127.0.0.1:{self.ports[name]}{path}", **headers)

    def come_up(self):
        """Migrate, start every program, and wait until each is healthy."""
        migrated = self.run("migrate")
        assert migrated.returncode == 0, migrated.stderr
        for name in LONG_RUNNING:
            self.start(name)
        for name in LONG_RUNNING:
            until(lambda n=name: self.healthy(n), 60, f"{name} is healthy")

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


def make_a_batch_ready(sender_url, database_url):
    """Send a batch of one essay as an upstream service does; wait for its events."""
    upstream = Celery("upstream", broker=sender_url, set_as_current=False)
    if sender_url.startswith("amqp"):  # whose users may declare nothing there
        exchange = Exchange("els", type="topic", no_declare=True)
        upstream.conf.task_queues = [Queue("els", exchange, routing_key="els", no_declare=True)]
    batch = make.new_batch()
    for task, event in (
        ("els.register_batch", make.registration(batch, 1)),
        ("els.assign_content", make.content(batch, "text-1")),
    ):
        upstream.send_task(task, kwargs={"event": event}, queue="els", ignore_result=True)
    upstream.close()
    with db.connect_once(database_url) as conn:
        asks = "SELECT count(*) AS n FROM event_outbox WHERE published_at IS NOT NULL"
        until(lambda: conn.execute(asks).fetchone()["n"] == 2, 60, "both events are sent")
    return batch


def received_types(receiver_url):
    """Take the events that wait, as a downstream service does on the durable transport."""
    kept = {f"unacked{end}_key": f"els.events.unacked{end}" for end in ("", "_index", "_mutex")}
    options = kept if receiver_url.startswith("redis://") else {}
    with (
        Connection(receiver_url, transport_options=options) as connection,
        connection.channel() as channel,
    ):
        while message := channel.basic_get("els.events", no_ack=True):
            _, kwargs, _ = channel.message_to_python(message).payload
            yield kwargs["event"]["type"]


def basic(user_and_password):
    return {"Authorization": f"Basic {base64.b64encode(user_and_password.encode()).decode()}"}


def check_pages(deployed, ops, flower):
    """Both pages ask for a password, and take the one of their secret."""
    for name, path, login in (("ops", "/metrics", ops), ("flower", "/", flower)):
        until(lambda n=name, p=path: deployed.page(n, p)[0] == 401, 60, f"{name} asks")
        assert deployed.page(name, path, **basic(login))[0] == 200
