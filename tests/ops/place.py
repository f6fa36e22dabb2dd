"""Servers of a test's own, and `els` on them in this process."""

import json
import os
from contextlib import contextmanager
from uuid import uuid4

import redis
from typer.testing import CliRunner

from core import db
from core.db.dead_letters import DeadLetter
from core.lifecycle import Lifecycle
from core.slots import Slots
from ops.cli.main import app
from ops.explain.causes import TITLES
from ops.queries import actions, batches, dead_letters
from tests import factories as make
from tests.ops.served import own_database, own_redis


class Place:
    def __init__(self, database_url, redis_url):
        self.urls = {"ELS_DATABASE_URL": database_url, "ELS_REDIS_URL": redis_url}
        self.pool = db.connect(database_url, size=2)
        self.client = redis.Redis.from_url(redis_url, decode_responses=True)
        self.lifecycle = Lifecycle(self.pool, Slots(self.client))

    def els(self, *arguments):
        given = [str(each) for each in arguments]
        return CliRunner().invoke(app, given, env={"COLUMNS": "120", **self.urls})

    def actions(self, **wanted):
        with self.pool.connection() as conn:
            return actions.newest(conn, actions.Wanted(**wanted), 1000)

    def park(self, batch_id=None, task="els.cancel_batch", code="UNKNOWN_BATCH", body=None):
        kept = json.dumps(body or make.cancellation(batch_id or "batch-x"))
        letter = DeadLetter(task, str(uuid4()), batch_id, kept, code, "why")
        with self.pool.connection() as conn:
            return db.dead_letters.add(conn, letter)

    def letter(self, number):
        with self.pool.connection() as conn:
            return dead_letters.letter(conn, number)

    def sent(self):
        """The messages that wait in the queue, without their envelope."""
        found = [json.loads(each) for each in reversed(self.client.lrange("els", 0, -1))]
        return [(each["headers"]["task"], each["headers"]["id"]) for each in found]

    def timeline(self, batch_id):
        with self.pool.connection() as conn:
            return [row["what"] for row in batches.timeline(conn, batch_id, TITLES)]


@contextmanager
def a_place(database_url):
    with own_database(database_url, f"place_{uuid4().hex[:8]}") as url:
        made = Place(url, own_redis(os.environ["ELS_REDIS_URL"]))
        try:
            yield made
        finally:
            made.pool.close()
            made.client.close()
