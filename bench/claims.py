"""The claim alone: our script beside the two usual ways, by many claimers of one batch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from time import perf_counter

import psycopg
import redis

from bench.cases import Case
from bench.measure import Goal
from bench.testbed import BenchError, Testbed, Timing
from core import db

CLAIMERS = 16
Claim = Callable[[str], str | None]
_batches = count()

TABLE = """
CREATE TABLE IF NOT EXISTS bench_slots (
    batch_id text, essay_id text, claimant text, PRIMARY KEY (batch_id, essay_id)
)
"""
SKIP_LOCKED = """
UPDATE bench_slots SET claimant = %(claimant)s
WHERE batch_id = %(batch)s AND essay_id = (
    SELECT essay_id FROM bench_slots WHERE batch_id = %(batch)s AND claimant IS NULL
    LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING essay_id
"""


def claim_cases(testbed: Testbed) -> list[Case]:
    """List the three ways to claim."""
    ways = [
        ("claim_script", "claims by our script", by_script),
        ("claim_watch", "claims by WATCH, MULTI, EXEC", by_watch),
        ("claim_skip_locked", "claims by FOR UPDATE SKIP LOCKED", by_skip_locked),
    ]
    return [
        Case(name, f"{what}, {CLAIMERS} claimers", partial(way, testbed), step=CLAIMERS)
        for name, what, way in ways
    ]


def by_script(testbed: Testbed, amount: int) -> Timing:
    """Claim as the service does."""
    batch, essays = _batch(amount)
    testbed.slots.seed(batch, essays)

    def claim(claimant: str) -> str | None:
        [made] = testbed.slots.claim({batch: [claimant]})[batch]
        return made.essay_id

    return _race(claim, amount)


def by_watch(testbed: Testbed, amount: int) -> Timing:
    """Claim optimistically: try again when another claimer was faster."""
    batch, essays = _batch(amount)
    client = testbed.slots.client
    free, held = f"batch:{{{batch}}}:free", f"batch:{{{batch}}}:held"
    client.sadd(free, *essays)

    def claim(claimant: str) -> str | None:
        with client.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(free)  # type: ignore[no-untyped-call] # redis-py
                    essay_id = str(pipe.srandmember(free))
                    pipe.multi()
                    pipe.srem(free, essay_id)
                    pipe.hset(held, claimant, essay_id)
                    pipe.execute()
                except redis.WatchError:
                    continue
                return essay_id

    return _race(claim, amount)


def by_skip_locked(testbed: Testbed, amount: int) -> Timing:
    """Claim in Postgres alone; commit each claim."""
    batch, essays = _batch(amount)
    with db.connect(testbed.database_url, size=CLAIMERS) as pool:
        with pool.connection() as conn:
            conn.execute(TABLE)
            conn.execute("INSERT INTO bench_slots SELECT %s, unnest(%s::text[])", [batch, essays])
            testbed.calm()

        def claim(claimant: str) -> str | None:
            with pool.connection() as conn:
                row = conn.execute(SKIP_LOCKED, {"claimant": claimant, "batch": batch}).fetchone()
            return row["essay_id"] if row else None

        return _race(claim, amount)


def _batch(slots: int) -> tuple[str, list[str]]:
    return f"claims-{next(_batches):06d}", [f"essay-{number:06d}" for number in range(slots)]


def _race(claim: Claim, amount: int) -> Timing:
    """Let all claimers run for the slots; each must get one of its own."""
    with ThreadPoolExecutor(CLAIMERS) as claimers:
        list(claimers.map(lambda _: None, range(CLAIMERS)))
        started = perf_counter()
        try:
            got = list(claimers.map(claim, [f"text-{number}" for number in range(amount)]))
        except (redis.RedisError, psycopg.Error) as error:
            raise BenchError(f"a claim failed: {error}") from error
        seconds = perf_counter() - started
    if len(set(got) - {None}) != amount:
        raise BenchError(f"{amount} claims got {len(set(got) - {None})} slots")
    return Timing(amount, seconds)


GOALS = [
    Goal("claims by script against WATCH", "claim_script", "claim_watch"),
    Goal("claims by script against SKIP LOCKED", "claim_script", "claim_skip_locked"),
]
