"""What a torture did and what came of it, for programs and for people."""

import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console

from ops.explain.explanation import Explanation
from ops.queries.invariants import Invariant
from ops.reports import show_explanation, show_invariants

RECOVERY_S = 30  # how soon after a fault's end a new batch must be ready


@dataclass
class Report:
    """What was done and what came of it."""

    seed: int
    minutes: float
    longest_s: float  # of one fault
    broker: str
    faults: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)  # fault -> why
    exits: Counter[str] = field(default_factory=Counter)  # fault -> workers that ended
    batches: int = 0
    messages: int = 0
    recoveries: list[tuple[str, str, float]] = field(default_factory=list)  # fault, batch, seconds
    invariants: list[Invariant] = field(default_factory=list)
    explanations: list[Explanation] = field(default_factory=list)  # of broken batches

    @property
    def ok(self) -> bool:
        """Every invariant held."""
        return bool(self.invariants) and all(each.holds for each in self.invariants)

    def slowest(self) -> dict[str, float]:
        """Return the longest recovery from each fault, in seconds."""
        slowest: dict[str, float] = {}
        for fault, _, seconds in self.recoveries:
            slowest[fault] = max(seconds, slowest.get(fault, 0))
        return {fault: round(seconds, 2) for fault, seconds in sorted(slowest.items())}

    def late(self) -> Invariant:
        """Name the probes that took too long."""
        return Invariant(
            f"Every new batch was ready within {RECOVERY_S} s of a fault's end",
            [
                f"{batch} ({seconds:.0f} s after {fault})"
                for fault, batch, seconds in self.recoveries
                if seconds > RECOVERY_S
            ],
        )

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Write everything for a program."""
        recoveries = sorted(seconds for *_, seconds in self.recoveries)
        return {
            "ok": self.ok,
            "seed": self.seed,
            "broker": self.broker,
            "minutes": self.minutes,
            "longest_fault_s": self.longest_s,
            "faults": dict(sorted(self.faults.items())),
            "skipped": self.skipped,
            "workers_that_ended": dict(sorted(self.exits.items())),
            "batches": self.batches,
            "messages": self.messages,
            "recovery_s": {
                "probes": len(recoveries),
                "median": round(statistics.median(recoveries), 2) if recoveries else None,
                "p99": round(recoveries[int(len(recoveries) * 0.99)], 2) if recoveries else None,
                "slowest": self.slowest(),
            },
            "invariants": [
                {"title": each.title, "holds": each.holds, "broken": each.broken}
                for each in self.invariants
            ],
            "explanations": [asdict(each) for each in self.explanations],
        }


def show(report: Report, out: Console) -> None:
    """Write everything for a person."""
    shown = report.as_json()
    out.print(
        f"seed {report.seed}, {report.broker}: {report.batches} batches, {report.messages} messages"
    )
    out.print(f"no fault lasted longer than {report.longest_s:g} s\n")
    slowest = report.slowest()
    for name, count in shown["faults"].items():
        seconds = f"{slowest[name]:.1f} s" if name in slowest else "none"
        ended = f", {report.exits[name]} workers ended" if report.exits[name] else ""
        out.print(f"  {count:>4} x {name} (slowest recovery {seconds}{ended})", markup=False)
    for name, why in report.skipped.items():
        out.print(f"  skipped: {name}: {why}", markup=False)
    times = shown["recovery_s"]
    out.print(
        f"\nrecovery, {times['probes']} probes: median {times['median']} s, P99 {times['p99']} s\n"
    )
    show_invariants(report.invariants, out)
    for explanation in report.explanations:
        show_explanation(explanation)
