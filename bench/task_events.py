"""Measure what the events that Flower needs cost a worker: contents a second with and without.

    python -m bench.task_events --contents 2000 --rounds 5

One worker on private servers takes the same number of contents with events switched on and off by
remote control, in turn, so that whatever else the machine does weighs on both. The messages are
sent before the clock starts. Read the ratio, not the rates.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
        stack.enter_context(_worker(postgres.url, valkey.url, Path(home), sender))
        _round(valkey.url, sender, conn, asked.contents // 4, events=True)  # warms up
        ratios = []
        for _ in range(asked.rounds):
            rates = [
                _round(valkey.url, sender, conn, asked.contents, events=on) for on in (False, True)
            ]
            ratios.append(rates[1] / rates[0])
            told = f"without events {rates[0]:.0f}/s, with {rates[1]:.0f}/s: {ratios[-1]:.2f}"
            print(told, flush=True)
        print(f"ratio, median: {median(ratios):.2f}")


@contextmanager
def _worker(database_url: str, redis_url: str, home: Path, sender: Sender) -> Iterator[None]:
    urls = {"ELS_DATABASE_URL": database_url, "ELS_REDIS_URL": redis_url, "ELS_BROKER_URL": ""}
    more = {"ELS_QUEUE": QUEUE, "ELS_HOME": str(home), "ELS_LOG_FORMAT": "json"}
    with (home / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-q", "-A", "tasks.app", "worker"],
            env={**os.environ, **urls, **more},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        while not sender.app.control.ping(timeout=0.5):
            pass
        yield
    finally:
        process.terminate()
        process.wait()


def _round(valkey_url: str, sender: Sender, conn: Conn, contents: int, *, events: bool) -> float:
    """Let the worker take one batch; return contents a second."""
    control, batch = sender.app.control, f"batch-{uuid4().hex[:12]}"
    (control.enable_events if events else control.disable_events)(reply=True, timeout=2)
    _register(sender, conn, batch, contents + 1)  # one slot stays open: no completion is measured
    with Sender(valkey_url, HELD) as held:
        for n in range(contents):
            held.send("els.assign_content", _content(batch, n))
    started = time.perf_counter()
    redis.Redis.from_url(valkey_url).rename(HELD, QUEUE)  # all are there at once
    _until_carried_out(conn, batch, contents + 1)
    return contents / (time.perf_counter() - started)


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
