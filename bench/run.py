"""One run of the benchmarks: which cases, and how long."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from bench import cases, claims, contest, growth
from bench.growth import FULL
from bench.machine import describe
from bench.measure import ratios
from bench.report import Report
from bench.testbed import Testbed

SLOTS = (10_000, 100_000)


@dataclass(frozen=True)
class Plan:
    seconds: float = 2.0  # of one drain
    rounds: int = 5
    samples: int = 40  # of each latency in a round
    largest: int = 100_000  # essays of a batch, and open batches
    full: int = FULL  # essays in the tables
    memory: int = 1_000_000  # contents


QUICK = Plan(seconds=0.2, rounds=2, samples=5, largest=1_000, full=10_000, memory=10_000)
Tick = Callable[[str], None]  # called with the part that a measurement belongs to


def bench(
    testbed: Testbed, plan: Plan, *, peers: bool, growing: bool, tick: Tick = lambda part: None
) -> Report:
    """Measure the parts that the options name. Raises BenchError when a case fails."""
    started = time.monotonic()
    broker = testbed.broker_url.partition(":")[0]
    report = Report(
        describe(testbed), testbed.crew, broker, plan.seconds, plan.rounds, datetime.now(UTC)
    )
    _measure_route(testbed, plan, report, tick)
    if peers:
        found, report.skipped = contest.measure_contest(
            testbed, plan.seconds, plan.rounds, partial(tick, "peers")
        )
        report.figures += found
    if growing:
        _measure_growth(testbed, plan, report, tick)
    goals = [*cases.GOALS, *claims.GOALS, *contest.contest_goals(), *growth.GOALS]
    report.ratios = ratios({figure.name: figure for figure in report.figures}, goals)
    report.took_s = time.monotonic() - started
    return report


def _measure_route(testbed: Testbed, plan: Plan, report: Report, tick: Tick) -> None:
    for name, group in (
        ("contents", cases.content_cases(testbed)),
        ("registration", cases.registration_cases(testbed, SLOTS)),
        ("claims", claims.claim_cases(testbed)),
    ):
        report.figures += cases.run_cases(group, plan.seconds, plan.rounds, partial(tick, name))
        report.note_cpu(group)
    latency = partial(tick, "latency")
    report.figures += cases.measure_latency(testbed, plan.samples, plan.rounds, latency)


def _measure_growth(testbed: Testbed, plan: Plan, report: Report, tick: Tick) -> None:
    group = growth.growth_cases(testbed, plan.largest, plan.full)
    growing = partial(tick, "growth")
    report.figures += growth.measure_growth(group, plan.seconds, plan.rounds, growing)
    report.note_cpu(group)
    report.figures.append(growth.measure_memory(testbed, plan.memory, partial(tick, "memory")))
