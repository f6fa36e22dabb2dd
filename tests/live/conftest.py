"""Real worker processes on the servers of this run, and an upstream that sends them messages.

With `--broker rabbitmq` their broker is a RabbitMQ node, else the Redis of the slots.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from celery import Celery
from kombu import Queue

from core.settings import Settings
from core.slots import Slots
from ops.queries.invariants import check_batches, check_slots
from ops.queues import queue_lengths
from ops.stack.leash import leashed
from tests.core import looks
from tests.rabbitmq.node import MISSING, SERVER, Node, sender


def pytest_collection_modifyitems(config, items):
    """Leave out what the broker of this run is not for, and say why."""
    if config.getoption("--broker") == "redis":
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.rabbitmq)
            if not SERVER.exists():
                item.add_marker(pytest.mark.skip(reason=MISSING))
            for only in item.iter_markers("redis_only"):
                item.add_marker(pytest.mark.skip(reason=f"on Redis alone: {only.args[0]}"))


def until(condition, timeout_s=30.0, what="the condition holds"):
    """Wait for a condition and return its value; fail by name when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{timeout_s} s passed before {what}"
        time.sleep(0.02)
    return value


class Workers:
    """Worker processes on a queue of their own, ended by pid; `settings` are those of all."""

    def __init__(self, logs: Path, **settings: str):
        self.queue = f"els-{uuid4().hex[:8]}"
        self.logs = logs
        self.settings = {"ELS_REMOTE_CONTROL": "true", **settings}  # `ready` asks the workers
        self.processes: list[subprocess.Popen] = []
        environ = {**os.environ, **settings}
        self.broker_url = environ.get("ELS_BROKER_URL", environ["ELS_REDIS_URL"])
        backend = environ["ELS_REDIS_URL"]
        self.upstream = (
            sender(self.broker_url, backend=backend)
            if self.on_rabbitmq
            else Celery("upstream", broker=self.broker_url, backend=backend)
        )

    @property
    def on_rabbitmq(self) -> bool:
        return self.broker_url.startswith("amqp")

    def start(self, *more: str, command="worker --pool solo", **settings: str):
        number = len(self.processes)
        environ = {
            **os.environ,
            "ELS_QUEUE": self.queue,
            "ELS_EVENTS_QUEUE": f"{self.queue}.events",
            "ELS_VISIBILITY_TIMEOUT": "5",
            "REMAP_SIGTERM": "SIGQUIT",
            **self.settings,
            **settings,
        }
        name = [] if command == "beat" else ["-n", f"{self.queue}-{number}@test"]
        argv = [sys.executable, "-m", "celery", "-A", "tasks.app", *command.split(), *name, *more]
        with (self.logs / f"{number}.log").open("wb") as log:
            process = subprocess.Popen(
                leashed(argv, signal.SIGKILL),  # an interrupted run may not come to stop it
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def stand_by(self):
        """Start a worker that takes nothing until it is told to take over."""
        self.start("-Q", f"{self.queue}-later")
        self.waiting = f"{self.queue}-{len(self.processes) - 1}@test"

    def take_over(self):
        """Let the worker that stands by take messages."""
        for queue in Settings(queue=self.queue).queues:
            reply = self.upstream.control.add_consumer(
                queue, destination=[self.waiting], reply=True, timeout=10, limit=1
            )
            assert reply, "the worker that stands by does not answer"

    def ready(self, count: int):
        """Wait until so many workers take messages."""
        names = [f"{self.queue}-{n}@test" for n in range(len(self.processes))]
        answered = set()  # on a slow machine they answer one at a time

        def answering():
            with suppress(redis.ConnectionError):  # the next ping connects again
                for answer in self.upstream.control.ping(destination=names, timeout=0.5):
                    answered.update(answer)
            return len(answered) >= count

        until(answering, 60, f"{count} workers are ready")
        return self

    def send(self, task: str, event: dict, **options):
        return self.upstream.send_task(
            task, kwargs={"event": event}, queue=self.queue, ignore_result=False, **options
        )

    @contextmanager
    def broker(self):
        """Connect to the broker as a program that is none of ours."""
        with self.upstream.connection_for_write() as connection:
            yield connection

    def waiting(self, suffix: str = "") -> int:
        """Count the messages that nobody has taken."""
        with self.broker() as connection:
            return sum(queue_lengths(connection, [self.queue + suffix]).values())

    def take(self, suffix: str) -> list[str]:
        """Take the messages of a queue away; return their tasks."""
        tasks = []
        with self.broker() as connection:
            queue = Queue(self.queue + suffix).bind(connection.default_channel)
            while self.waiting(suffix) and (message := queue.get()):
                tasks.append(message.headers["task"])
                message.ack()
        return tasks

    def values(self, results, timeout_s=60):
        return [result.get(timeout=timeout_s) for result in results]

    def close(self):
        """End everything. Hundreds of queues would slow a RabbitMQ down, so delete them."""
        self.stop()
        if self.on_rabbitmq:
            self._delete_queues()
        self.upstream.close()

    def stop(self):
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def _delete_queues(self):
        with self.broker() as connection:
            for end in ("", ".internal", ".control", ".events", ".dead", "-later"):
                connection.default_channel.queue_delete(self.queue + end)


@pytest.fixture(scope="session")
def on_broker(request, tmp_path_factory):
    """The settings of workers that use the broker of this run."""
    if request.config.getoption("--broker") == "redis":
        yield {}
        return
    node = Node(tmp_path_factory.mktemp("rabbitmq"))
    node.start()
    yield {"ELS_BROKER_URL": node.url}
    node.do("stop")


@pytest.fixture(scope="module")
def five(database_url, tmp_path_factory, on_broker):
    """Five workers of one process each, and a sixth process that is beat."""
    workers = Workers(tmp_path_factory.mktemp("workers"), **on_broker)
    for _ in range(5):
        workers.start()
    yield workers.ready(5)
    workers.close()


@pytest.fixture
def workers(database_url, tmp_path, on_broker):
    """A place to start workers in, all ended with the test."""
    started = Workers(tmp_path, **on_broker)
    yield started
    started.close()


@pytest.fixture
def batch_row(conn):
    def read(batch_id):
        row = conn.execute(
            "SELECT * FROM batch_essay_trackers WHERE batch_id = %s", [batch_id]
        ).fetchone()
        return row or {}

    return read


@pytest.fixture
def events_of(conn):
    def read(batch_id, event_type=None):
        rows = conn.execute(
            "SELECT * FROM event_outbox WHERE batch_id = %s ORDER BY sequence", [batch_id]
        ).fetchall()
        return [row for row in rows if event_type in (None, row["type"])]

    return read


@pytest.fixture
def assert_invariants(conn, valkey):
    def broken(batches):
        return [i for i in check_batches(conn, batches) if not i.holds]

    def check(*batches):
        """Wait until the workers are done with these batches; then all must hold."""
        until(
            lambda: not {i.title for i in broken(batches)} & looks.AT_REST_ONLY,
            what=f"all of {batches} is announced and delivered",
        )
        assert broken(batches) == []
        assert check_slots(conn, Slots(valkey), batches).holds

    return check
