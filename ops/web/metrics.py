"""`/metrics`: what the workers counted, and the state of the tables, for Prometheus."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, cast

import redis
from celery import Celery
from kombu.exceptions import ChannelError
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from core import heartbeat, metrics
from core.rules import RULES
from core.states import BatchStatus, ClassType
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
for rule in RULES:
    if rule.repair is not None:
        metrics.REPAIRS.labels(rule.code)  # at 0 from the start, so that the first is an increase


class Exposition(Collector):
    """The service as Prometheus sees it; a part that does not answer is missing, its `els_up` 0."""

    def __init__(self, snapshots: SnapshotCache, connections: Connections, broker: Celery) -> None:
        self._snapshots, self._connections = snapshots, connections
        self._client, self._replica = connections.client, connections.replica
        self._broker, self._queue = broker, connections.settings.queue
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
        ]
        if self._replica:  # which may show the batches although the primary is away
            parts += [("postgres", self._primary), ("replica", self._lag)]
        up: dict[str, int] = {}
        for part, ask in parts:
            try:
                found = list(ask())
            except UNANSWERED:
                up[part] = 0
            else:
                up.setdefault(part, 1)
                yield from found
        answers = _gauge("els_up", "1: the part answers the ops page.", "part")
        for part, value in up.items():
            answers.add_metric([part], value)
        yield answers

    def _primary(self) -> Iterable[Metric]:
        with self._connections.primary() as conn:
            conn.execute("SELECT")
        return ()

    def _lag(self) -> Iterator[Metric]:
        """Yield the lag of the replica. Raises OSError where it does not answer."""
        assert self._replica is not None
        if self._replica.error:
            raise OSError(self._replica.error)
        if self._replica.lag_s is not None:
            yield _one("els_replica_lag_seconds", LAG, self._replica.lag_s)

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
        for name, meaning in WAITING.items():
            yield _one(name, meaning, snapshot.waiting[name])

    def _workers(self) -> Iterator[Metric]:
        seen = heartbeat.read_heartbeat(self._client, None)
        age = (datetime.now(UTC) - seen.swept_at).total_seconds() if seen.swept_at else math.inf
        yield _one("els_workers", "Workers whose heartbeat is fresh.", len(seen.workers))
        yield _one("els_sweep_age_seconds", "Time since the last sweep; +Inf: unknown.", age)
        paused = _gauge("els_paused_processes", "Processes that wait for a server.", "server")
        waiting = Counter(pause.outage.server for pause in seen.pauses)
        for server in ("postgres", "redis", "broker"):
            paused.add_metric([server], waiting[server])
        yield paused
        yield from _counted(self._client)

    def _messages(self) -> Iterator[Metric]:
        waiting = _gauge("els_queue_messages", "Messages that no worker has taken.", "queue")
        waiting.add_metric([self._queue], _length(self._broker, self._queue))
        yield waiting


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


def _length(broker: Celery, queue: str) -> int:
    """Count the messages in a queue of any broker."""
    with broker.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=2)
        try:
            channel: Any = connection.default_channel  # Any: kombu's channels have no types
            return int(channel.queue_declare(queue, passive=True).message_count)
        except ChannelError as error:
            if "NOT_FOUND" not in str(error):  # both brokers use this word
                raise OSError(f"the broker does not answer for queue {queue}: {error}") from error
            return 0  # Redis has no empty queues


def _gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, labels=labels)


def _one(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=value)
