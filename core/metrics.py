"""What worker processes count, and how their counts add up in Redis.

Counting is an addition in the process. A thread adds what is new to one hash every few seconds, for
all processes on all hosts; the ops page exports that hash (ADR 8).
"""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from threading import Event, Lock, Thread
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.samples import Sample
from redis import Redis, RedisError

from core.catalogue import BATCHED, EVENTS, REGISTER_BATCH
from core.lua import script

HASH = "els:metrics"  # field: a sample as Prometheus writes it; value: its sum over all processes
MINUTES = f"{{{HASH}}}:assigned"  # field: a minute since 1970; value: the contents assigned in it
MINUTES_KEPT = 25 * 60  # a day and the hour that begins
EVERY_S = 2.0  # between two pushes; a killed process loses its counts since the last one
MARK_S = 3600  # Redis remembers the number of a process's last push: longer than any retry
LAST_PUSH_S = 1.0  # a process that ends waits for a push under way
NO_SQLSTATE = "none"  # no database error, or a lost connection
ASSIGNED = 'els_content_assignment_total{outcome="assigned"}'
ADD = script("add_counts")

REGISTRY = CollectorRegistry()
QUICK_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
PATIENT_S = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 3 * 24 * 3600, 7 * 24 * 3600)


def _counter(name: str, documentation: str, label: str, values: Iterable[str] = ()) -> Counter:
    """Make a counter, at 0 for each value from the start, so that the first one is an increase."""
    counter = Counter(name, documentation, [label], registry=REGISTRY)
    for value in values:
        counter.labels(value)
    return counter


def _seconds(name: str, documentation: str, buckets: Sequence[float] = QUICK_S) -> Histogram:
    return Histogram(name, documentation, buckets=buckets, registry=REGISTRY)


REGISTRATIONS = _counter(
    "els_batch_registration",
    "Registrations executed, by outcome.",
    "outcome",
    ("registered", "already_registered", "dead_letter"),
)
REGISTRATION_FAILURES = _counter(
    "els_batch_registration_failures",
    "Registrations that failed, those to be tried again included, by SQLSTATE.",
    "sqlstate",
    [NO_SQLSTATE],
)
REGISTRATION_SECONDS = _seconds(
    "els_batch_registration_seconds", "Time that a worker took for one registration."
)
ASSIGNMENTS = _counter(
    "els_content_assignment",
    "Contents and rejected files, by what became of each; repeats not counted.",
    "outcome",
    ("assigned", "failed_slot", "pending", "excess", "closed", "dead_letter"),
)
ASSIGNMENT_SECONDS = _seconds(
    "els_content_assignment_seconds",
    "Time that a worker took for one message with contents or a rejected file.",
)
READINESS_SECONDS = _seconds(
    "els_batch_readiness_seconds",
    "Time from the registration of a batch to its readiness.",
    PATIENT_S,
)
REPAIRS = _counter("els_sweep_repairs", "What the sweep mended, by rule.", "rule")
PURGED = _counter(
    "els_purged",
    "What was deleted because ELS_RETENTION_DAYS had passed, by kind.",
    "kind",
    ("batches", "pending", "refusals", "letters", "actions", "keys"),
)
RETRIES = _counter(
    "els_retries",
    "Messages to be tried again after an error that may pass, by SQLSTATE.",
    "sqlstate",
    [NO_SQLSTATE],
)
PAUSES = Counter(
    "els_pauses",
    "How often a process stopped taking messages because a server refused, by SQLSTATE.",
    ["server", "sqlstate"],
    registry=REGISTRY,
)
for server in ("postgres", "redis"):
    PAUSES.labels(server, NO_SQLSTATE)
PUBLISHED = _counter(
    "els_events_published",
    "Events that the broker took, once for all consumers of a type.",
    "type",
    EVENTS,
)
CLAIMS = _counter(
    "els_claims",
    "Claims of slots in Redis, by result.",
    "result",
    ("new", "held", "none", "stale"),
)


