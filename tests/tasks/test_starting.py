"""A worker waits for its schema, on a real Postgres and Redis."""

import threading

import pytest
from structlog.testing import capture_logs

from core import db
from core.settings import Settings
from core.signs.heartbeat import SIGN
from tasks.worker import starting
from tests.factories import new_batch
from tests.ops.served import own_database

WORKER = "test@waiting"


@pytest.fixture
def owner(database_url, monkeypatch):
    """A connection to a migrated database of its own, which the settings name."""
    with own_database(database_url, new_batch().replace("-", "_")) as url:
        monkeypatch.setenv("ELS_DATABASE_URL", url)
        with db.connect_once(url) as conn:
            yield conn


def test_waiting_for_a_schema_ends_when_it_is_there_or_when_told(
    owner, valkey, monkeypatch, tmp_path
):
    monkeypatch.setenv("ELS_HOME", str(tmp_path))
    monkeypatch.setattr(starting, "ASK_EVERY_S", 0.1)
    monkeypatch.setattr(starting, "BEAT_EVERY_S", 0.01)
    monkeypatch.setattr(starting, "settings", Settings.from_env())
    stopped = threading.Event()
    owner.execute("ALTER TABLE dead_letters RENAME TO other")

    with capture_logs() as logs:
        threading.Timer(0.5, stopped.set).start()
        starting.wait_for_schema(WORKER, stopped)
        owner.execute("ALTER TABLE other RENAME TO dead_letters")
        starting.wait_for_schema(WORKER, threading.Event())

    assert [each["step"] for each in logs] == ["ALTER TABLE other RENAME TO dead_letters"]
    assert b"RENAME TO dead_letters" in valkey.getdel(SIGN.format(worker=WORKER)).encode()
    assert len([*tmp_path.glob("worker-*.alive")]) == 1
