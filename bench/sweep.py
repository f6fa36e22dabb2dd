"""Time the sweep over many open batches, and each of its rules.

    python -m bench.sweep --batches 100000 --slots 25

Open batches, one slot of each taken, are written straight into an embedded Postgres and Valkey. Of
every thousandth one Redis has forgotten the slots: these are mended, and not counted in the times
of the quiet sweeps that follow.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from core import db, logs
from core.checks import CheckContext
from core.db.connection import Conn
from core.lifecycle import Lifecycle
from core.repairs import RepairContext
from core.rules import RULES
from core.servers.redis_client import connect
from core.settings import Settings
from core.slots import Slots
from core.sweep import sweep
from migrations import upgrade
from ops.stack.embedded import Postgres, Valkey
from ops.stack.ports import free_port

BATCHES = """
    INSERT INTO batch_essay_trackers (batch_id, status, user_id, course_code, correlation_id,
        expected_count, available_slots, essay_ids_sha256, on_deadline, deadline_at)
    SELECT 'batch-' || n, 'awaiting_content_validation', 'teacher-1', 'ENG5', gen_random_uuid(),
        %(slots)s, %(slots)s - 1, '', 'fail', now() + interval '1 day'
    FROM generate_series(1, %(batches)s) n
"""
ESSAYS = """
    INSERT INTO essay_states (batch_id, essay_id, current_status, text_storage_id, file_upload_id,
        original_file_name, assigned_at)
    SELECT 'batch-' || n, 'essay-' || e,
        CASE WHEN e > 1 THEN 'awaiting_content' ELSE 'ready_for_processing' END,
        CASE WHEN e = 1 THEN 'text' END, CASE WHEN e = 1 THEN 'file' END,
        CASE WHEN e = 1 THEN 'a.txt' END, CASE WHEN e = 1 THEN now() END
    FROM generate_series(1, %(batches)s) n, generate_series(1, %(slots)s) e
"""


def main() -> None:
    """Read the options, fill the stores, sweep, and print the times."""
    parser = argparse.ArgumentParser(description="Time the sweep over many open batches.")
    parser.add_argument("--batches", type=int, default=100_000)
    parser.add_argument("--slots", type=int, default=25, help="slots of a batch")
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    logs.configure(Settings(log_level="ERROR"))
    home = Path(tempfile.mkdtemp(prefix="bench-sweep-"))
    postgres = Postgres(home / "postgres", free_port(), "bench-password")
    valkey = Valkey(home / "valkey", free_port(), "bench-password")
    try:
        postgres.start()
        valkey.start()
        upgrade(postgres.url)
        with db.connect(postgres.url, by_key=True) as pool, pool.connection() as conn:
            slots = Slots(connect(valkey.url))
            _fill(conn, slots, options)
            _report(
                RepairContext(Lifecycle(pool, slots), lambda event: None),
                options,
            )
    finally:
        valkey.stop()
        postgres.stop()


def _fill(conn: Conn, slots: Slots, options: argparse.Namespace) -> None:
    size = {"batches": options.batches, "slots": options.slots}
    conn.execute(BATCHES, size)
    conn.execute(ESSAYS, size)
    conn.execute("VACUUM ANALYZE")
    free = [f"essay-{number}" for number in range(2, options.slots + 1)]
    for number in range(1, options.batches + 1):
        if number % 1000:
            slots.seed(f"batch-{number}", free)


def _report(context: RepairContext, options: argparse.Namespace) -> None:
    rounds, mended = [], 0
    for _ in range(options.rounds):
        started = time.perf_counter()
        found = sweep(context) or []
        rounds.append((time.perf_counter() - started, len(found)))
        mended += len(found)
    quiet = [seconds for seconds, found in rounds if not found]
    busy = [seconds for seconds, found in rounds if found]
    print(f"{options.batches} open batches of {options.slots} slots, {options.rounds} sweeps")
    print(f"  quiet   {_times(quiet)}")
    print(f"  mending {_times(busy)}, {mended} batches mended")
    with context.lifecycle.pool.connection() as conn:
        for rule in RULES:
            looks = (CheckContext(conn, context.lifecycle.slots) for _ in range(9))
            print(f"    {rule.code:26} {_times([_timed(rule.check, look) for look in looks])}")


def _timed(check: Callable[[CheckContext], object], context: CheckContext) -> float:
    started = time.perf_counter()
    check(context)
    return time.perf_counter() - started


def _times(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    return f"median {statistics.median(seconds) * 1e3:.0f} ms, longest {max(seconds) * 1e3:.0f} ms"


if __name__ == "__main__":
    main()
