"""Figures, and ratios of two figures that were taken in the same round."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, Any]  # Any: JSON


@dataclass
class Figure:
    """The results of one case, a value per round."""

    name: str
    what: str
    unit: str
    values: list[float] = field(default_factory=list)

    def as_json(self) -> Values:
        return {"name": self.name, "what": self.what, "unit": self.unit, **spread(self.values)}


@dataclass(frozen=True)
class Goal:
    """The ratio of one figure to another, and its limits."""

    what: str
    of: str
    against: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, ratio: float) -> bool:
        return ratio >= (self.at_least or 0) and ratio <= (self.at_most or float("inf"))

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g}" if self.at_most is not None else ""


@dataclass(frozen=True)
class Ratio:
    """A goal, and its ratio in each round."""

    goal: Goal
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> Values:
        return {
            "what": self.goal.what,
            "of": self.goal.of,
            "against": self.goal.against,
            "goal": str(self.goal),
            "met": self.goal.met(self.median),
            **spread(self.values),
        }


def spread(values: Sequence[float]) -> dict[str, Any]:  # Any: JSON
    """Summarize the values of all rounds: median, lowest and highest."""
    return {
        "median": _rounded(statistics.median(values)),
        "low": _rounded(min(values)),
        "high": _rounded(max(values)),
        "values": [_rounded(value) for value in values],
    }


def ratios(figures: Mapping[str, Figure], goals: Sequence[Goal]) -> list[Ratio]:
    """Compute the ratio of each goal round by round; skip a goal without both figures."""
    found = []
    for goal in goals:
        of, against = figures.get(goal.of), figures.get(goal.against)
        if of and against and of.values and against.values:
            pairs = zip(of.values, against.values, strict=False)
            found.append(Ratio(goal, [a / b for a, b in pairs]))
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def interleave(
    steps: Sequence[Callable[[], None]], rounds: int, tick: Callable[[], None] = lambda: None
) -> None:
    """Run every step once per round, every other round in reverse order.

    So noise on the machine affects all steps alike, and so do the after-effects of a step.
    """
    for number in range(rounds):
        for step in steps if number % 2 == 0 else reversed(steps):
            step()
            tick()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def number(value: float) -> str:
    """Write a figure with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
