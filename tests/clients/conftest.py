"""A stack on either broker for programs of other services, and a database of a receiver's own."""

import json
import os
from uuid import uuid4

import psycopg
import pytest

from tests.clients.programs import Neighbours, RabbitBroker, RedisBroker
from tests.live.conftest import Workers
from tests.rabbitmq.node import MISSING, SERVER

ASKED = ("EssaySlotAssigned", "MessageRefused")  # only where a route asks for it


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
    ended = [n for n, process in enumerate(workers.processes) if process.poll() is not None]
    workers.close()
    assert not ended, "\n".join((folder / f"{n}.log").read_text()[-4000:] for n in ended)


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
def beside(kit, tmp_path, receiver_database):
    """Make neighbours of a queue with a kit, ended with the test."""
    made: list[Neighbours] = []

    def make(queue: str) -> Neighbours:
        made.append(kit(tmp_path, queue, receiver_database))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def neighbours(stack, beside):
    return beside(stack.queue)


@pytest.fixture
def outcomes(conn):
    """Read the outcome of each event of a batch, by its id."""

    def read(batch):
        rows = conn.execute(
            "SELECT key::text, outcome FROM idempotency_keys WHERE batch_id = %s", [batch]
        ).fetchall()
        return {row["key"]: row["outcome"]["outcome"] for row in rows}

    return read
