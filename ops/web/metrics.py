"""`/metrics`: what the workers counted, and the state of the tables, for Prometheus."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import cast

import redis
from celery import Celery
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from core import metrics
from core.rules import RULES
from core.signs.pauses import Pause, Server
from core.states import BatchStatus, ClassType
from ops.heartbeat import read_heartbeat
from ops.queues import queue_lengths
from ops.reference.outcomes import CODES
from ops.signs import read_beats
from ops.web.backlog import OldestMessages
from ops.web.connections import Connections
from ops.web.health import STUCK_LIMIT, UNANSWERED, SnapshotCache

WAITING = {
    "els_pending_contents": "Contents and rejected files that wait for their batch.",
    "els_outbox_unpublished": "Events that are not delivered yet.",
    "els_outbox_oldest_seconds": "Age of the oldest event that is not delivered; 0: none.",
    "els_dead_letters": "Dead letters that were neither replayed nor discarded.",
    "els_oldest_open_batch_seconds": "Age of the oldest batch that is not ready; 0: none.",
}
LAG = "For how long the primary has held what the read replica does not show."
SERVERS: tuple[Server, ...] = ("postgres", "redis", "broker")
for rule in RULES:
    if rule.repair is not None:
        metrics.REPAIRS.labels(rule.code)  # at 0 from the start, so that the first is an increase


class Exposition(Collector):
    """The service as Prometheus sees it; a part that does not answer is missing, its `els_up` 0."""

    def __init__(
        self,
        snapshots: SnapshotCache,
        connections: Connections,
        broker: Celery,
        queues: Sequence[str],
        is_ready: Callable[[str], bool],
    ) -> None:
        self._snapshots, self._is_ready = snapshots, is_ready
        self._connections, self._client = connections, connections.client
        self._broker, self._queues = broker, queues
        self._oldest = OldestMessages(queues)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def page(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        parts: list[tuple[str, Callable[[], Iterable[Metric]]]] = [
            ("postgres", self._batches),
            ("redis", self._workers),
            ("broker", self._messages),
            ("broker", self._events),
        ]
        if self._connections.replica:  # it may show the batches although the primary is away
            parts += [("postgres", self._primary), ("replica", self._lag)]
        answers: dict[str, int] = {}
        up = _gauge("els_up", "1: the part answers the ops page.", "part")
        ready = _gauge("els_ready", "1: /readyz finds nothing wrong with the part.", "part")
        for part, ask in parts:
            try:
                found = list(ask())
            except UNANSWERED:
                answers[part] = 0
            else:
                answers.setdefault(part, 1)
                yield from found
        for part, answer in answers.items():
            up.add_metric([part], answer)
            if part in SERVERS:
                ready.add_metric([part], answer and self._is_ready(part))
        yield up
        yield ready

    def _primary(self) -> Iterable[Metric]:
        """See whether the primary answers, where the replica may have answered the rest."""
        with self._connections.primary() as conn:
            conn.execute("SELECT")
        return ()

    def _lag(self) -> Iterator[Metric]:
        """Yield the lag of the replica. Raises OSError where it does not answer."""
        replica = self._connections.replica
        assert replica is not None
        if replica.error:
            raise OSError(replica.error)
        if replica.lag_s is not None:
            yield _one("els_replica_lag_seconds", LAG, replica.lag_s)

    def _batches(self) -> Iterator[Metric]:
        snapshot = self._snapshots.snapshot()
        batches = _gauge("els_batches", "Batches, by state.", "status", "class_type")
        for status in BatchStatus:
            for class_type in ClassType:
                count = snapshot.batches.get((status, class_type), 0)
                batches.add_metric([status, class_type], count)
        yield batches
        stuck = _gauge(
            "els_stuck_batches", f"Batches by what is wrong, up to {STUCK_LIMIT}.", "reason"
        )
        for rule, findings in snapshot.stuck:
            if findings is not None:
                stuck.add_metric([rule.code], len(findings))
                if rule.code == "slot_drift":
                    yield _one("els_slot_drift", "Batches whose Redis differs.", len(findings))
        yield stuck
        letters = _gauge("els_dead_letters_waiting", "Dead letters that wait, by code.", "code")
        for code, number in (dict.fromkeys(CODES, 0) | snapshot.letters).items():
            letters.add_metric([code], number)
        yield letters
        for name, meaning in WAITING.items():
            yield _one(name, meaning, snapshot.waiting[name])

    def _workers(self) -> Iterator[Metric]:
        seen = read_heartbeat(self._client, None)
        age = (datetime.now(UTC) - seen.swept_at).total_seconds() if seen.swept_at else math.inf
        yield _one("els_workers", "Workers whose heartbeat is fresh.", len(seen.workers))
        ends = len(seen.restarting())
        yield _one("els_restarting_workers", "Workers that end again and again.", ends)
        beats = read_beats(self._client, self._queues[-1])
        count = (beats.leader is not None) + len(beats.standing_by)
        yield _one("els_beats", "Beats that lead or stand by.", count)
        yield _one("els_sweep_age_seconds", "Time since the last sweep; +Inf: unknown.", age)
        paused = _gauge("els_paused_processes", "Processes that wait for a server.", "server")
        waiting = Counter(pause.outage.server for pause in seen.pauses)
        for server in SERVERS:
            paused.add_metric([server], waiting[server])
        yield paused
        yield _pauses(seen.pauses)
        held, oldest_s = seen.in_work()
        yield _one("els_messages_in_work", "Messages that workers hold.", held)
        yield _one("els_oldest_in_work_seconds", "Time of the oldest in work; 0: none.", oldest_s)
        yield from _counted(self._client)

    def _messages(self) -> Iterator[Metric]:
        waiting = _gauge("els_queue_messages", "Messages that no worker has taken.", "queue")
        with self._broker.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
            lengths = queue_lengths(connection, self._queues)
            ages = self._oldest.seconds(connection)
        for queue, length in lengths.items():
            waiting.add_metric([queue], length)
        yield waiting
        oldest = _gauge("els_queue_oldest_seconds", "Age of the oldest message; 0: none.", "queue")
        for queue, age_s in ages.items():
            oldest.add_metric([queue], age_s)
        yield oldest

    def _events(self) -> Iterator[Metric]:
        waiting = _gauge("els_event_queue_messages", "Events that no receiver has taken.", "queue")
        oldest = _gauge(
            "els_event_queue_oldest_seconds", "Age of the oldest of them; 0: none.", "queue"
        )
        for queue in self._connections.event_queues.look():
            waiting.add_metric([queue.name], queue.messages)
            if queue.oldest_s is not None:
                oldest.add_metric([queue.name], queue.oldest_s)
        yield waiting
        yield oldest


def _pauses(pauses: Sequence[Pause]) -> Metric:
    """Measure the longest pause for each server and SQLSTATE that processes wait for."""
    longest = _gauge("els_pause_seconds", "Longest wait for a server.", "server", "sqlstate")
    seconds = dict.fromkeys(((server, metrics.NO_SQLSTATE) for server in SERVERS), 0.0)
    for pause in pauses:
        key = pause.outage.server, pause.outage.sqlstate or metrics.NO_SQLSTATE
        waited_s = (datetime.now(UTC) - pause.since).total_seconds()
        seconds[key] = max(seconds.get(key, 0.0), waited_s)
    for key, waited_s in seconds.items():
        longest.add_metric(key, waited_s)
    return longest


def _counted(client: redis.Redis) -> Iterator[Metric]:
    """Yield what all workers counted; a sample that none has counted is 0."""
    stored = cast("dict[str, str]", client.hgetall(metrics.HASH))
    text = "".join(f"{name} {value}\n" for name, value in stored.items())
    families = text_string_to_metric_families(text)
    counted = {metrics.field(sample): sample for family in families for sample in family.samples}
    for metric in metrics.REGISTRY.collect():
        zero = {
            metrics.field(sample): sample._replace(value=0.0)
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }
        known = {
            name: sample
            for name, sample in counted.items()
            if name in zero or sample.name == f"{metric.name}_total"
        }
        metric.samples = [*(zero | known).values()]
        yield metric


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, labels=labels)


def _one(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=value)
