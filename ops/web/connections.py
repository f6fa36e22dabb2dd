"""The connections of the ops page: to Postgres, its read replica if there is one, and Redis."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import psycopg
import redis
from psycopg_pool import ConnectionPool, PoolTimeout

from core.db.connection import Conn
from core.servers.identity import identity
from core.servers.redis_client import connect_once
from core.settings import Settings
from core.slots import Slots
from ops.brief_postgres import connect_briefly, pool_for_pages
from ops.heartbeat import (
    NO_HEARTBEAT,
    Heartbeat,
    heartbeat_or_none,
    redis_outage,
    with_asker,
    with_outages,
)
from ops.web.receivers import EventQueues
from ops.web.replica import Replica

AGAIN_S = 1.0  # after which a server that was away is asked again
TIMEOUT_S = 3  # a person waits for the page, so a missing server is reported soon


@dataclass
class Connections:
    settings: Settings
    pool: "ConnectionPool[Conn]"
    client: redis.Redis
    slots: Slots
    event_queues: EventQueues
    replica: Replica | None = None
    database_url: str = ""
    _database: str | None = None  # its identity, once known
    _failed: tuple[float, str] | None = None  # when there was no connection, and why

    @classmethod
    def of(cls, settings: Settings, database_url: str, redis_url: str) -> "Connections":
        """Prepare connections; each is opened at its first use."""
        client = connect_once(redis_url)
        pool = pool_for_pages(database_url, prepare=settings.database_prepare)
        read_url, prepare = settings.database_read_url, settings.database_prepare
        queues = EventQueues(settings, client)
        made = cls(settings, pool, client, Slots(client), queues, None, database_url)
        if read_url:
            made.replica = Replica(read_url, prepare, made._identity)
        return made

    def close(self) -> None:
        self.pool.close()
        if self.replica:
            self.replica.pool.close()

    @contextmanager
    def primary(self) -> Iterator[Conn]:
        """Lend a connection to the server that takes writes. Raises PoolTimeout, with the reason.

        After a failure, whoever asks within a second hears of it at once.
        """
        if self._failed and time.monotonic() - self._failed[0] < AGAIN_S:
            raise PoolTimeout(self._failed[1])
        with ExitStack() as until:
            try:
                conn = until.enter_context(self.pool.connection(timeout=TIMEOUT_S))
            except PoolTimeout as error:
                self._failed = time.monotonic(), self._reason() or str(error)
                raise PoolTimeout(self._failed[1]) from error
            self._failed = None
            yield conn

    def _reason(self) -> str | None:
        """Connect once more: a pool says nothing of why it has no connection."""
        try:
            connect_briefly(self.database_url).close()
        except psycopg.Error as error:
            return " ".join(str(error).split())
        return None

    @contextmanager
    def postgres(self) -> Iterator[Conn]:
        """Lend a connection to read from: the replica's while it answers. Raises PoolTimeout."""
        with self.reading() as (conn, _):
            yield conn

    @contextmanager
    def reading(self) -> Iterator[tuple[Conn, Replica | None]]:
        """Do so, and name the replica if it is the one that answers."""
        with ExitStack() as stack:
            conn = self.replica.borrow(stack) if self.replica else None
            yield (conn, self.replica) if conn else (stack.enter_context(self.primary()), None)

    def heartbeat(self) -> Heartbeat:
        """Read the signs of life, and whether Redis refuses to write."""
        seen = heartbeat_or_none(
            self.client, self.settings.broker_or_redis_url, self.settings.queues
        )
        if seen is not NO_HEARTBEAT and (refused := redis_outage(self.client)):
            seen = with_outages(seen, [refused])
        return with_asker(seen, self.settings, self.database_url, self._identity())

    def _identity(self) -> str | None:
        """Tell which database this is, as far as it has said so once."""
        if self._database is None:
            with suppress(psycopg.Error, PoolTimeout), self.primary() as conn:
                self._database = identity(conn)
        return self._database
