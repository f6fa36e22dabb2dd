"""The cases: each measures one thing once, on workers that are up and tables that are empty."""

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
from bench.stand import BenchError, Drained, Stand

MIXED = (25, 100, 500)  # essays of the batches of a mixed load, equally often
WHOLE = 10_000  # essays of one large batch
FIXED_WARM_UPS = 4
EVENTS = 2  # of a guest batch that gets complete
RATE = "a second"
READY = "els.events.batch_essays_ready"


@dataclass
class Case:
    """Something to time, in amounts that follow from how fast it turns out to be."""

    name: str
    what: str
    run: Callable[[int], Drained]
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
        """Run a little, then choose the amount that takes so many seconds.

        A fixed amount is run a few times, by every process of the worker if chance will have it:
        the first time it connects, loads scripts and plans, which makes 10 000 slots take 1.6 times
        as long.
        """
        self.seconds = seconds
        drained = self.run(self.amount)
        if self.fixed:
            for _ in range(FIXED_WARM_UPS):
                self.run(self.amount)
            return
        while drained.seconds < seconds / 2:
            faster = min(seconds / drained.seconds, 4)
            self.amount = max(round(self.amount * faster / self.step), 2) * self.step
            drained = self.run(self.amount)

    def measure(self) -> None:
        """Run once, or a fixed amount for as long as other cases take; note what came of it."""
        drained = self.run(self.amount)
        while self.fixed and drained.seconds < self.seconds:
            drained += self.run(self.amount)
        self.figure.values.append(drained.rate)
        for name, used in drained.cpu_s.items():
            self.cpu.setdefault(name, []).append(used / drained.contents * 1e6)


def run_cases(
    cases: Sequence[Case], seconds: float, rounds: int, tick: Callable[[], None]
) -> list[Figure]:
    """Warm every case up, then take turns; return a figure a case."""
    for case in cases:
        case.warm_up(seconds)
        tick()
    interleave([case.measure for case in cases], rounds, tick)
    return [case.figure for case in cases]


# --- contents ----------------------------------------------------------------------------------


def drain_noop(stand: Stand, app: str, amount: int) -> Drained:
    """Run so many tasks that do nothing."""
    documented = app == "as_documented"
    workers = stand.noop(app, "INFO" if documented else "WARNING", tuned=not documented)
    stand.calm()
    message = Message(noop.TASK, keep_result=documented)
    return stand.drain(workers, [message] * amount, amount)


def drain_contents(
    stand: Stand,
    messages: Callable[[Batch], Sequence[Message]],
    sizes: Sequence[int],
    *,
    events: bool = True,
) -> Drained:
    """Fill batches of these sizes, from the first content to the last readiness event."""
    workers = stand.els(events=events)
    stand.empty()
    batches = register(stand, sizes)
    queue, due = stand.events_queue, EVENTS * len(sizes)
    load = [message for batch in batches for message in messages(batch)]
    drained = stand.drain(workers, load, sum(sizes), lambda: stand.queues.waiting(queue) >= due)
    stand.until(lambda: stand.queues.left(workers.queue) == 0, 10, "what was sent was noted")
    stand.check([batch.batch_id for batch in batches], sum(sizes))
    return drained


