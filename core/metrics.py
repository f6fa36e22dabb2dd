"""What worker processes count, and how it adds up in Redis.

Counting is an addition in the process. A thread hands on what was added every few seconds, to one
hash for all processes on all hosts, which the ops page shows (ADR 8).
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.samples import Sample
from redis import Redis, RedisError

from core.catalogue import BATCHED, REGISTER_BATCH

HASH = "els:metrics"  # field: a sample as Prometheus writes it; value: its sum over all processes
EVERY_S = 2.0  # between two pushes; a killed process loses what it counted since its last one
MARK_S = 3600  # how long Redis remembers a process's last push: longer than any retry of it
LAST_PUSH_S = 1.0  # what a push under way gets to end before the process does
NO_SQLSTATE = "none"  # an error that is not the database's, or a lost connection
ADD = (Path(__file__).parent / "lua" / "add_counts.lua").read_text()

REGISTRY = CollectorRegistry()
QUICK_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
PATIENT_S = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 3 * 24 * 3600, 7 * 24 * 3600)

REGISTRATIONS = Counter(
    "els_batch_registration",
    "Registrations carried out, by outcome.",
    ["outcome"],
    registry=REGISTRY,
)
REGISTRATION_FAILURES = Counter(
    "els_batch_registration_failures",
    "Registrations that failed, those to be tried again included, by SQLSTATE.",
    ["sqlstate"],
    registry=REGISTRY,
)
REGISTRATION_SECONDS = Histogram(
    "els_batch_registration_seconds",
    "Time that a worker took for one registration.",
    buckets=QUICK_S,
    registry=REGISTRY,
)
ASSIGNMENTS = Counter(
    "els_content_assignment",
    "Contents and rejected files, by what became of each; repeats not counted.",
    ["outcome"],
    registry=REGISTRY,
)
ASSIGNMENT_SECONDS = Histogram(
    "els_content_assignment_seconds",
    "Time that a worker took for one message with contents or a rejected file.",
    buckets=QUICK_S,
    registry=REGISTRY,
)
READINESS_SECONDS = Histogram(
    "els_batch_readiness_seconds",
    "Time from the registration of a batch to its readiness.",
    buckets=PATIENT_S,
    registry=REGISTRY,
)
REPAIRS = Counter(
    "els_sweep_repairs",
    "What the sweep mended, by rule.",
    ["rule"],
    registry=REGISTRY,
)
RETRIES = Counter(
    "els_retries",
    "Messages to be tried again after an error that may pass, by SQLSTATE.",
    ["sqlstate"],
    registry=REGISTRY,
)
PAUSES = Counter(
    "els_pauses",
    "How often a process stopped taking messages because a server refused, by SQLSTATE.",
    ["server", "sqlstate"],
    registry=REGISTRY,
)


for end in ("registered", "already_registered", "dead_letter"):
    REGISTRATIONS.labels(end)  # at 0 from the start, so that the first one is an increase
for end in ("assigned", "failed_slot", "pending", "excess", "closed", "dead_letter"):
    ASSIGNMENTS.labels(end)
REGISTRATION_FAILURES.labels(NO_SQLSTATE)
RETRIES.labels(NO_SQLSTATE)
for server in ("postgres", "redis"):
    PAUSES.labels(server, NO_SQLSTATE)


def carried_out(task: str, outcome: str, became: Mapping[str, int], seconds: float) -> None:
    """Count a message that led to this outcome, and the contents that it announced."""
    if task == REGISTER_BATCH.name:
        REGISTRATIONS.labels(outcome).inc()
        REGISTRATION_SECONDS.observe(seconds)
    elif task in BATCHED:
        ASSIGNMENT_SECONDS.observe(seconds)
    for end, contents in became.items():
        ASSIGNMENTS.labels(end).inc(contents)


def retried(task: str, sqlstate: str | None) -> None:
    """Count a message that is to be tried again."""
    RETRIES.labels(sqlstate or NO_SQLSTATE).inc()
    if task == REGISTER_BATCH.name:
        REGISTRATION_FAILURES.labels(sqlstate or NO_SQLSTATE).inc()


def parked(task: str, sqlstate: str | None) -> None:
    """Count a message that became a dead letter."""
    if task == REGISTER_BATCH.name:
        REGISTRATIONS.labels("dead_letter").inc()
        REGISTRATION_FAILURES.labels(sqlstate or NO_SQLSTATE).inc()
    elif task in BATCHED:
        ASSIGNMENTS.labels("dead_letter").inc()


def paused(server: str, sqlstate: str | None) -> None:
    """Count a process that waits for a server."""
    PAUSES.labels(server, sqlstate or NO_SQLSTATE).inc()


def ready(seconds: float | None) -> None:
    """Count a batch that became ready after so long; None: it did not."""
    if seconds is not None:
        READINESS_SECONDS.observe(seconds)


def field(sample: Sample) -> str:
    """Write a sample without its value, as Prometheus does."""
    labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
    return f"{sample.name}{{{labels}}}" if labels else sample.name


def counted() -> dict[str, float]:
    """Read what this process has counted so far."""
    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return {field(s): s.value for s in samples if not s.name.endswith("_created")}


class Pusher:
    """Adds what this process counts to the hash in Redis."""

    def __init__(self, client: Redis) -> None:
        self._add = client.register_script(ADD)
        self._mark = f"{{{HASH}}}:{uuid4().hex}"  # the braces: in the same cluster slot
        self._number = 0
        self._told = counted()
        self._on_its_way: dict[str, float] = {}
        self._pushing, self._ending = Lock(), Event()
        self._thread = Thread(target=self._run, name="els-metrics", daemon=True)

    def start(self) -> "Pusher":
        """Push every `EVERY_S` from now on."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Push once more, as the process is about to end."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(LAST_PUSH_S)
        with suppress(RedisError):
            self.push()

    def push(self) -> None:
        """Add what was counted since the last push. Raises redis.RedisError.

        The next call then repeats the same push under its number, so that a lost reply counts
        nothing twice.
        """
        with self._pushing:
            if not self._on_its_way:
                now, told = counted(), self._told
                added = {name: value - told.get(name, 0) for name, value in now.items()}
                self._on_its_way = {name: more for name, more in added.items() if more}
                self._told, self._number = now, self._number + 1
            if self._on_its_way:
                pairs = [part for pair in self._on_its_way.items() for part in pair]
                self._add(keys=[HASH, self._mark], args=[self._number, MARK_S, *pairs])
                self._on_its_way = {}

    def _run(self) -> None:
        while not self._ending.wait(EVERY_S):
            with suppress(RedisError):  # the next push says it again
                self.push()
