"""The cases: each measures one thing once, on running workers and empty tables."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import cast

from kombu import Queue

from bench import noop
from bench.load import CLASS, Batch, register, registration
from bench.measure import Figure, Goal, interleave, percentile
from bench.queues import Message
from bench.testbed import BenchError, Testbed, Timing
from core.servers.urls import is_amqp

MIXED = (25, 100, 500)  # essays of the batches of a mixed load, equally often
WHOLE = 10_000  # essays of one large batch
FIXED_WARM_UPS = 4
EVENTS = 2  # of a complete guest batch
RATE = "a second"
READY = "els.events.batch_essays_ready"


@dataclass
class Case:
    """Something to time; the warm-up chooses the amount by its speed."""

    name: str
    what: str
    run: Callable[[int], Timing]
    step: int = CLASS  # amounts are multiples of it
    first: int = CLASS * 4  # the amount of the warm-up
    fixed: bool = False
    seconds: float = 0
    cpu: dict[str, list[float]] = field(default_factory=dict)  # µs a content
    figure: Figure = field(init=False)

    def __post_init__(self) -> None:
        self.figure = Figure(self.name, self.what, RATE)
        self.amount = self.first

    def warm_up(self, seconds: float) -> None:
        """Run small amounts, then choose the amount that takes this many seconds.

        Run a fixed amount a few times, so that probably every process of the worker has done it
        once: the first time it connects, loads scripts and plans, and takes 1.6 times as long.
        """
        self.seconds = seconds
        timing = self.run(self.amount)
        if self.fixed:
            for _ in range(FIXED_WARM_UPS):
                self.run(self.amount)
            return
        while timing.seconds < seconds / 2:
            faster = min(seconds / timing.seconds, 4)
            self.amount = max(round(self.amount * faster / self.step), 2) * self.step
            timing = self.run(self.amount)

    def measure(self) -> None:
        """Run once, or a fixed amount for as long as other cases take; record the result."""
        timing = self.run(self.amount)
        while self.fixed and timing.seconds < self.seconds:
            timing += self.run(self.amount)
        self.figure.values.append(timing.rate)
        for name, used in timing.cpu_s.items():
            self.cpu.setdefault(name, []).append(used / timing.contents * 1e6)


def run_cases(
    cases: Sequence[Case], seconds: float, rounds: int, tick: Callable[[], None]
) -> list[Figure]:
    """Warm every case up, then run them in turns; return a figure per case."""
    for case in cases:
        case.warm_up(seconds)
        tick()
    interleave([case.measure for case in cases], rounds, tick)
    return [case.figure for case in cases]


# --- contents ----------------------------------------------------------------------------------


def drain_noop(testbed: Testbed, app: str, amount: int) -> Timing:
    """Run tasks that do nothing."""
    documented = app == "as_documented"
    workers = testbed.noop(app, "INFO" if documented else "WARNING", tuned=not documented)
    testbed.calm()
    message = Message(noop.TASK, keep_result=documented)
    return testbed.drain(workers, [message] * amount, amount)


def drain_contents(
    testbed: Testbed,
    messages: Callable[[Batch], Sequence[Message]],
    sizes: Sequence[int],
    *,
    events: bool = True,
) -> Timing:
    """Fill batches of these sizes, from the first content to the last readiness event."""
    workers = testbed.els(events=events)
    testbed.empty()
    batches = register(testbed, sizes)
    queue, due = testbed.events_queue, EVENTS * len(sizes)
    load = [message for batch in batches for message in messages(batch)]
    timing = testbed.drain(workers, load, sum(sizes), lambda: testbed.queues.waiting(queue) >= due)
    testbed.until(lambda: testbed.queues.left(workers.queue) == 0, 10, "every delivery is recorded")
    testbed.check([batch.batch_id for batch in batches], sum(sizes))
    return timing


def drain_singles(testbed: Testbed, amount: int, *, events: bool = True) -> Timing:
    """Fill usual batches with single contents; `events` are Celery's."""
    sizes = [CLASS] * (amount // CLASS)
    return drain_contents(testbed, lambda b: list(b.singles()), sizes, events=events)


def drain_uploads(testbed: Testbed, sizes: Sequence[int], amount: int) -> Timing:
    """Fill batches of these sizes again and again, each with one upload."""
    times = max(amount // sum(sizes), 1)
    return drain_contents(testbed, lambda b: list(b.uploads()), list(sizes) * times)


def content_cases(testbed: Testbed) -> list[Case]:
    """List the cases of contents, beside tasks that do nothing."""
    mixed = sum(MIXED)
    cases = [
        Case("noop", "no-op task, settings as ours", partial(drain_noop, testbed, "like_ours")),
        Case(
            "noop_documented",
            "no-op task, Celery's documented defaults",
            partial(drain_noop, testbed, "as_documented"),
        ),
        Case("singles", "single contents, whole job", partial(drain_singles, testbed)),
        Case(
            "singles_no_events",
            "single contents, task events off",
            partial(drain_singles, testbed, events=False),
        ),
        Case(
            "uploads_class",
            f"uploads of {CLASS}",
            partial(drain_uploads, testbed, [CLASS]),
            first=CLASS * 20,
        ),
        Case(
            "uploads_mixed",
            "uploads of 25, 100 and 500",
            partial(drain_uploads, testbed, MIXED),
            step=mixed,
            first=mixed * 2,
        ),
        Case(
            "uploads_whole",
            f"one upload of {WHOLE:,}",
            partial(drain_uploads, testbed, [WHOLE]),
            step=WHOLE,
            first=WHOLE,
            fixed=True,
        ),
    ]
    if not is_amqp(testbed.broker_url):
        run = partial(drain_noop, testbed, "on_our_transport")
        cases.insert(1, Case("noop_our_transport", "no-op task on our transport", run))
    else:
        what = "no-op task on Redis, Celery's documented defaults"
        run = partial(drain_noop, testbed.on_redis(), "as_documented")
        cases.append(Case("noop_documented_redis", what, run))
    return cases


# --- registration ------------------------------------------------------------------------------


def drain_registration(testbed: Testbed, slots: int) -> Timing:
    """Register one batch: the whole task, from queue to acknowledgement."""
    workers = testbed.els()
    testbed.empty()
    done = partial(testbed.taken_in, workers, 0)
    timing = testbed.drain(workers, [registration(slots)], slots, done)
    with testbed.pool.connection() as conn:
        row = conn.execute("SELECT count(*) AS n FROM essay_states").fetchone()
    if row != {"n": slots}:
        raise BenchError(f"registering {slots} slots wrote {row}")
    return timing


def copy_slots(testbed: Testbed, slots: int) -> Timing:
    """Write the same rows by COPY from prepared bytes, in one transaction."""
    testbed.empty()
    [batch] = register(testbed, [1])
    rows = "".join(f"{batch.batch_id}\tslot-{n:06d}\tawaiting_content\n" for n in range(slots))
    payload = rows.encode()
    testbed.calm()
    with testbed.pool.connection() as conn:
        started = time.perf_counter()
        with conn.transaction(), conn.cursor() as cursor:
            columns = "batch_id, essay_id, current_status"
            with cursor.copy(f"COPY essay_states ({columns}) FROM STDIN") as copy:
                copy.write(payload)
        return Timing(slots, time.perf_counter() - started)


def registration_cases(testbed: Testbed, sizes: Sequence[int]) -> list[Case]:
    """List registrations, each beside a plain COPY of its rows."""
    cases = []
    for size in sizes:
        ours, copy = partial(drain_registration, testbed), partial(copy_slots, testbed)
        cases += [
            Case(f"register_{size}", f"registering {size:,} slots", ours, first=size, fixed=True),
            Case(f"copy_{size}", f"COPY of {size:,} slots", copy, first=size, fixed=True),
        ]
    return cases


# --- latency -----------------------------------------------------------------------------------


def round_trip(testbed: Testbed) -> float:
    """Time a task that does nothing, from sending it to receiving its result."""
    testbed.noop("like_ours")
    started = time.perf_counter()
    result = testbed.app.send_task(noop.TASK, queue="bench.like_ours", ignore_result=False)
    result.get(timeout=60, interval=0.001)
    return time.perf_counter() - started


def readiness(testbed: Testbed) -> float:
    """Time a usual batch from sending its last content to receiving its readiness event."""
    testbed.els()
    [batch] = register(testbed, [CLASS])
    *early, last = batch.singles()
    with testbed.app.connection_for_read() as connection:
        for message in early:
            testbed.app.send_task(
                message.task, kwargs=message.kwargs, queue=testbed.queue, ignore_result=True
            )
        testbed.until(lambda: testbed.open_slots(batch.batch_id) == 1, 60, "all contents but one")
        testbed.until(lambda: testbed.queues.left(testbed.queue) == 0, 60, "the workers are idle")
        time.sleep(Random(batch.batch_id).uniform(0, 0.02))  # so that no timer falls in step
        inbox = connection.SimpleQueue(cast(str, Queue(testbed.events_queue, no_declare=True)))
        started = time.perf_counter()
        testbed.app.send_task(
            last.task, kwargs=last.kwargs, queue=testbed.queue, ignore_result=True
        )
        while True:
            event = inbox.get(timeout=60)
            event.ack()
            if event.headers["task"] == READY:
                inbox.close()
                return time.perf_counter() - started


def measure_latency(
    testbed: Testbed, samples: int, rounds: int, tick: Callable[[], None]
) -> list[Figure]:
    """Time single tasks in turns on an idle system."""
    testbed.empty()
    figures = []
    for name, what, step in (
        ("noop_round_trip", "no-op task there and back", round_trip),
        ("readiness", "last content sent to readiness event received", readiness),
    ):
        step(testbed)
        middle = Figure(name, f"{what}, median", "ms")
        worst = Figure(f"{name}_p99", f"{what}, P99", "ms")
        figures.append((partial(step, testbed), middle, worst))
    for _ in range(rounds):
        times: dict[str, list[float]] = {}
        for _ in range(samples):
            for measure, middle, _worst in figures:
                times.setdefault(middle.name, []).append(measure() * 1000)
        for _measure, middle, worst in figures:
            middle.values.append(percentile(times[middle.name], 0.5))
            worst.values.append(percentile(times[middle.name], 0.99))
        tick()
    return [figure for _, *pair in figures for figure in pair]


GOALS = [
    Goal("single contents against a no-op task", "singles", "noop", at_least=0.8),
    Goal(
        "single contents against a no-op task with Celery's documented defaults",
        "singles",
        "noop_documented",
        at_least=1.5,
    ),
    Goal(
        "single contents on RabbitMQ against a no-op task on Redis with documented defaults",
        "singles",
        "noop_documented_redis",
        at_least=2.5,
    ),
    Goal("mixed uploads against single contents", "uploads_mixed", "singles", at_least=25),
    Goal("one upload of 10,000 against single contents", "uploads_whole", "singles", at_least=60),
    Goal("registering 10,000 slots against COPY", "register_10000", "copy_10000", at_least=0.6),
    Goal("registering 100,000 slots against COPY", "register_100000", "copy_100000", at_least=0.6),
    Goal("readiness against a no-op round trip", "readiness", "noop_round_trip", at_most=12),
    Goal(
        "readiness, P99, against a no-op round trip", "readiness_p99", "noop_round_trip", at_most=25
    ),
    Goal("task events on against off", "singles", "singles_no_events", at_least=0.9),
    Goal("no-op task on our transport against the stock one", "noop_our_transport", "noop"),
]
