"""Time single contents under other worker settings, each beside ours.

    python -m bench.settings --rounds 5

Prints the table of docs/performance.md. All workers run all the time; only one set at a time is
busy.
"""

import argparse
import gc
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from bench.cases import Case, drain_singles, run_cases
from bench.measure import Goal, number, ratios
from bench.testbed import Crew, Servers, open_testbed

OURS = Crew()
OTHERS: list[tuple[str, Crew, dict[str, Any]]] = [  # Any: JSON
    ("one by one (`batching` left out)", OURS, {"at_once": 1}),
    ("10 carried out together", OURS, {"at_once": 10}),
    ("25", OURS, {"at_once": 25}),
    ("50", OURS, {"at_once": 50}),
    ("200", OURS, {"at_once": 200}),
    ("prefork of 1", replace(OURS, processes=1), {}),
    ("prefork of 4", replace(OURS, processes=4), {}),
    ("prefetch 4", replace(OURS, prefetch=4), {}),
    ("solo", Crew("solo", 1), {}),
    ("2 workers, solo", Crew("solo", 1, workers=2), {}),
    ("threads 4", Crew("threads", 4), {}),
    ("threads 4, 2 connections to Postgres", Crew("threads", 4), {"connections": 2}),
    ("threads 4, 1 connection", Crew("threads", 4), {"connections": 1}),
    ("2 workers, prefork of 1", Crew("prefork", 1, workers=2), {}),
    ("no task events", OURS, {"conf": {"worker_send_task_events": False}}),
    ("Python's own thresholds of garbage collection", OURS, {"garbage": gc.get_threshold()}),
    ("`gc.freeze()` after the fork", OURS, {"freeze": True}),
    ("without hiredis", OURS, {"hiredis": False}),
    ("ours a second time", OURS, {"at_once": 100}),  # shows the noise of the machine
]


def main() -> None:
    """Read the options, measure, and print the table."""
    parser = argparse.ArgumentParser(description="Time single contents under other settings.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    with open_testbed(OURS, Servers(), lambda line: print(line, file=sys.stderr)) as testbed:
        cases = [
            Case("ours", "ours: prefork of 2, prefetch 1, 100", partial(drain_singles, testbed))
        ]
        for name, crew, variant in OTHERS:
            other = testbed.other(f"els.{len(cases)}", crew, variant)
            cases.append(Case(name, name, partial(drain_singles, other)))
        run_cases(cases, options.seconds, options.rounds, lambda: None)
    print("\n".join(_table(cases)))


def _table(cases: list[Case]) -> Iterator[str]:
    yield "| setting | contents a second | against ours | CPU of the worker, µs a content |"
    yield "| --- | --- | --- | --- |"
    figures = {case.name: case.figure for case in cases}
    for case in cases:
        [ratio] = ratios(figures, [Goal(case.what, case.name, "ours")])
        low, high = number(min(ratio.values)), number(max(ratio.values))
        rate = number(statistics.median(case.figure.values))
        cpu = number(statistics.median(case.cpu["worker"]))
        yield f"| {case.what} | {rate} | {number(ratio.median)} ({low} to {high}) | {cpu} |"


if __name__ == "__main__":
    main()
