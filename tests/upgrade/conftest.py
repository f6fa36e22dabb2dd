"""The last release, this code and a next release, each as processes on servers of their own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from core import db
from migrations import head
from ops.stack.embedded import Postgres, Valkey
from ops.stack.leash import leashed
from ops.stack.ports import free_port
from ops.torture.brokers import RABBITMQ_SERVER, RabbitMQ
from tests.core.test_schema import a_database
from tests.releases import LAST, ROOT

PACKAGES = ("core", "tasks", "durable_redis", "ops", "migrations", "examples")
EXPANDS = '''"""A column, as the next release may add one."""

from alembic import op
import sqlalchemy as sa

revision = "9001"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batch_essay_trackers", sa.Column("of_the_next_release", sa.Text()))


def downgrade() -> None:
    op.drop_column("batch_essay_trackers", "of_the_next_release")
'''
INDEXES = '''"""An index beside the writers."""

from migrations import online

revision = "9002"
down_revision = "9001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    online.create_index("ix_essay_states_of_the_next", "essay_states", ["student_id", "batch_id"])


def downgrade() -> None:
    online.drop_index("ix_essay_states_of_the_next", "essay_states")
'''
CONTRACTS = '''"""Delete what only code before 9002 used."""

from alembic import op

revision = "9003"
down_revision = "9002"
branch_labels = None
depends_on = None
oldest = "9002"


def upgrade() -> None:
    op.drop_column("batch_essay_trackers", "of_the_next_release")


def downgrade() -> None:
    raise NotImplementedError
'''


class Servers(NamedTuple):
    database_url: str
    redis_url: str
    broker_url: str
    queues: Callable[[], dict[str, int]]  # what waits or is held, by queue
    waiting: Callable[[], int]  # in the queue of upstream


class Release:
    """The code of one release, and its processes, ended by pid."""

    def __init__(self, name: str, tree: Path, servers: Servers, folder: Path) -> None:
        self.name, self.tree, self.servers, self.folder = name, tree, servers, folder
        self.processes: dict[str, subprocess.Popen] = {}
        self.logs: dict[str, Path] = {}

    def environ(self, home: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ELS_")}
        return {
            **kept,
            "PYTHONPATH": str(self.tree),
            "ELS_HOME": str(home),
            "ELS_DATABASE_URL": self.servers.database_url,
            "ELS_REDIS_URL": self.servers.redis_url,
            "ELS_BROKER_URL": self.servers.broker_url,
            "ELS_SWEEP_EVERY": "1",
            "ELS_VISIBILITY_TIMEOUT": "10",
            "ELS_LOG_FORMAT": "json",
            "REMAP_SIGTERM": "SIGQUIT",
        }

    def run(self, *argv: str) -> subprocess.CompletedProcess:
        """Run a Python command to its end."""
        return subprocess.run(
            [sys.executable, *argv],
            cwd=self.tree,
            env=self.environ(self.folder / self.name),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def els(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.run("-m", "ops", *arguments)

    def worker(self, number: int, *pool: str) -> None:
        name = f"{self.name}-{number}"
        self.start(name, "celery", "-q", "-A", "tasks.app", "worker", *pool, "-n", f"{name}@test")

    def start(self, name: str, module: str, *arguments: str, **more: str) -> None:
        home = self.folder / name
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            self.processes[name] = subprocess.Popen(
                leashed([sys.executable, "-m", module, *arguments], signal.SIGKILL),
                cwd=self.tree,
                env={**self.environ(home), **more},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.logs[name] = log

    def stop(self, name: str) -> None:
        """Stop a process as a supervisor does."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)
            raise

    def end(self) -> None:
        for name in list(self.processes):
            with ExitStack() as undo:
                undo.callback(self.stop, name)

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.logs.values())