def executed(task: str, outcome: str, became: Mapping[str, int], seconds: float) -> None:
    """Count a message by its outcome, and its contents by what `became` of them."""
    if task == REGISTER_BATCH.name:
        REGISTRATIONS.labels(outcome).inc()
        REGISTRATION_SECONDS.observe(seconds)
    elif task in BATCHED:
        ASSIGNMENT_SECONDS.observe(seconds)
    for end, contents in became.items():
        ASSIGNMENTS.labels(end).inc(contents)


def retried(task: str, sqlstate: str | None) -> None:
    RETRIES.labels(sqlstate or NO_SQLSTATE).inc()
    if task == REGISTER_BATCH.name:
        REGISTRATION_FAILURES.labels(sqlstate or NO_SQLSTATE).inc()


def dead_lettered(task: str, sqlstate: str | None) -> None:
    if task == REGISTER_BATCH.name:
        REGISTRATIONS.labels("dead_letter").inc()
        REGISTRATION_FAILURES.labels(sqlstate or NO_SQLSTATE).inc()
    elif task in BATCHED:
        ASSIGNMENTS.labels("dead_letter").inc()


def paused(server: str, sqlstate: str | None) -> None:
    PAUSES.labels(server, sqlstate or NO_SQLSTATE).inc()


def published(types: Iterable[str]) -> None:
    for event_type, number in Tally(types).items():
        PUBLISHED.labels(event_type).inc(number)


def claimed(results: Iterable[str]) -> None:
    for result, number in Tally(results).items():
        CLAIMS.labels(result).inc(number)


def ready(seconds: float | None) -> None:
    """Count a batch that became ready this long after its registration; None: it did not."""
    if seconds is not None:
        READINESS_SECONDS.observe(seconds)


def field(sample: Sample) -> str:
    """Write the name and labels of a sample as Prometheus does."""
    labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
    return f"{sample.name}{{{labels}}}" if labels else sample.name


def counted() -> dict[str, float]:
    """Return the counts of this process by `field`."""
    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return {field(s): s.value for s in samples if not s.name.endswith("_created")}


class Pusher:
    """Adds what this process counts to the hash in Redis."""

    def __init__(self, client: Redis) -> None:
        self._add = client.register_script(ADD)
        self._mark = f"{{{HASH}}}:{uuid4().hex}"  # the braces: in the same cluster slot
        self._number = 0
        self._pushed = counted()
        self._unconfirmed: dict[str, float] = {}
        self._pushing, self._ending = Lock(), Event()
        self._thread = Thread(target=self._run, name="els-metrics", daemon=True)

    def start(self) -> "Pusher":
        self._thread.start()
        return self

    def stop(self) -> None:
        """Push once more, before the process ends."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(LAST_PUSH_S)
        with suppress(RedisError):
            self.push()

    def push(self) -> None:
        """Add what is new since the last push. Raises redis.RedisError.

        After an error the next call repeats this push under the same number, so that Redis counts
        nothing twice if only the reply was lost.
        """
        with self._pushing:
            if not self._unconfirmed:
                now, before = counted(), self._pushed
                added = {name: value - before.get(name, 0) for name, value in now.items()}
                self._unconfirmed = {name: more for name, more in added.items() if more}
                self._pushed, self._number = now, self._number + 1
            if self._unconfirmed:
                pairs = [part for pair in self._unconfirmed.items() for part in pair]
                assigned = self._unconfirmed.get(ASSIGNED, 0)
                args = [self._number, MARK_S, assigned, MINUTES_KEPT, *pairs]
                self._add(keys=[HASH, self._mark, MINUTES], args=args)
                self._unconfirmed = {}

    def _run(self) -> None:
        while not self._ending.wait(EVERY_S):
            with suppress(RedisError):  # the next push repeats this one
                self.push()
