"""Is the service ready? What each server lacks, as `/readyz` shows it."""

from collections.abc import Callable

import redis
from celery import Celery

from core.pauses import Outage, Pause, read_pauses
from core.probe import probe_postgres, probe_redis
from core.requirements import REDIS_SCHEMES, Finding, Severity, check_postgres, check_redis
from core.slots import connect_once
from ops.web.overview import Sources
from ops.web.survey import UNANSWERED


class Readiness:
    """Asks every server each time: some ten short questions."""

    def __init__(self, sources: Sources, broker: Celery) -> None:
        url = str(broker.conf.broker_url)
        self._sources, self._broker = sources, broker
        self._redis_broker = connect_once(url) if url.startswith(REDIS_SCHEMES) else None
        self._shared = url == sources.settings.redis_url

    def look(self) -> dict[str, object]:
        """Say of each part `ok` or its fault, and list all findings, if there are any.

        A warning leaves the service ready.
        """
        parts: dict[str, Callable[[], list[Finding]]] = {
            "postgres": self._postgres,
            "redis": self._redis,
            "broker": self._ask_broker,
        }
        findings = {name: _ask(name, check) for name, check in parts.items()}
        answers = {name: _answer(those) for name, those in findings.items()}
        paused = self._pauses()
        ready = not paused and all(answer == "ok" for answer in answers.values())
        listed = [each.as_json() for those in findings.values() for each in those]
        more = {"findings": listed, "paused": [pause.as_json() for pause in paused]}
        return {"ready": ready, **answers, **{name: each for name, each in more.items() if each}}

    def _postgres(self) -> list[Finding]:
        with self._sources.connection() as conn:
            return _or_refusal(check_postgres(conn), lambda: probe_postgres(conn))

    def _redis(self) -> list[Finding]:
        # A Redis that is the broker too is asked for the rest as the broker.
        found = [] if self._shared else check_redis(self._sources.client, "redis")
        return _or_refusal(found, lambda: probe_redis(self._sources.slots))

    def _pauses(self) -> list[Pause]:
        """List the processes of workers that wait; none where Redis, which knows, is away."""
        try:
            return read_pauses(self._sources.client)
        except redis.RedisError:
            return []

    def _ask_broker(self) -> list[Finding]:
        if self._redis_broker:
            return check_redis(self._redis_broker, "broker")
        with self._broker.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
        return []


def _or_refusal(found: list[Finding], probe: Callable[[], Outage | None]) -> list[Finding]:
    """Add that a server refuses the writes of this service, unless a fault says why already."""
    if any(each.severity is Severity.FAULT for each in found) or (outage := probe()) is None:
        return found
    why = "workers wait for it; they go on by themselves once it takes writes again"
    step = "look at the server's disk, memory, role and rights"
    return [*found, Finding(outage.server, Severity.FAULT, outage.error, why, step)]


def _ask(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except (*UNANSWERED, redis.RedisError) as error:
        told = f"{type(error).__name__}: {error}"
        why = "nothing is carried out without it"
        return [Finding(name, Severity.FAULT, told, why, "start it, or mend its URL")]


def _answer(findings: list[Finding]) -> str:
    faults = [each for each in findings if each.severity is Severity.FAULT]
    return "; ".join(f"{each.wrong}: {each.step}" for each in faults) or "ok"
