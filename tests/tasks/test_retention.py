"""Beat's purge: off by default, and with `ELS_RETENTION_DAYS` it deletes and counts."""

import subprocess
import sys

import pytest

from core import metrics
from core.retention import RETENTION
from tasks import maintenance
from tests.core import looks, story
from tests.factories import new_batch

SCHEDULE = "from tasks.app import app; print(*sorted(app.conf.beat_schedule))"


@pytest.fixture
def ended(lifecycle, conn):
    """A batch that ended two years ago."""
    batch_id = new_batch()
    story.register(lifecycle, batch_id, 1)
    story.cancel(lifecycle, batch_id)
    conn.execute("UPDATE event_outbox SET published_at = now() WHERE batch_id = %s", [batch_id])
    conn.execute(
        "UPDATE batch_essay_trackers SET closed_at = now() - interval '730 days'"
        " WHERE batch_id = %s",
        [batch_id],
    )
    return batch_id


def test_without_the_setting_nothing_is_deleted(ended, conn):
    assert maintenance.purge() == {}
    assert looks.batch(conn, ended) is not None


def test_with_the_setting_old_batches_go_and_are_counted(ended, conn, monkeypatch):
    changed = maintenance.settings.model_copy(update={"retention_days": 729.0})
    monkeypatch.setattr(maintenance, "settings", changed)
    before = metrics.PURGED.labels("batches")._value.get()

    purged = maintenance.purge()

    assert purged["batches"] >= 1
    assert looks.batch(conn, ended) is None
    assert metrics.PURGED.labels("batches")._value.get() - before == purged["batches"]
    row = conn.execute(
        "SELECT status, purged_by FROM purged_batches WHERE batch_id = %s", [ended]
    ).fetchone()
    assert row == {"status": "cancelled", "purged_by": RETENTION}


@pytest.mark.parametrize(("days", "ticks"), [("", "relay sweep"), ("90", "purge relay sweep")])
def test_beat_sends_the_purge_only_with_the_setting(days, ticks):
    told = subprocess.run(
        [sys.executable, "-c", SCHEDULE],
        env={"ELS_RETENTION_DAYS": days},
        capture_output=True,
        text=True,
        check=True,
    )

    assert told.stdout.split() == ticks.split()
