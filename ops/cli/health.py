"""`els health worker`: does the worker here turn? Asks a file, and neither broker nor database.

A supervisor runs it every few seconds, so it answers in the time that Python needs to start: it
imports neither Typer nor the settings.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from core import health_file

MAX_AGE_S = 30.0  # signs come every 2 s; while the broker is away they come less regularly


def main(arguments: Sequence[str]) -> int:
    """Print whether a worker of this home gave a sign lately; return the exit status."""
    asked = _parser().parse_args(arguments)
    ages = health_file.ages_s(asked.home, asked.name)
    youngest = min(ages, key=lambda name: ages[name], default=None)
    healthy = youngest is not None and ages[youngest] <= asked.max_age
    if youngest is None:
        told = f"no worker has given a sign in {asked.home.absolute()}; does one use this home?"
    else:
        told = f"worker {youngest} gave its last sign {max(ages[youngest], 0):.0f} s ago"
        told += "" if healthy else f", over {asked.max_age:g} s: it hangs or is gone; restart it"
    if asked.json:
        told = json.dumps({"healthy": healthy, "message": told, "ages_s": ages})
    print(told)
    return 0 if healthy else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="els health",
        description="Tell whether the worker on this home turns; exit status 1 if not."
        " Asks neither the broker nor the database.",
    )
    parser.add_argument("part", choices=["worker"])
    parser.add_argument("--max-age", type=float, default=MAX_AGE_S, help="seconds, default 30")
    parser.add_argument("--name", default="*", help="one worker, where several share a home")
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(os.environ.get("ELS_HOME") or ".els"),
        help="folder of the worker's data; else ELS_HOME, else .els",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser
