"""The tasks in eager mode: in this process, with the real stores and the real broker."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from uuid import uuid4

import pytest
from kombu.asynchronous import Hub
from structlog.testing import capture_logs

from tasks import maintenance as _registered  # noqa: F401 - its tasks
from tasks import upstream
from tasks.app import app
from tasks.resources import resources
from tasks.worker.batching import Call
from tests.core.crowd import until
from tests.factories import new_batch

ASSIGN = "els.assign_content"


def call(event, embed=None):
    """Write the message of a content as a process of the pool gets it, among others of its job."""
    task_id = str(uuid4())
    payload = ((), {"event": event}, embed or {"callbacks": None, "chain": None, "chord": None})
    return Call(ASSIGN, task_id, {"id": task_id, "ignore_result": True}, payload)


@pytest.fixture(scope="package", autouse=True)
def _eager(database_url):
    before = app.conf.task_always_eager
    app.conf.task_always_eager = True
    resources()  # now, and closed before the end of eager mode, so that no thread pushes counts
    yield
    resources().pool.close()
    resources.cache_clear()
    app.conf.task_always_eager = before


@pytest.fixture(autouse=True)
def _empty_broker(valkey):
    valkey.flushdb()


@pytest.fixture
def hub():
    """Open an event loop, as a worker's parent has one."""
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def batch_id():
    return new_batch()


@pytest.fixture
def send():
    """Send an event to a task, as a message would; return the task's value."""

    def sent(name, event, **options):
        return app.tasks[name].apply(kwargs={"event": event}, **options).get()

    return sent


@pytest.fixture
def logged():
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def claimed_by_another(logged):
    """Let another message hold the slot of a batch until a task was tried again."""

    @contextmanager
    def hold(batch_id):
        slots = resources().slots
        claims = slots.claim({batch_id: ["text-of-another"]})[batch_id]

        def release_after_a_retry():
            until(lambda: [line for line in logged if line["event"] == "retried"])
            slots.release(batch_id, claims, still_open=True)

        with ThreadPoolExecutor(1) as crowd:
            releasing = crowd.submit(release_after_a_retry)
            yield
            releasing.result()

    return hold


@pytest.fixture
def dead_letters(conn):
    """Read the dead letters of a task id."""

    def kept(task_id):
        query = "SELECT * FROM dead_letters WHERE task_id = %s ORDER BY id"
        return conn.execute(query, [task_id]).fetchall()

    return kept


@pytest.fixture
def messages(valkey):
    """Read the messages of a queue, oldest first, as any Celery consumer would."""

    def waiting(queue="els.events"):
        found = [json.loads(raw) for raw in reversed(valkey.lrange(queue, 0, -1))]
        for message in found:
            args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
            message["args"], message["kwargs"] = args, kwargs
        return found

    return waiting


@pytest.fixture
def impatient(monkeypatch):
    """Let retries be over after a few."""
    brief = upstream.settings.model_copy(update={"retry_for": 1.0})
    monkeypatch.setattr(upstream, "settings", brief)


@pytest.fixture
def break_connections(conn):
    """End every connection that the tasks hold, on the server's side."""

    def end():
        pool = resources().pool
        with ExitStack() as held:
            count = max(1, pool.get_stats().get("pool_size", 0))
            taken = [held.enter_context(pool.connection()) for _ in range(count)]
            pids = [connection.info.backend_pid for connection in taken]
        for pid in pids:
            conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    return end