def drain_singles(stand: Stand, amount: int, *, events: bool = True) -> Drained:
    """Fill batches of a class by single contents; `events` are Celery's own."""
    sizes = [CLASS] * (amount // CLASS)
    return drain_contents(stand, lambda b: list(b.singles()), sizes, events=events)


def drain_uploads(stand: Stand, sizes: Sequence[int], amount: int) -> Drained:
    """Fill batches of these sizes, over and over, each by one upload."""
    times = max(amount // sum(sizes), 1)
    return drain_contents(stand, lambda b: list(b.uploads()), list(sizes) * times)


def content_cases(stand: Stand) -> list[Case]:
    """List what happens to contents, beside tasks that do nothing."""
    mixed = sum(MIXED)
    cases = [
        Case("noop", "no-op task, settings as ours", partial(drain_noop, stand, "like_ours")),
        Case(
            "noop_documented",
            "no-op task, Celery's documented defaults",
            partial(drain_noop, stand, "as_documented"),
        ),
        Case("singles", "single contents, whole job", partial(drain_singles, stand)),
        Case(
            "singles_no_events",
            "single contents, task events off",
            partial(drain_singles, stand, events=False),
        ),
        Case(
            "uploads_class",
            f"uploads of {CLASS}",
            partial(drain_uploads, stand, [CLASS]),
            first=CLASS * 20,
        ),
        Case(
            "uploads_mixed",
            "uploads of 25, 100 and 500",
            partial(drain_uploads, stand, MIXED),
            step=mixed,
            first=mixed * 2,
        ),
        Case(
            "uploads_whole",
            f"one upload of {WHOLE:,}",
            partial(drain_uploads, stand, [WHOLE]),
            step=WHOLE,
            first=WHOLE,
            fixed=True,
        ),
    ]
    if not stand.broker_url.startswith("amqp"):
        run = partial(drain_noop, stand, "on_our_transport")
        cases.insert(1, Case("noop_our_transport", "no-op task on our transport", run))
    else:
        what = "no-op task on Redis, Celery's documented defaults"
        run = partial(drain_noop, stand.on_redis(), "as_documented")
        cases.append(Case("noop_documented_redis", what, run))
    return cases


# --- registration ------------------------------------------------------------------------------


def drain_registration(stand: Stand, slots: int) -> Drained:
    """Register one batch: the whole task, from the queue to its acknowledgement."""
    workers = stand.els()
    stand.empty()
    done = partial(stand.taken_in, workers, 0)
    drained = stand.drain(workers, [registration(slots)], slots, done)
    with stand.pool.connection() as conn:
        row = conn.execute("SELECT count(*) AS n FROM essay_states").fetchone()
    if row != {"n": slots}:
        raise BenchError(f"registering {slots} slots wrote {row}")
    return drained


def copy_slots(stand: Stand, slots: int) -> Drained:
    """Write the same rows by COPY, from bytes that are ready, in one transaction."""
    stand.empty()
    [batch] = register(stand, [1])
    rows = "".join(f"{batch.batch_id}\tslot-{n:06d}\tawaiting_content\n" for n in range(slots))
    payload = rows.encode()
    stand.calm()
    with stand.pool.connection() as conn:
        started = time.perf_counter()
        with conn.transaction(), conn.cursor() as cursor:
            columns = "batch_id, essay_id, current_status"
            with cursor.copy(f"COPY essay_states ({columns}) FROM STDIN") as copy:
                copy.write(payload)
        return Drained(slots, time.perf_counter() - started)


def registration_cases(stand: Stand, sizes: Sequence[int]) -> list[Case]:
    """List registrations, each beside the raw COPY of its rows."""
    cases = []
    for size in sizes:
        ours, copy = partial(drain_registration, stand), partial(copy_slots, stand)
        cases += [
            Case(f"register_{size}", f"registering {size:,} slots", ours, first=size, fixed=True),
            Case(f"copy_{size}", f"COPY of {size:,} slots", copy, first=size, fixed=True),
        ]
    return cases


# --- latency -----------------------------------------------------------------------------------


def round_trip(stand: Stand) -> float:
    """Time a task that does nothing, from sending it to holding its result."""
    stand.noop("like_ours")
    started = time.perf_counter()
    result = stand.app.send_task(noop.TASK, queue="bench.like_ours", ignore_result=False)
    result.get(timeout=60, interval=0.001)
    return time.perf_counter() - started


def readiness(stand: Stand) -> float:
    """Time a batch of a class from sending its last content to receiving its readiness event."""
    stand.els()
    [batch] = register(stand, [CLASS])
    *early, last = batch.singles()
    with stand.app.connection_for_read() as connection:
        for message in early:
            stand.app.send_task(
                message.task, kwargs=message.kwargs, queue=stand.queue, ignore_result=True
            )
        stand.until(lambda: stand.open_slots(batch.batch_id) == 1, 60, "all contents but one")
        stand.until(lambda: stand.queues.left(stand.queue) == 0, 60, "the workers are idle")
        time.sleep(Random(batch.batch_id).uniform(0, 0.02))  # no step with anybody's clock
        inbox = connection.SimpleQueue(cast(str, Queue(stand.events_queue, no_declare=True)))
        started = time.perf_counter()
        stand.app.send_task(last.task, kwargs=last.kwargs, queue=stand.queue, ignore_result=True)
        while True:
            event = inbox.get(timeout=60)
            event.ack()
            if event.headers["task"] == READY:
                inbox.close()
                return time.perf_counter() - started


def measure_latency(
    stand: Stand, samples: int, rounds: int, tick: Callable[[], None]
) -> list[Figure]:
    """Time single tasks on an idle system, in turns."""
    stand.empty()
    figures = []
    for name, what, step in (
        ("noop_round_trip", "no-op task there and back", round_trip),
        ("readiness", "last content sent to readiness event received", readiness),
    ):
        step(stand)
        middle = Figure(name, f"{what}, median", "ms")
        worst = Figure(f"{name}_p99", f"{what}, P99", "ms")
        figures.append((partial(step, stand), middle, worst))
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
