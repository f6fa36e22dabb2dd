"""Time `/metrics` and `/health/batches` over many batches; watch the memory of what serves them.

    python -m bench.metrics_page --batches 100000

Half of the batches are open, with their free slots in Redis. The page caches a snapshot for a
while; "new snapshot" waits until it is stale, "cached" does not. Also times the counting of one
message in its worker, and one push of the counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from timeit import timeit

from core import db, metrics
from core.servers.redis_client import connect
from core.slots import Slots
from migrations import upgrade
from ops.stack.embedded import Postgres, Valkey
from ops.stack.ports import free_port
from ops.stack.server import Server
from ops.web.health import FRESH_S, SHARE

SNAPSHOTS = 10
SCRAPES = 2_000
SLOTS = 3
SEED = """
WITH batch AS (
    INSERT INTO batch_essay_trackers (
        batch_id, status, class_id, user_id, course_code, correlation_id, expected_count,
        available_slots, essay_ids_sha256, on_deadline, deadline_at, full_at, completed_at,
        ready_at, manifest_sha256, provisioned_count
    )
    SELECT 'batch-' || lpad(i::text, 9, '0'),
           CASE WHEN is_open THEN 'awaiting_content_validation'
                ELSE 'ready_for_pipeline_execution' END,
           CASE WHEN i % 3 = 0 THEN 'class-' || i END, 'teacher', 'ENG5', gen_random_uuid(),
           %(slots)s, CASE WHEN is_open THEN %(slots)s ELSE 0 END, sha256(i::text::bytea), 'fail',
           now() + interval '1 day', closed, closed, closed,
           CASE WHEN NOT is_open THEN repeat('a', 64) END,
           CASE WHEN NOT is_open THEN %(slots)s END
    FROM (SELECT i, i %% 2 = 0 AS is_open, CASE WHEN i %% 2 = 1 THEN now() END AS closed
          FROM generate_series(1, %(batches)s) i) wanted
    RETURNING batch_id, status
)
INSERT INTO essay_states (batch_id, essay_id, current_status)
SELECT batch_id, 'essay-' || n, 'awaiting_content'
FROM batch, generate_series(1, %(slots)s) n WHERE status = 'awaiting_content_validation'
""".replace("i % 3", "i %% 3")


def main() -> None:
    """Start the servers, fill them, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=100_000)
    batches = parser.parse_args().batches
    with tempfile.TemporaryDirectory(prefix="els-bench-") as home, ExitStack() as stack:
        servers = [
            stack.enter_context(running(kind(Path(home) / kind.name, free_port(), "bench")))
            for kind in (Postgres, Valkey)
        ]
        _seed(servers[0].url, servers[1].url, batches)
        _measure_pushes(servers[1].url)
        page = stack.enter_context(_page(servers[0].url, servers[1].url))
        _measure_page(page, batches)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _seed(database_url: str, redis_url: str, batches: int) -> None:
    upgrade(database_url)
    with db.connect_once(database_url) as conn:
        conn.execute(SEED, {"batches": batches, "slots": SLOTS})
        conn.execute("VACUUM ANALYZE")
    slots = Slots(connect(redis_url))
    for i in range(2, batches + 1, 2):
        slots.seed(f"batch-{i:09}", [f"essay-{n}" for n in range(1, SLOTS + 1)])


def _measure_pushes(redis_url: str) -> None:
    def count() -> None:
        metrics.executed("els.assign_content", "assigned", {"assigned": 1}, 0.004)

    number = 100_000
    each = timeit(count, number=number) / number
    print(f"counting one message: {each * 1e6:.1f} µs in its worker")
    pusher = metrics.Pusher(connect(redis_url))
    pushes: list[float] = []
    for _ in range(100):
        count()
        started = time.perf_counter()
        pusher.push()
        pushes.append(time.perf_counter() - started)
    print(f"one push: {median(pushes) * 1e3:.1f} ms, every {metrics.EVERY_S:g} s a process")


@contextmanager
def _page(database_url: str, redis_url: str) -> Iterator[tuple[str, int]]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    urls = {"ELS_DATABASE_URL": database_url, "ELS_REDIS_URL": redis_url, "ELS_BROKER_URL": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "ops", "ops"],
        env={**os.environ, **urls, "ELS_OPS_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _answers(url):
            time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def _measure_page(page: tuple[str, int], batches: int) -> None:
    url, pid = page
    _get(f"{url}/health/batches")
    took: list[float] = []
    for path in ["/metrics"] * SNAPSHOTS + ["/health/batches"] * SNAPSHOTS:
        time.sleep(FRESH_S + SHARE * (took[-1] if took else 0.2))
        took.append(_get(url + path))
    again = [_get(f"{url}/metrics") for _ in range(100)]
    before = _resident_mib(pid)
    for _ in range(SCRAPES):
        _get(f"{url}/metrics")
    print(f"{batches} batches, half of them open:")
    print(f"  /metrics, new snapshot:         {_summary(took[:SNAPSHOTS])}")
    print(f"  /health/batches, new snapshot:  {_summary(took[SNAPSHOTS:])}")
    print(f"  /metrics, cached:               {_summary(again)}")
    print(f"  memory: {before} MiB, after {SCRAPES} more scrapes {_resident_mib(pid)} MiB")


def _get(url: str) -> float:
    started = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - http, ours
        answer.read()
    return time.perf_counter() - started


def _answers(url: str) -> bool:
    try:
        return _get(f"{url}/healthz") > 0
    except OSError:
        return False


def _resident_mib(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def _summary(seconds: list[float]) -> str:
    return f"median {median(seconds) * 1e3:.0f} ms, worst {max(seconds) * 1e3:.0f} ms"


if __name__ == "__main__":
    main()
