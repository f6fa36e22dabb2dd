"""The contest: our single contents and every peer take turns at the same job.

The database's clock times it, from the moment when a tenth of the contents have their slots, which
leaves out the start of the processes, to the last readiness.
"""

import subprocess
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import LiteralString

from bench.cases import Case, drain_singles, run_cases
from bench.load import CLASS, register
from bench.measure import Figure, Goal
from bench.peers import PEERS, Peer
from bench.peers.job import SCHEMA
from bench.testbed import DRAIN_TIMEOUT_S, BenchError, Testbed, Timing

OURS = "contest_singles"
TENTH = 0.1
OUR_TIMES = (
    "SELECT extract(epoch FROM assigned_at) AS at FROM essay_states"
    " WHERE assigned_at IS NOT NULL ORDER BY 1",
    "SELECT extract(epoch FROM max(ready_at)) AS at FROM batch_essay_trackers",
)
PEER_TIMES = (
    "SELECT extract(epoch FROM seen_at) AS at FROM peers.seen ORDER BY 1",
    "SELECT extract(epoch FROM max(ready_at)) AS at FROM peers.ready",
)
OURS_READY = "SELECT count(ready_at) AS n FROM batch_essay_trackers"
PEER_READY = "SELECT count(*) AS n FROM peers.ready"
_batches = count()


def measure_contest(
    testbed: Testbed, seconds: float, rounds: int, tick: Callable[[], None]
) -> tuple[list[Figure], list[str]]:
    """Let all installed peers take turns; return a figure each, and the missing peers."""
    cases = [
        Case(OURS, "single contents, in the contest", partial(run_ours, testbed)),
        *(Case(p.name, p.what, partial(run_peer, testbed, p)) for p in PEERS if p.installed),
    ]
    missing = [f"{p.what}: {p.package} is not installed" for p in PEERS if not p.installed]
    return run_cases(cases, seconds, rounds, tick), missing


def contest_goals() -> list[Goal]:
    """List how many times as fast as each peer we should be."""
    return [
        Goal(f"single contents against {peer.what}", OURS, peer.name, at_least=peer.at_least)
        for peer in PEERS
    ]


def run_ours(testbed: Testbed, amount: int) -> Timing:
    """Fill usual batches with single contents, on running workers."""
    drain_singles(testbed, amount)
    return _timed(testbed, OUR_TIMES, amount)


def run_peer(testbed: Testbed, peer: Peer, amount: int) -> Timing:
    """Enqueue the job of a peer, let its workers do it, and check the result."""
    testbed.empty()
    names = [f"contest-{next(_batches):06d}" for _ in range(amount // CLASS)]
    if peer.our_tables:
        names = [batch.batch_id for batch in register(testbed, [CLASS] * len(names))]
    _lay_out(testbed, names)
    subprocess.run(  # noqa: S602 - our own command
        peer.enqueue, shell=True, env=testbed.environ, check=True, capture_output=True, timeout=600
    )
    command = f"exec {peer.worker.format(n=testbed.crew.processes)}"
    times = 1 if peer.families else testbed.crew.processes
    workers = testbed.run(f"peer-{peer.name}", command, {}, times)
    try:
        done = partial(_count_ready, testbed, OURS_READY if peer.our_tables else PEER_READY)
        testbed.until(lambda: done() >= len(names), DRAIN_TIMEOUT_S, f"{peer.name} is done")
    finally:
        workers.stop()
    if peer.our_tables:
        return _timed(testbed, OUR_TIMES, amount)
    _check(testbed, len(names), amount)
    return _timed(testbed, PEER_TIMES, amount)


def _lay_out(testbed: Testbed, names: list[str]) -> None:
    """Make the tables of the job, with these batches."""
    with testbed.pool.connection() as conn:
        conn.execute(SCHEMA.read_bytes())
        conn.execute("INSERT INTO peers.batches SELECT unnest(%s::text[]), %s", [names, CLASS])
        conn.execute(
            "INSERT INTO peers.slots (batch_id, essay_id)"
            " SELECT batch_id, 'essay-' || lpad(n::text, 6, '0')"
            " FROM peers.batches, generate_series(0, open_slots - 1) n"
        )
    testbed.calm()


def _count_ready(testbed: Testbed, query: LiteralString) -> int:
    with testbed.pool.connection() as conn:
        row = conn.execute(query).fetchone()
    return int(row["n"]) if row else 0


def _check(testbed: Testbed, batches: int, amount: int) -> None:
    """Check that a peer did the job: one slot per content, one readiness per batch."""
    with testbed.pool.connection() as conn:
        found = conn.execute(
            "SELECT (SELECT count(text_storage_id) FROM peers.slots) AS assigned,"
            " (SELECT count(*) FROM peers.ready) AS ready,"
            " (SELECT count(DISTINCT batch_id) FROM peers.ready) AS batches"
        ).fetchone()
    if found != {"assigned": amount, "ready": batches, "batches": batches}:
        raise BenchError(f"{batches} batches, {amount} contents: {found}")


def _timed(testbed: Testbed, times: tuple[LiteralString, LiteralString], amount: int) -> Timing:
    """Read the times from the database."""
    with testbed.pool.connection() as conn:
        contents = [float(row["at"]) for row in conn.execute(times[0])]
        last = conn.execute(times[1]).fetchone()
    if last is None or len(contents) != amount:
        raise BenchError(f"{len(contents)} of {amount} contents were assigned")
    skipped = int(amount * TENTH)
    return Timing(amount - skipped, float(last["at"]) - contents[skipped])
