"""Is the service ready? What each server lacks, as `/readyz` shows it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from math import inf
from time import monotonic

import psycopg
import redis
from celery import Celery
from kombu import Connection
from psycopg_pool import PoolTimeout

from core.db.connection import Conn
from core.probe import probe_postgres
from core.servers.away import away
from core.servers.finding import Finding, Severity
from core.servers.postgres import check_postgres, find_in_postgres
from core.servers.redis import check_redis
from core.servers.redis_client import connect_once
from core.servers.urls import is_redis
from core.signs.pauses import Outage, server_time
from ops.brief_postgres import connect_briefly
from ops.explain.held_back import held_back
from ops.explain.locks import locks, standby_awaited
from ops.explain.rabbitmq import RESTORE, alarm_of, deleted
from ops.explain.service_causes import LOCKED, lock_causes, look_at, restarting
from ops.heartbeat import read_heartbeat, redis_outage
from ops.queues import UNANSWERED as BROKER_UNANSWERED
from ops.signs import read_restarts
from ops.web.connections import TIMEOUT_S, Connections
from ops.web.health import UNANSWERED, paused_processes

FRESH_S = 1.0  # an answer for metrics is kept so long, however many scrape them


class Readiness:
    """Asks every server each time: some ten short questions."""

    def __init__(self, connections: Connections, broker: Celery) -> None:
        url = connections.settings.broker_or_redis_url
        self._connections, self._broker = connections, broker
        self._url = url
        self._redis_broker = connect_once(url) if is_redis(url) else None
        self._one_redis = url == connections.settings.redis_url

        self._answers: dict[str, tuple[float, bool]] = {}
        self._parts: dict[str, Callable[[], list[Finding]]] = {
            "postgres": self._check_postgres,
            "redis": self._check_redis,
            "broker": self._check_broker,
        }

    def check(self) -> dict[str, object]:
        """Return `ok` or the fault of each part, then all findings; warnings leave it ready."""
        findings = {name: _check(name, check) for name, check in self._parts.items()}
        answers = {name: _answer(those) for name, those in findings.items()}
        paused = paused_processes(self._connections.client)
        ready = not paused and all(answer == "ok" for answer in answers.values())
        findings["worker"] = self._find_restarting()
        listed = [each.as_json() for those in findings.values() for each in those]
        more = {"findings": listed, "paused": [pause.as_json() for pause in paused]}
        return {"ready": ready, **answers, **{name: each for name, each in more.items() if each}}

    def is_ready(self, part: str) -> bool:
        """Tell whether a part answers, takes writes and lacks nothing, as of a second ago."""
        now = monotonic()
        asked_at, answer = self._answers.get(part, (-inf, False))
        if now - asked_at > FRESH_S:
            answer = _answer(_check(part, self._parts[part])) == "ok"
            self._answers[part] = now, answer
        return answer

    def _check_postgres(self) -> list[Finding]:
        try:
            with self._connections.pool.connection(timeout=TIMEOUT_S) as conn:
                found = [*check_postgres(conn), *_held_back(conn)]
                return _or_refusal(found, lambda: _refusal(conn), lambda: _locked(conn))
        except PoolTimeout:  # a pool says nothing of why it has no connection
            settings = self._connections.settings
            url, _ = settings.server_urls()
            found = find_in_postgres(url, settings.database_prepare, connect_briefly)
            if not found:
                raise
            return found

    def _check_redis(self) -> list[Finding]:
        # A Redis that is also the broker gets the other checks as the broker.
        found = [] if self._one_redis else self._slots_redis()
        return _or_refusal(found, lambda: redis_outage(self._connections.client))

    def _check_broker(self) -> list[Finding]:
        if self._redis_broker:
            return check_redis(self._redis_broker, "broker", self._url)
        try:
            with self._broker.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=2)
                found = [*self._deleted(connection), *self._seen_by_workers()]
                return _or_refusal(found, lambda: alarm_of(connection))
        except BROKER_UNANSWERED as error:
            return [away("broker", self._url, error)]

    def _deleted(self, connection: Connection) -> Iterator[Finding]:
        """Name queues and exchanges of RabbitMQ that somebody has deleted."""
        queue = self._connections.settings.queue
        for what in deleted(connection, queue):
            of_senders = what.endswith(f" {queue}")
            severity = Severity.FAULT if of_senders else Severity.WARNING
            wrong, why = f"{what} is missing", "RabbitMQ drops what comes there"
            yield Finding("broker", severity, wrong, why, RESTORE)

    def _seen_by_workers(self) -> Iterator[Finding]:
        """Repeat what the workers have found to be wrong with RabbitMQ."""
        with suppress(redis.RedisError):  # which has a finding of its own
            seen = read_heartbeat(self._connections.client, None)
            for severity in Severity:
                for each in seen.broker_lacks(severity):
                    said = {name: each[name] for name in ("wrong", "why", "step")}
                    yield Finding("broker", severity, **said)

    def _find_restarting(self) -> list[Finding]:
        """Warn of workers that end again and again; that Redis is away has its own finding."""
        client = self._connections.client
        with suppress(redis.RedisError):
            if read_restarts(client, server_time(client)):
                causes = restarting(self._connections.heartbeat())
                return [
                    Finding("worker", Severity.WARNING, each.title, each.reason, each.command)
                    for each in causes
                ]
        return []

    def _slots_redis(self) -> list[Finding]:
        url = self._connections.settings.redis_url or ""
        return check_redis(self._connections.client, "redis", url)


def _refusal(conn: Conn) -> Outage | None:
    """Find what keeps writes from Postgres; the probe never commits, so it waits for no standby."""
    return standby_awaited(conn) or probe_postgres(conn)


def _locked(conn: Conn) -> Iterator[Finding]:
    """Name who has locked a table, or what a session of ours waits for."""
    for cause in lock_causes(locks(conn)):
        wrong, why = f"{cause.title}; {cause.reason}", "what the service writes waits for it"
        yield Finding("postgres", Severity.FAULT, wrong, why, cause.command)


def _held_back(conn: Conn) -> Iterator[Finding]:
    """Name who holds events back from the readers of all events."""
    with suppress(psycopg.Error):  # which has a finding of its own
        if held := held_back(conn):
            wrong, step = held
            why = "it may still write an event that belongs before them"
            yield Finding("postgres", Severity.WARNING, wrong, why, step)


def _or_refusal(
    found: list[Finding],
    probe: Callable[[], Outage | None],
    locked: Callable[[], Iterable[Finding]] = list,
) -> list[Finding]:
    """Add that a server refuses writes, or who has locked a table, unless a fault says why."""
    if any(each.severity is Severity.FAULT for each in found) or (outage := probe()) is None:
        return found
    if outage.sqlstate == LOCKED and (holders := [*locked()]):
        return [*found, *holders]
    why = "workers wait for it and resume once it takes writes again"
    step = look_at(outage.server, outage.error, outage.sqlstate)
    return [*found, Finding(outage.server, Severity.FAULT, outage.error, why, step)]


def _check(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except UNANSWERED as error:
        wrong = f"{type(error).__name__}: {error}"
        why = "nothing is carried out without it"
        return [Finding(name, Severity.FAULT, wrong, why, "start it, or correct its URL")]


def _answer(findings: list[Finding]) -> str:
    faults = [each for each in findings if each.severity is Severity.FAULT]
    return "; ".join(f"{each.wrong}: {each.step}" for each in faults) or "ok"
