"""`els health worker` and `els health beat`: is it hung? Reads a file; asks no server.

A supervisor runs it every few seconds, so it imports neither Typer nor the settings: it takes
little longer than Python needs to start.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from core.signs import health_file

MAX_AGE_S = 30.0  # a heartbeat comes every 2 s, less regularly while the broker is down


def main(arguments: Sequence[str]) -> int:
    """Print the age of the latest heartbeat of this home; return the exit status."""
    options = parser().parse_args(arguments)
    part = options.part
    ages = health_file.ages_s(options.home, options.name, part)
    youngest = min(ages, key=lambda name: ages[name], default=None)
    healthy = youngest is not None and ages[youngest] <= options.max_age
    if youngest is None:
        message = f"no {part} has a heartbeat in {options.home.absolute()}; does one use this home?"
    else:
        message = f"{part} {youngest}: last heartbeat {max(ages[youngest], 0):.0f} s ago"
        limit = f"{options.max_age:g} s"
        message += "" if healthy else f", more than {limit}: it hangs or is gone; restart it"
    if options.json:
        message = json.dumps({"healthy": healthy, "message": message, "ages_s": ages})
    print(message)
    return 0 if healthy else 1


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="els health",
        description="Check that the worker, or beat, of this home is not hung; exit status 1 if it"
        " is. Asks neither the broker nor the database.",
    )
    parser.add_argument("part", choices=["worker", "beat"])
    parser.add_argument("--max-age", type=float, default=MAX_AGE_S, help="seconds, default 30")
    parser.add_argument("--name", default="*", help="one of several that share a home")
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(os.environ.get("ELS_HOME") or ".els"),
        help="folder of its data; else ELS_HOME, else .els",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser
