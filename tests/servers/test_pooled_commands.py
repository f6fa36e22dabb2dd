"""Every `els` command that uses Postgres, through PgBouncer in transaction mode on few sessions."""

import json
import os
from contextlib import ExitStack

import pytest
import redis
from typer.testing import CliRunner

from core import db
from core.lifecycle import Lifecycle
from core.slots import Slots
from ops.cli.main import app
from ops.queries.invariants import check_batches
from tests.core import story
from tests.ops.served import own_redis
from tests.servers.postgres import PgBouncer, folder

FILLED, OPEN = "batch-filled", "batch-open"
COMMANDS = [
    ("status",),
    ("status", OPEN),
    ("status", "--stuck"),
    ("explain", OPEN),
    ("find", FILLED),
    ("dead-letters", "list"),
    ("outbox", "list"),
    ("reconcile", "--yes"),
    ("reconcile", OPEN, "--dry-run"),
    ("amend", OPEN, "--deadline", "3d", "--reason", "of a test", "--yes"),
    ("cancel", OPEN, "--reason", "of a test", "--yes"),
    ("outbox", "republish", "--since", "2h", "--yes"),
    ("actions", "list"),
    ("erase", "--student", "student-1", "--reason", "of a test", "--dry-run"),
    ("purge", "--older-than", "1", "--dry-run"),
    ("purge", "--older-than", "1", "--yes"),
    ("migrate", "--check"),
    ("migrate", "--yes"),
    ("migrate", "--roles", "--yes"),
]


@pytest.fixture(scope="module")
def pooled(node):
    """The URLs through a pooler with two sessions of the server, and two batches behind it."""
    with folder("pgbouncer") as path, ExitStack() as undo:
        pooler = PgBouncer(path / "pgbouncer")
        undo.callback(pooler.end)
        pooler.start(node, "transaction", default_pool_size=2)
        urls = {
            "ELS_DATABASE_URL": pooler.url,
            "ELS_REDIS_URL": own_redis(os.environ["ELS_REDIS_URL"]),
        }
        client = undo.enter_context(
            redis.Redis.from_url(urls["ELS_REDIS_URL"], decode_responses=True)
        )
        client.flushdb()
        pool = undo.enter_context(db.connect(node.url))
        lifecycle = Lifecycle(pool, Slots(client))
        story.fill(lifecycle, FILLED, 2)
        story.register(lifecycle, OPEN, 2)
        story.assign(lifecycle, OPEN, "text-1")
        yield urls


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_does_its_work_through_a_pooler(pooled, command):
    done = CliRunner().invoke(app, [*command, "--json"], env={"COLUMNS": "120", **pooled})

    assert done.exit_code == 0, done.output + str(done.exception)
    assert json.loads(done.stdout) is not None


def test_nothing_is_left_behind_it(pooled, node):
    relayed = "Every event was delivered"  # by workers; none runs here
    with db.connect_once(node.url) as conn:
        checked = check_batches(conn, [FILLED, OPEN])
        broken = [each for each in checked if not each.holds and each.title != relayed]
        left = conn.execute("SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory'")
        locks = left.fetchone()["n"]
        kept = {row["action"] for row in conn.execute("SELECT action FROM operator_actions")}

    assert broken == []
    assert locks == 0
    assert {"cancel", "amend", "republish"} <= kept
