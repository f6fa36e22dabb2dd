"""Workers on a RabbitMQ node of this run."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from kombu import pools
from kombu.exceptions import OperationalError

from core.slots import Slots
from ops.queries.invariants import check_batches, check_slots
from tests.core import looks
from tests.live.conftest import Workers, until
from tests.rabbitmq.node import MISSING, SERVER, Node


def pytest_collection_modifyitems(items):
    missing = pytest.mark.skip(reason=MISSING)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.rabbitmq)
            if not SERVER.exists():
                item.add_marker(missing)


class RabbitWorkers(Workers):
    """Worker processes on RabbitMQ, with a queue of their own and its policy."""

    def __init__(self, logs: Path, node: Node):
        pools.reset()  # Kombu shares connections by URL: those of a test before may be dead
        super().__init__(logs, ELS_BROKER_URL=node.url)
        self.node = node

    def start(self, *more, command="worker --pool prefork --concurrency 1", **settings):
        return super().start(*more, command=command, **settings)

    def send(self, task: str, event: dict, **options):
        return self.upstream.send_task(
            task, kwargs={"event": event}, queue=self.queue, ignore_result=True, **options
        )

    def send_for_sure(self, task: str, event: dict):
        """Send as a service does that lost a connection: once more, until it is confirmed."""
        until(lambda: self._sent(task, event), 60, "the broker takes a message")

    def _sent(self, task, event):
        try:
            return self.send(task, event)
        except (OSError, OperationalError):
            return None

    def send_with_eta(self, task: str, event: dict, wait_s: float):
        """Put a message with an eta straight into the queue, as a sender with other settings."""
        app, task_id = self.upstream, str(uuid4())
        eta = datetime.now(UTC) + timedelta(seconds=wait_s)
        message = app.amqp.create_task_message(task_id, task, (), {"event": event}, eta=eta)
        with app.producer_or_acquire() as producer:
            app.amqp.send_task_message(producer, task, message, queue=self.queue)
        return eta

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.logs.glob("*.log"))

    def depth(self, name: str = "") -> int:
        """Count the messages of a queue that wait."""
        with self.node.connection() as connection:
            return connection.default_channel.queue_declare(
                f"{self.queue}{name}", passive=True
            ).message_count


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    started = Node(tmp_path_factory.mktemp("rabbitmq"))
    started.start()
    yield started
    started.do("stop")


@pytest.fixture
def workers(database_url, tmp_path, node):
    """A place to start workers in, all ended with the test."""
    started = RabbitWorkers(tmp_path, node)
    yield started
    started.close()


@pytest.fixture(scope="module")
def worker(database_url, tmp_path_factory, node):
    """One worker for all tests of a module."""
    started = RabbitWorkers(tmp_path_factory.mktemp("worker"), node)
    started.start()
    yield started.ready(1)
    started.close()


@pytest.fixture
def policed(workers, node):
    """The same, where the administrator has set the policy."""
    node.do("policy", workers.queue)
    return workers


@pytest.fixture
def outcome_of(conn):
    def find(event):
        row = conn.execute(
            "SELECT outcome FROM idempotency_keys WHERE key::text = %s", [event["event_id"]]
        ).fetchone()
        return row and row["outcome"]

    return find


@pytest.fixture
def letters(conn):
    """The dead letters that were written since the test began."""
    [first] = conn.execute("SELECT coalesce(max(id), 0) AS id FROM dead_letters").fetchall()

    def find():
        return conn.execute(
            "SELECT * FROM dead_letters WHERE id > %s ORDER BY id", [first["id"]]
        ).fetchall()

    return find


@pytest.fixture
def assert_invariants(conn, valkey):
    def broken(batches):
        return [i for i in check_batches(conn, batches) if not i.holds]

    def ready(batches):
        return conn.execute(
            "SELECT count(DISTINCT batch_id) AS ready FROM event_outbox WHERE batch_id = ANY(%s)"
            " AND type = 'BatchEssaysReady' AND published_at IS NOT NULL",
            [batches],
        ).fetchone()["ready"]

    def check(batches, timeout_s=60):
        """Wait until these batches are ready and at rest; then all must hold."""
        until(lambda: ready(batches) == len(batches), timeout_s, "each batch is ready")
        until(
            lambda: not {i.title for i in broken(batches)} & looks.AT_REST_ONLY,
            timeout_s,
            "all batches are announced and delivered",
        )
        assert broken(batches) == []
        assert check_slots(conn, Slots(valkey), batches).holds

    return check
