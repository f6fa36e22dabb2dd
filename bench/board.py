"""How fast the pages are with 100 000 batches, and whether their process stays small.

Run `python -m bench.board`: it fills an embedded Postgres of its own, serves the pages from a
process of their own, and asks each address one after the other. About four minutes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from migrations import upgrade
from ops.stack.embedded import Postgres, Valkey
from ops.stack.ports import free_port

SLOTS = 25
REPEATS = 30
REQUESTS = 1_000
FILL = """
INSERT INTO batch_essay_trackers (batch_id, status, user_id, course_code, correlation_id,
    expected_count, available_slots, essay_ids_sha256, on_deadline, registered_at, deadline_at,
    full_at, completed_at, ready_at, provisioned_count)
SELECT 'batch-' || lpad(n::text, 6, '0'),
       CASE WHEN n %% 2 = 0 THEN 'awaiting_content_validation'
            ELSE 'ready_for_pipeline_execution' END,
       'teacher-' || n %% 5000, 'ENG5', gen_random_uuid(), %(slots)s,
       CASE WHEN n %% 2 = 0 THEN 5 ELSE 0 END, 'x', 'fail', at, now() + interval '1 day',
       CASE WHEN n %% 2 = 1 THEN at END, CASE WHEN n %% 2 = 1 THEN at END,
       CASE WHEN n %% 2 = 1 THEN at END, CASE WHEN n %% 2 = 1 THEN %(slots)s END
FROM (SELECT n, now() - n * interval '5 s' AS at FROM generate_series(1, %(batches)s) n) numbered;

INSERT INTO essay_states (batch_id, essay_id, current_status, text_storage_id, file_upload_id,
    original_file_name, assigned_at)
SELECT batch_id, 'essay-' || lpad(e::text, 3, '0'),
       CASE WHEN is_open THEN 'awaiting_content' ELSE 'ready_for_processing' END,
       CASE WHEN NOT is_open THEN 'text-' || substr(batch_id, 7) || '-' || e END,
       CASE WHEN NOT is_open THEN 'upload-' || substr(batch_id, 7) || '-' || e END,
       CASE WHEN NOT is_open THEN 'essay ' || e || '.docx' END,
       CASE WHEN NOT is_open THEN registered_at END
FROM batch_essay_trackers,
     LATERAL (SELECT e, available_slots > 0 AND e > 20 AS is_open
              FROM generate_series(1, %(slots)s) e) essays;

INSERT INTO dead_letters (task, task_id, batch_id, body, code, message)
SELECT 'els.register_batch', gen_random_uuid()::text, 'batch-' || lpad(n::text, 6, '0'), '{}',
       'REGISTRATION_CONFLICT', 'registered with other essay ids'
FROM generate_series(%(batches)s - 99, %(batches)s) n;

VACUUM ANALYZE
"""
PAGES = {
    "the board": "/",
    "its second page": "/?after=50",
    "the state `ready`": "/?state=ready_for_pipeline_execution",
    "a page from the middle": "/?after={middle}~batch-050000",
    "a batch": "/batches/batch-050000",
    "search by batch": "/?q=batch-05000",
    "search by user": "/?q=teacher-77",
    "search by correlation": "/?q={correlation}",
    "search by file": "/?q=upload-050000-3",
    "dead letters": "/dead-letters",
    "outbox": "/outbox",
}


def main() -> None:
    """Fill, ask, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=100_000)
    batches = parser.parse_args().batches
    with servers() as (database_url, redis_url):
        began = time.monotonic()
        found = fill(database_url, batches)
        say(f"{batches} batches of {SLOTS} slots written in {time.monotonic() - began:.0f} s\n")
        with serving(database_url, redis_url) as (url, pid):
            say("| page | median | slowest of 30 |\n| --- | --- | --- |")
            for name, path in PAGES.items():
                took = [ask(url + path.format(**found)) for _ in range(REPEATS)]
                median, slowest = statistics.median(took) * 1000, max(took) * 1000
                say(f"| {name} | {median:.0f} ms | {slowest:.0f} ms |")
            say(f"\n| requests | memory of the process |\n| --- | --- |\n{memory(url, pid)}")


def fill(database_url: str, batches: int) -> dict[str, str]:
    """Write the batches; return what some of the addresses name."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        for statement in FILL.split(";\n"):
            conn.execute(statement.encode(), {"batches": batches, "slots": SLOTS})
        row = conn.execute(
            "SELECT correlation_id::text, to_char(registered_at, 'YYYY-MM-DD\"T\"HH24:MI:SS')"
            " FROM batch_essay_trackers ORDER BY registered_at OFFSET %s LIMIT 1",
            [batches // 2],
        ).fetchone()
    assert row is not None
    return {"correlation": row[0], "middle": row[1]}


def memory(url: str, pid: int) -> str:
    """Ask 1 000 times, and tell the memory on the way."""
    lines = []
    for number in range(REQUESTS + 1):
        if number % (REQUESTS // 4) == 0:
            status = Path(f"/proc/{pid}/status").read_text()
            resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            lines.append(f"| {number} | {int(resident.split()[1]) / 1024:.1f} MiB |")
        ask(url + ("/" if number % 2 else "/batches/batch-050000"))
    return "\n".join(lines)


def ask(url: str) -> float:
    """Fetch a page as a browser does; return the seconds it took."""
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - our own server
        answer.read()
    return time.perf_counter() - began


@contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """Run Postgres and Valkey, embedded, in a folder that goes away."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="els-bench-")))
        started = []
        for kind in (Postgres, Valkey):
            server = kind(home / kind.__name__, free_port(), "bench")
            stack.callback(server.stop)
            server.start()
            started.append(server.url)
        upgrade(started[0])
        yield started[0], started[1]


@contextmanager
def serving(database_url: str, redis_url: str) -> Iterator[tuple[str, int]]:
    """Run the ops page as `els run` does."""
    port = free_port()
    environ = {
        **os.environ,
        "ELS_DATABASE_URL": database_url,
        "ELS_REDIS_URL": redis_url,
        "ELS_OPS_PORT": str(port),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "ops", "ops"], env=environ, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        await_life(url + "/healthz")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(20)


def await_life(url: str) -> None:
    """Wait until somebody answers; a minute is enough even on a busy machine."""
    deadline = time.monotonic() + 60
    while True:
        try:
            ask(url)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def say(line: str) -> None:
    """Print a line of the table at once."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
