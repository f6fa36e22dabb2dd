"""Measure what the events that Flower needs cost a worker: its CPU a content, with and without.

    python -m bench.task_events --contents 2000 --rounds 5

One worker on private servers takes the same number of contents with events switched on and off by
remote control, in turn. The CPU of all its processes is counted, from /proc, which a busy machine
disturbs less than the time that passes. Read the ratio, not the times.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from uuid import uuid4

import redis

from bench.metrics_page import running
from core import ledger
from core.ledger import Conn
from migrations import upgrade
from ops.client import Sender, common
from ops.embedded import Postgres, Valkey, free_port

QUEUE, HELD = "task-events", "task-events-held"
POLL_S = 0.05


def main() -> None:
    """Make the servers and a worker, measure, and print a line a round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contents", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="els-bench-") as home, ExitStack() as stack:
        postgres, valkey = [
            stack.enter_context(running(kind(Path(home) / kind.name, free_port(), "bench")))
            for kind in (Postgres, Valkey)
        ]
        upgrade(postgres.url)
        conn = stack.enter_context(ledger.connect_once(postgres.url))
        sender = stack.enter_context(Sender(valkey.url, QUEUE))
        group = stack.enter_context(_worker(postgres.url, valkey.url, Path(home), sender))
        _take(valkey.url, sender, conn, asked.contents // 4)  # warms up
        ratios = []
        for _ in range(asked.rounds):
            off, on = [
                _cpu_ms(group, lambda: _take(valkey.url, sender, conn, asked.contents), switch)
                / asked.contents
                for switch in (sender.app.control.disable_events, sender.app.control.enable_events)
            ]
            ratios.append(on / off)
            print(f"without events {off:.2f} ms, with {on:.2f} ms: {ratios[-1]:.2f}", flush=True)
        print(f"ratio, median: {median(ratios):.2f}")


@contextmanager
def _worker(database_url: str, redis_url: str, home: Path, sender: Sender) -> Iterator[int]:
    urls = {"ELS_DATABASE_URL": database_url, "ELS_REDIS_URL": redis_url, "ELS_BROKER_URL": ""}
    more = {"ELS_QUEUE": QUEUE, "ELS_HOME": str(home), "ELS_LOG_FORMAT": "json"}
    with (home / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-q", "-A", "tasks.app", "worker"],
            env={**os.environ, **urls, **more},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not sender.app.control.ping(timeout=0.5):
            pass
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _cpu_ms(group: int, work: Callable[[], None], switch: Callable[..., object]) -> float:
    """Return the CPU that a group of processes spends on some work, once a switch is turned."""
    switch(reply=True, timeout=2)
    before = _spent_ms(group)
    work()
    return _spent_ms(group) - before


def _spent_ms(group: int) -> float:
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks * 1e3 / os.sysconf("SC_CLK_TCK")


def _take(valkey_url: str, sender: Sender, conn: Conn, contents: int) -> None:
    """Let the worker take one batch, but for its last slot: no completion is measured."""
    batch = f"batch-{uuid4().hex[:12]}"
    _register(sender, conn, batch, contents + 1)
    with Sender(valkey_url, HELD) as held:
        for n in range(contents):
            held.send("els.assign_content", _content(batch, n))
    redis.Redis.from_url(valkey_url).rename(HELD, QUEUE)  # all are there at once
    _until_carried_out(conn, batch, contents + 1)


def _register(sender: Sender, conn: Conn, batch: str, slots: int) -> None:
    ids = [f"essay-{n}" for n in range(slots)]
    expected = {"essay_ids": ids, "expected_essay_count": slots}
    event = common(batch, course_code="ENG5", user_id="teacher", **expected)
    sender.send("els.register_batch", event)
    _until_carried_out(conn, batch, 1)


def _content(batch: str, number: int) -> dict[str, object]:
    ids = {"text_storage_id": f"text-{number}", "file_upload_id": f"file-{number}"}
    return common(batch, original_file_name="essay.txt", file_size_bytes=1, **ids)


def _until_carried_out(conn: Conn, batch: str, messages: int) -> None:
    query = "SELECT count(*) AS n FROM idempotency_keys WHERE batch_id = %s"
    while (conn.execute(query, [batch]).fetchone() or {})["n"] < messages:
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
