"""An explanation within 3 s, whatever is locked, frozen or away: from the parts that answer.

Redis, the broker and Postgres are asked at once, each in a thread with a limit. A thread that hangs
is left behind: it ends with the command.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

import psycopg
import redis

from core.db.connection import Conn
from core.faults import sqlstate
from core.probe import probe_postgres
from core.servers.away import addresses, away
from core.servers.finding import Finding
from core.servers.handshake import describe, speaks_plainly
from core.servers.identity import identity
from core.servers.redis_client import connect_once
from core.servers.rights import NO_RIGHT
from core.servers.urls import is_redis, kind_and_path
from core.settings import Settings
from core.signs.pauses import Outage
from core.slots import Slots
from ops.brief_postgres import connect_briefly
from ops.by_hand import short_limits_of, what_lacks
from ops.explain.causes import CAUSES, Cause
from ops.explain.clues import Clue
from ops.explain.consumers import (
    celery_workers,
    consumer_clues,
    popping_clues,
    refused_clues,
    waiting_clients,
)
from ops.explain.explanation import Explanation, explain
from ops.explain.locks import locks, standby_awaited
from ops.explain.message_clues import (
    GONE_WORKER,
    lacks_messages,
    message_clues,
    with_lost,
    with_messages,
)
from ops.explain.messages import messages_of, none_left
from ops.explain.of_one_batch import first_registered
from ops.explain.rabbitmq import NOTHING_AROUND, Around, look_around
from ops.explain.service_causes import (
    ENDS_SESSIONS,
    LOCKED,
    RESTORE,
    lock_causes,
    look_at,
    schema_missing,
    service_causes,
)
from ops.explain.sign_clues import A_DAY, eviction_clues, sign_clues, timeout_clues
from ops.heartbeat import (
    ASKER,
    CUT_SHORT,
    LOCK_S,
    NO_HEARTBEAT,
    NO_SCHEMA,
    Heartbeat,
    ask_waiting,
    heartbeat_of_queues,
    redis_outage,
    with_asker,
    with_obstacle,
    with_outages,
)
from ops.installation import command
from ops.queues import UNANSWERED
from ops.receivers import NO_RECEIVERS, Receivers, read_receivers
from ops.stack.home import Endpoints
from ops.wording import one_line, words_of

PLAIN_S = 0.3  # for a Redis to answer without TLS
TURN_S = 0.05  # of waiting for an answer
REDIS_S = 0.8  # for one answer
AMQP_S = 2.2  # for RabbitMQ
AWAY_S = 0.05  # the same, of a Redis that has not answered just now
SIGNS_S = 1.8  # for all signs of life, and the broker's counts
ANSWER_S = 2.8  # for all of RabbitMQ
BATCH_S = 10.0  # for Postgres, where the machine is slow: each statement has a limit of its own
OF_KOMBU = {"unacked": "hash", "unacked_index": "zset"}  # what workers hold, and since when
FILLS = timedelta(seconds=10)  # after its last content a batch fills no more
ENDED = (  # says a client
    "closed the connection unexpectedly",
    "terminating connection",
    "the connection is closed",
)
BY_SOMEBODY = (  # the same, of a session that somebody has ended
    "closed the connection unexpectedly",
    "administrator command",
    "the connection is closed",
)
DAMAGED = ("58", "XX")  # classes: its system refuses it a file, or a file is not what it wrote
UNREGISTERED = {"unknown", "not_registered"}
UNSAID = Clue("the broker does not say whether messages for the batch wait there")
T = TypeVar("T")


def look_around_for(settings: Settings, broker_url: str, batch: str) -> Around:
    """Look around in the broker, in Redis for messages of a batch.

    Raises one of UNANSWERED, or ValueError.
    """
    if not is_redis(broker_url):
        return look_around(broker_url, settings.queue)
    with connect_once(broker_url, timeout_s=REDIS_S) as client:
        if wrong := wrong_type(client):
            return replace(NOTHING_AROUND, alarm=wrong)
        evictions, consumers = [*eviction_clues(client)], waiting_clients(client)
        lying = messages_of(client, settings.queues, batch)
        otherwise = [*refused_clues(client, settings.queue), *popping_clues(client)]
        nowhere = not lying and none_left(client, settings.queue)
    found = message_clues(lying, settings.queue, kind_and_path(broker_url))
    return Around([*found, *evictions], None, consumers, otherwise, nowhere)


def wrong_type(client: redis.Redis) -> Outage | None:
    """Find a key of the broker, besides its queues, that another program has written.

    Raises redis.RedisError.
    """
    for key, wanted in OF_KOMBU.items():
        found = str(client.type(key))
        if found not in (wanted, "none"):
            return Outage("broker", f"WRONGTYPE the key {key} is a {found}, not a {wanted}")
    return None


def with_broker(explanation: Explanation, settings: Settings) -> Explanation:
    """Add where messages of the batch lie, to an explanation for a page.

    Costs nothing of a batch that lacks no message, that fills just now, or that nobody knows; at
    most some 1.2 s, of a very long queue. Pages are asked for often, and by anybody.
    """
    calm = datetime.now(UTC) - FILLS
    if not lacks_messages(
        [each for each in explanation.causes if each.since and each.since < calm]
    ):
        return explanation
    try:
        seen = look_around_for(settings, settings.broker_or_redis_url, explanation.batch_id)
    except (*UNANSWERED, ValueError):  # which another cause says
        return explanation
    return replace(
        explanation, causes=with_messages(explanation.causes, seen.clues, seen.otherwise)
    )


class Waiting:
    """How long whoever asks has waited, in short turns.

    On a machine that is too busy to run us a turn takes far longer: that is no fault of a server.
    """

    def __init__(self) -> None:
        self.s = 0.0

    def turn(self, thread: threading.Thread) -> None:
        began = time.monotonic()
        thread.join(TURN_S)
        took_s = time.monotonic() - began
        self.s += took_s if took_s < 2 * TURN_S else TURN_S


class Asked(Generic[T]):
    """A question in a thread of its own: `answer` waits until so many seconds, and no longer."""

    def __init__(self, ask: Callable[[], T], waiting: Waiting) -> None:
        self._ask, self._waiting = ask, waiting
        self._found: list[T] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._ask())
        except Exception as error:  # noqa: BLE001 - raised again where the answer is wanted
            self._error = error

    def answer(self, until_s: float) -> T:
        """Return the answer. Raises what the question raised, or TimeoutError."""
        while self._thread.is_alive() and self._waiting.s < until_s:
            self._waiting.turn(self._thread)
        if self._error:
            raise self._error
        if not self._found:
            raise TimeoutError("no answer in time")
        return self._found[0]


@dataclass
class Looking:
    """One explanation under way: what it asks, until when, and what did not answer."""

    settings: Settings
    found: Endpoints
    batch: str
    waiting: Waiting = field(default_factory=Waiting)
    unanswered: list[str] = field(default_factory=list)

    def explain(self) -> Explanation:
        """Ask everything at once; explain from what has answered."""
        client = connect_once(self.found.redis_url, timeout_s=REDIS_S)
        broker, queues = self.found.broker_url, self.settings.queues
        signs = self._ask(lambda: heartbeat_of_queues(client, broker, queues, 0))
        writes = self._ask(lambda: redis_outage(client))
        waiting = self._ask(lambda: ask_waiting(broker, queues))
        around = self._ask(self._around)
        others = self._ask(lambda: celery_workers(broker, queues))
        receivers = self._ask(lambda: read_receivers(self.settings, client, broker))
        postgres = self._ask(lambda: connect_briefly(self.found.database_url))
        heartbeat, error = self._signs(signs)
        heartbeat = self._with_waiting(heartbeat, waiting)
        seen = self._receivers(receivers)
        try:
            conn: Conn | None = postgres.answer(BATCH_S)
            refused: Exception | None = None
        except (psycopg.Error, TimeoutError) as raised:
            conn, refused = None, raised
        seen_around = self._seen_around(around, self.broker_s)
        alarms = [seen_around.alarm] if seen_around.alarm else []
        heartbeat = with_outages(heartbeat, [*self._outage(writes), *alarms])
        heartbeat = replace(heartbeat, consumers=seen_around.consumers, others=self._others(others))
        url, up = self.found.database_url, self.found.pid > 0
        heartbeat = with_asker(heartbeat, self.settings, url, self._identity(conn), up=up)
        if conn is None:
            assert refused is not None
            return self._without_postgres(heartbeat, error, refused)
        try:
            if error:  # nobody waits for it again
                client = connect_once(self.found.redis_url, timeout_s=AWAY_S)
            explanation = self._with_postgres(conn, Slots(client), heartbeat, seen, error)
            until_s = BATCH_S if is_redis(broker) else ANSWER_S  # Redis: each search has a limit
            seen_around = self._seen_around(around, until_s)
            since = self._known_since(conn, explanation)
            clues = [*seen_around.clues, *self._sign_clues(heartbeat, since)]
            if any(GONE_WORKER in each.text for each in clues):
                clues += timeout_clues(heartbeat)
            causes = with_lost(explanation.causes) if seen_around.nowhere else explanation.causes
            causes = with_messages(causes, clues, seen_around.otherwise)
            return replace(explanation, causes=causes)
        finally:
            conn.close()

    def _ask(self, question: Callable[[], T]) -> Asked[T]:
        return Asked(question, self.waiting)

    def _signs(self, signs: Asked[Heartbeat]) -> tuple[Heartbeat, str | None]:
        """Return the heartbeat, and the error of a Redis that does not answer."""
        try:
            return signs.answer(SIGNS_S), None
        except (redis.RedisError, TimeoutError) as error:
            self.unanswered.append("redis")
            return NO_HEARTBEAT, _without_tls(self.found.redis_url) or str(error)

    def _with_waiting(
        self, heartbeat: Heartbeat, waiting: Asked[tuple[int, datetime | None]]
    ) -> Heartbeat:
        """Add how many messages wait, or the error of a broker that does not say so."""
        try:
            number, oldest = waiting.answer(self.broker_s)
            return replace(heartbeat, waiting=number, oldest_sent=oldest)
        except (*UNANSWERED, TimeoutError) as error:
            self.unanswered.append("broker")
            said = _without_tls(self.found.broker_url) or words_of(error)
            return replace(heartbeat, waiting=None, broker_error=said)

    def _around(self) -> Around:
        return look_around_for(self.settings, self.found.broker_url, self.batch)

    def _seen_around(self, around: Asked[Around], until_s: float) -> Around:
        try:
            return around.answer(until_s)
        except (*UNANSWERED, TimeoutError, ValueError):
            return replace(NOTHING_AROUND, clues=[UNSAID])

    def _known_since(self, conn: Conn, explanation: Explanation) -> datetime | None:
        """Return from when on what was dropped may concern the batch; None: nothing was there."""
        if explanation.state not in UNREGISTERED:
            return explanation.sides.get("postgres", {}).get("registered_at")
        try:
            first = self._ask(lambda: first_registered(conn)).answer(BATCH_S)
        except (psycopg.Error, TimeoutError):
            return None
        return max(first, datetime.now(UTC) - A_DAY) if first else None

    def _sign_clues(self, heartbeat: Heartbeat, since: datetime | None) -> Iterator[Clue]:
        has_queue = self.found.broker_url == self.found.redis_url
        yield from consumer_clues(heartbeat)
        yield from sign_clues(heartbeat, since, has_queue=has_queue)

    def _others(self, others: Asked[dict[str, list[str]]]) -> dict[str, list[str]]:
        try:
            return others.answer(self.broker_s)
        except (*UNANSWERED, TimeoutError):
            return {}

    @property
    def broker_s(self) -> float:
        """How long the broker has to answer: RabbitMQ needs some round trips to log in."""
        return SIGNS_S if is_redis(self.found.broker_url) else AMQP_S

    def _receivers(self, receivers: Asked[Receivers]) -> Receivers:
        try:
            seen = receivers.answer(SIGNS_S)
        except (redis.RedisError, TimeoutError):
            seen = replace(NO_RECEIVERS, answered=False)
        if not seen.answered and not self.unanswered:
            self.unanswered.append("receivers")
        return seen

    def _outage(self, writes: Asked[Outage | None]) -> list[Outage]:
        try:
            outage = writes.answer(SIGNS_S)
        except (*UNANSWERED, TimeoutError):
            return []
        return [outage] if outage and "redis" not in self.unanswered else []

    def _identity(self, conn: Conn | None) -> str | None:
        try:
            return self._ask(lambda: identity(conn)).answer(BATCH_S) if conn else None
        except (psycopg.Error, TimeoutError):
            return None  # the next question of this connection will say so

    def _with_postgres(
        self,
        conn: Conn,
        slots: Slots,
        heartbeat: Heartbeat,
        receivers: Receivers,
        error: str | None,
    ) -> Explanation:
        """Explain the batch; where Postgres stops answering meanwhile, everything else."""

        def look() -> Explanation:
            outage, tried = standby_awaited(conn), False
            if outage is None and not locks(conn):
                outage, tried = probe_postgres(conn, lock_timeout_s=LOCK_S), True
            outages = [outage] if outage else []
            seen = with_outages(heartbeat, outages, tried="postgres" if tried else None)
            seen = with_obstacle(seen, conn)
            return explain(conn, slots, self.batch, seen, receivers, redis_error=error)

        try:
            explanation = self._ask(look).answer(BATCH_S)
        except (psycopg.Error, TimeoutError) as raised:
            return self._without_postgres(heartbeat, error, raised, conn)
        return replace(explanation, unanswered=self.unanswered)

    def _without_postgres(
        self,
        heartbeat: Heartbeat,
        error: str | None,
        raised: Exception,
        conn: Conn | None = None,
    ) -> Explanation:
        """Explain without the rows of the batch."""
        self.unanswered.append("postgres")
        why = self._of_postgres(heartbeat, raised, conn)
        others = [*service_causes({"error": error} if error else {}, heartbeat)]
        if _worker_lacks_schema(heartbeat):  # its sign names the database from before
            others = [each for each in others if each.code != "worker_other_database"]
        since = next((each.since for each in others if _of_postgres(each)), None)
        causes = [replace(each, since=each.since or since) for each in why]
        causes += [each for each in others if not _of_postgres(each)]  # which is said already
        # A worker of another database: that one is the right one, and this one needs no schema.
        causes.sort(key=lambda each: each.code != "worker_other_database")
        return Explanation(self.batch, "unread", causes, [], unanswered=self.unanswered)

    def _short_limits(self) -> Finding | None:
        """Look whether a limit has ended the connection of whoever asks."""
        try:
            url = self.found.database_url
            return self._ask(lambda: short_limits_of(url)).answer(ANSWER_S)
        except (psycopg.Error, TimeoutError):
            return None

    def _of_postgres(
        self, heartbeat: Heartbeat, raised: Exception, conn: Conn | None
    ) -> list[Cause]:
        """Say why Postgres does not let the batch be read."""
        state = sqlstate(raised)
        words = _said(raised)
        if conn is not None and state in NO_SCHEMA:
            with suppress(psycopg.Error):
                found = self._ask(lambda: what_lacks(conn)).answer(BATCH_S)
                return [schema_missing(found, words, None, heartbeat)]
        if conn is not None and state == LOCKED:
            held = self._ask(lambda: locks(conn)).answer(BATCH_S)
            if held:
                return [*lock_causes(held)]
        if state == NO_RIGHT:
            return [CAUSES["cannot_read"].fill(error=words)]
        step = look_at("postgres", words)
        if (state in CUT_SHORT or any(each in words for each in ENDED)) and (
            limit := self._short_limits()
        ):
            cause = CAUSES["server_refuses"].fill(
                server="Postgres", step=command(limit.step), error=f"{limit.wrong} ({words})"
            )
            return [replace(cause, title="Postgres ends what this service begins")]
        if any(each in words for each in BY_SOMEBODY):
            title = "Somebody ends sessions of Postgres, or it is stopping"
            why = f"a person, a job or a pooler did so to that of this command ({words})"
            cause = CAUSES["postgres_unreachable"].fill(error=why, step=ENDS_SESSIONS)
            return [replace(cause, title=title)]
        if isinstance(raised, psycopg.Error) and describe(raised):
            finding = away("postgres", self.found.database_url, raised)
            words, step = f"{finding.wrong}; {finding.why}", finding.step
        cause = CAUSES["postgres_unreachable"].fill(error=words, step=step)
        damaged = replace(cause, title="Postgres cannot read its own files", command=RESTORE)
        return [damaged if conn and (state or "").startswith(DAMAGED) else cause]


def _without_tls(url: str) -> str | None:
    """Say that a Redis speaks no TLS where its URL wants it: a client only waits for an answer."""
    if not url.startswith("rediss://"):
        return None
    at, _ = next(addresses(url))
    plain = speaks_plainly(at, PLAIN_S)
    return "it speaks no TLS at this port, and the URL begins with rediss://" if plain else None


def _of_postgres(cause: Cause) -> bool:
    """Tell whether a process that waits for Postgres is the cause."""
    return cause.code == "schema_missing" or cause.title.startswith("Postgres refuses")


def _worker_lacks_schema(heartbeat: Heartbeat) -> bool:
    return any(
        each.process != ASKER and each.outage.sqlstate in NO_SCHEMA for each in heartbeat.pauses
    )


def _said(error: Exception) -> str:
    """Write an error without the place in our statement that Postgres points at."""
    primary = isinstance(error, psycopg.Error) and error.diag.message_primary
    return one_line(primary or str(error))


def explained(settings: Settings, found: Endpoints, batch: str) -> Explanation:
    """Explain a batch within 3 s, whatever does not answer."""
    return Looking(settings, found, batch).explain()
