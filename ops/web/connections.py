"""The connections of the ops page to Postgres and Redis."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import redis
from psycopg_pool import ConnectionPool

from core import db
from core.db.connection import Conn
from core.heartbeat import Heartbeat
from core.settings import Settings
from core.slots import Slots, connect_once
from ops.heartbeat import read_heartbeat

TIMEOUT_S = 3  # a person waits for the page, so a missing server is reported soon


@dataclass
class Connections:
    settings: Settings
    pool: "ConnectionPool[Conn]"
    client: redis.Redis
    slots: Slots

    @classmethod
    def of(cls, settings: Settings, database_url: str, redis_url: str) -> "Connections":
        """Prepare connections; each is opened at its first use."""
        client = connect_once(redis_url)
        pool = db.connect(database_url, checked=True, prepare=settings.database_prepare)
        return cls(settings, pool, client, Slots(client))

    def postgres(self) -> AbstractContextManager[Conn]:
        """Lend a connection to Postgres. Raises PoolTimeout."""
        return self.pool.connection(timeout=TIMEOUT_S)

    def heartbeat(self) -> Heartbeat:
        broker_url = self.settings.broker_url or self.settings.redis_url or ""
        return read_heartbeat(self.client, broker_url, self.settings.queues)
