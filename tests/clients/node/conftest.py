"""A stack on either broker, with a sender and a receiver of Node beside it."""

import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.clients.node.programs import (
    EXAMPLES,
    Program,
    RabbitBroker,
    RedisBroker,
    link_kit,
    missing,
)
from tests.live.conftest import Workers
from tests.rabbitmq.node import MISSING, SERVER

ASKED = ("EssaySlotAssigned", "MessageRefused")  # only where a route asks for it


def pytest_collection_modifyitems(items):
    why = missing()
    for item in items:
        if why and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session", params=["redis", "rabbitmq"])
def broker(request, tmp_path_factory):
    """A broker that tests may stop and start again."""
    if request.param == "rabbitmq" and not SERVER.exists():
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp(request.param)
    started = RedisBroker(folder) if request.param == "redis" else RabbitBroker(folder)
    started.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def stack(broker, database_url, tmp_path_factory):
    """A worker and beat on a queue of their own, whose every event goes to `<queue>.events`."""
    folder = tmp_path_factory.mktemp("stack")
    workers = Workers(folder, ELS_BROKER_URL=broker.url, ELS_RELAY_EVERY="0.5")
    route = {"task": "els.event", "queue": f"{workers.queue}.events"}
    workers.settings["ELS_EVENT_ROUTES"] = json.dumps({name: [route] for name in ASKED})
    workers.start()
    workers.start("-s", str(folder / "beat"), command="beat")
    yield workers.ready(1)
    workers.close()


class Neighbours:
    """The examples as processes, and what the receiver has stored."""

    def __init__(self, folder: Path, queue: str, database_url: str):
        self.folder, self.queue, self.database_url = folder, queue, database_url
        self.programs: list[Program] = []
        link_kit(folder)
        for example in EXAMPLES.glob("*.mjs"):
            shutil.copy(example, folder)

    def start(self, name: str, broker_url: str, **environ: str) -> Program:
        program = Program(self.folder / name, BROKER_URL=broker_url, **environ)
        self.programs.append(program)
        return program

    def sender(self, broker_url: str) -> Program:
        spool = str(self.folder / "spool")
        return self.start("sender.mjs", broker_url, QUEUE=self.queue, SPOOL=spool)

    def receiver(self, broker_url: str) -> Program:
        return self.start(
            "receiver.mjs",
            broker_url,
            QUEUE=f"{self.queue}.events",
            DATABASE_URL=self.database_url,
            VISIBILITY_TIMEOUT_S="2",
        )

    def effects(self, batch_id: str, event_type: str | None = None) -> list[dict]:
        """List the events of a batch that had an effect, each as often as it had one."""
        with psycopg.connect(self.database_url, row_factory=dict_row) as db:
            if db.execute("SELECT to_regclass('effects') AS there").fetchone()["there"] is None:
                return []
            rows = db.execute(
                "SELECT event FROM effects WHERE event ->> 'subject' = %s"
                " AND %s IN (type, '') ORDER BY event ->> 'id'",
                [batch_id, event_type or ""],
            )
            return [row["event"] for row in rows]

    def close(self):
        for program in self.programs:
            if program.process.poll() is None:
                program.kill()


@pytest.fixture
def receiver_database():
    """A database of the receiver's own."""
    name = f"receiver_{uuid4().hex[:8]}"
    ours = os.environ["ELS_DATABASE_URL"]
    with psycopg.connect(ours, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}")
    yield ours.rsplit("/", 1)[0] + f"/{name}"
    with psycopg.connect(ours, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def beside(tmp_path, receiver_database):
    """Make neighbours of a queue, ended with the test."""
    made: list[Neighbours] = []

    def make(queue: str) -> Neighbours:
        made.append(Neighbours(tmp_path, queue, receiver_database))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def neighbours(stack, beside):
    return beside(stack.queue)