def unpack(commit: str, folder: Path) -> Path:
    """Unpack a commit of this repository."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    return folder


@pytest.fixture(scope="session")
def last_tree(tmp_path_factory):
    """The code of the last release, by its tag, or by its commit where tags are missing."""
    for name in (f"v{LAST['version']}", LAST["commit"]):
        found = subprocess.run(
            ["git", "rev-parse", "-q", "--verify", f"{name}^{{commit}}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode == 0:
            return unpack(found.stdout.strip(), tmp_path_factory.mktemp("releases") / "last")
    return pytest.skip(f"this clone lacks the commit of {LAST['version']}: git fetch --unshallow")


def copy_of_this(tree):
    tree.mkdir()
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)
    return tree


@pytest.fixture(scope="session")
def next_tree(tmp_path_factory):
    """This code with two migrations more: a column, and an index."""
    tree = copy_of_this(tmp_path_factory.mktemp("releases") / "next")
    versions = tree / "migrations/versions"
    (versions / "9001_a_column.py").write_text(EXPANDS.format(head=head()))
    (versions / "9002_an_index.py").write_text(INDEXES)
    return tree


@pytest.fixture(scope="session")
def far_tree(tmp_path_factory):
    """This code two releases later: it sends messages that this release does not know."""
    tree = copy_of_this(tmp_path_factory.mktemp("releases") / "far")
    path = tree / "tasks/versions.py"
    text = path.read_text()
    for old, new in (("NEWEST = 1, 1", "NEWEST = 1, 2"), ("SENT = 1", "SENT = 2")):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return tree


@pytest.fixture(scope="session")
def contract_tree(next_tree, tmp_path_factory):
    """A release later: it deletes what the next release added."""
    tree = tmp_path_factory.mktemp("releases") / "contract"
    shutil.copytree(next_tree, tree)
    (tree / "migrations/versions/9003_less.py").write_text(CONTRACTS)
    return tree


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    """A Postgres and a Valkey of this lane."""
    with ExitStack() as undo:
        urls = []
        for kind in (Postgres, Valkey):
            server = kind(tmp_path_factory.mktemp("upgrade") / kind.name, free_port(), "password")
            undo.callback(server.stop)
            server.start()
            urls.append(server.url)
        yield urls


@pytest.fixture
def servers(running, tmp_path, request):
    """An empty database, an empty Valkey, and on demand a RabbitMQ."""
    broker_name = getattr(request, "param", "redis")
    if broker_name == "rabbitmq" and not RABBITMQ_SERVER.exists():
        pytest.skip("there is no rabbitmq-server (scripts/rabbitmq install)")
    postgres_url, redis_url = running
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    with a_database(postgres_url) as url, ExitStack() as undo:
        if broker_name == "redis":
            look = partial(in_redis, redis_url)
            yield Servers(url, redis_url, redis_url, look, lambda: look().get("els", 0))
            return
        broker = RabbitMQ(tmp_path)
        undo.callback(broker.stop)
        broker.start()
        yield Servers(url, redis_url, broker.url, partial(in_rabbitmq, broker), broker.waiting)


def in_redis(url):
    with redis.Redis.from_url(url, decode_responses=True) as client:
        lists = [key for key in client.keys("els*") if client.type(key) == "list"]
        counts = {**{key: client.llen(key) for key in lists}, "unacked": client.hlen("unacked")}
    return {name: count for name, count in counts.items() if count}


def in_rabbitmq(broker):
    argv = ["sh", ROOT / "scripts/rabbitmq", "ctl", broker.data, "-q", "list_queues"]
    argv += ["--no-table-headers", "name", "messages"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    pairs = (line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    return {name: int(count) for name, count in pairs if name.startswith("els") and int(count)}


@pytest.fixture
def release(servers, tmp_path):
    """Make a release by its name and the folder of its code; its processes end with the test."""
    with ExitStack() as undo:

        def make(name, tree):
            made = Release(name, tree, servers, tmp_path)
            undo.callback(made.end)
            return made

        yield make


@pytest.fixture
def conn(servers):
    with db.connect_once(servers.database_url) as connection:
        yield connection


@pytest.fixture
def valkey(servers):
    with redis.Redis.from_url(servers.redis_url, decode_responses=True) as client:
        yield client
