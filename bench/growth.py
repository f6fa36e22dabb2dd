"""Growth: the cost of a content in large batches, among many open ones, and in full tables."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice

from bench.cases import Case, drain_contents, drain_singles, drain_uploads, run_cases
from bench.load import CLASS, UPLOAD, Batch, register
from bench.measure import Figure, Goal
from bench.queues import Message
from bench.testbed import Testbed, Timing

SIZES = (10, 100, 1_000, 10_000, 100_000)
OPEN = (1, 10, 100, 1_000, 10_000)
MESSAGE = 100  # contents of one upload, whatever the batch
FULL = 1_000_000  # essays already in the tables
COST = "µs a content"

FILL = [  # old batches that are ready, with all their rows
    """
    INSERT INTO batch_essay_trackers (
        batch_id, status, user_id, course_code, correlation_id, expected_count, available_slots,
        essay_ids_sha256, on_deadline, registered_at, deadline_at, full_at, completed_at, ready_at,
        provisioned_count)
    SELECT 'old-' || lpad(b::text, 7, '0'), 'ready_for_pipeline_execution', 'teacher-1', 'ENG5',
           gen_random_uuid(), %(class)s, 0, '', 'fail', at, at + interval '1 day', at, at, at,
           %(class)s
    FROM generate_series(1, %(batches)s) b, (SELECT now() - interval '30 days' AS at) t
    """,
    """
    INSERT INTO essay_states (
        batch_id, essay_id, current_status, text_storage_id, file_upload_id, original_file_name,
        raw_file_storage_id, file_size_bytes, content_md5_hash, assigned_at)
    SELECT batch_id, 'essay-' || lpad(n::text, 6, '0'), 'ready_for_processing', 'text-' || n,
           'file-' || n, 'essay ' || n || '.docx', 'raw-' || n, 14200,
           '9e107d9d372bb6826bd81d3542a419d6', ready_at
    FROM batch_essay_trackers, generate_series(1, %(class)s) n
    """,
    """
    INSERT INTO idempotency_keys (key, task, fingerprint, outcome, batch_id)
    SELECT gen_random_uuid(), 'els.assign_content', sha256(essay_id::bytea),
           jsonb_build_object('outcome', 'assigned', 'batch_id', batch_id, 'essay_id', essay_id),
           batch_id
    FROM essay_states
    """,
    """
    INSERT INTO event_outbox (
        id, batch_id, type, generation, sequence, correlation_id, data, published_at, attempts)
    SELECT gen_random_uuid(), batch_id, 'BatchEssaysReady', '', 1, correlation_id, '{}', ready_at, 1
    FROM batch_essay_trackers
    """,
    "VACUUM ANALYZE",
]


def fill(testbed: Testbed, essays: int) -> Testbed:
    """Make a testbed beside this one whose tables already hold this many essays, and keep them."""
    full = testbed.beside("full")
    full.keeps = True
    with full.pool.connection() as conn:
        conn.execute("SET statement_timeout = 0")
        for statement in FILL:
            values = {"class": CLASS, "batches": essays // CLASS} if "%(" in statement else None
            conn.execute(statement.encode(), values)
        conn.execute("RESET statement_timeout")
    return full


def drain_large(testbed: Testbed, size: int, amount: int) -> Timing:
    """Fill batches of one size, from the first content to the last readiness event."""
    sizes = [size] * max(amount // size, 1)
    return drain_contents(testbed, lambda b: list(b.uploads(MESSAGE)), sizes)


def drain_open(testbed: Testbed, batches: int, amount: int) -> Timing:
    """Send single contents to this many batches in turn, without filling any."""
    workers = testbed.els()
    testbed.empty()
    size = max(amount // batches + 2, CLASS)  # the first get one more than the last
    registered = register(testbed, [size] * batches)
    messages = list(islice(_in_turn(registered), amount))
    timing = testbed.drain(workers, messages, amount, partial(testbed.taken_in, workers, amount))
    testbed.check([batch.batch_id for batch in registered], amount, ready=False)
    return timing


def _in_turn(batches: Sequence[Batch]) -> Iterator[Message]:
    waiting = [batch.singles() for batch in batches]
    return chain.from_iterable(zip(*waiting, strict=True))


def growth_cases(testbed: Testbed, largest: int, essays: int) -> list[Case]:
    """List the cases, up to this many essays of a batch, open batches and essays in the tables."""
    cases = []
    for size in (size for size in SIZES if size <= largest):
        run, first = partial(drain_large, testbed, size), max(size, MESSAGE * 10)
        name, what = f"batch_of_{size}", f"uploads of {min(size, MESSAGE)}, batches of {size:,}"
        cases.append(Case(name, what, run, step=size, first=first, fixed=size > UPLOAD))
    for batches in (batches for batches in OPEN if batches <= largest):
        what = f"single contents, {batches:,} open batches"
        cases.append(Case(f"open_{batches}", what, partial(drain_open, testbed, batches)))
    full, mixed = fill(testbed, essays), (CLASS,)
    cases += [
        Case("singles_empty", "single contents, empty tables", partial(drain_singles, testbed)),
        Case(
            "singles_full",
            f"single contents, {essays:,} essays in the tables",
            partial(drain_singles, full),
        ),
        Case("uploads_empty", "uploads, empty tables", partial(drain_uploads, testbed, mixed)),
        Case(
            "uploads_full",
            f"uploads, {essays:,} essays in the tables",
            partial(drain_uploads, full, mixed),
        ),
    ]
    return cases


def measure_growth(
    cases: Sequence[Case], seconds: float, rounds: int, tick: Callable[[], None]
) -> list[Figure]:
    """Run the cases; return the cost of a content in each."""
    run_cases(cases, seconds, rounds, tick)
    costs = [[1e6 / rate for rate in case.figure.values] for case in cases]
    return [Figure(c.name, c.what, COST, cost) for c, cost in zip(cases, costs, strict=True)]


def measure_memory(testbed: Testbed, contents: int, tick: Callable[[], None]) -> Figure:
    """Measure the largest process of a new worker at rest and after each tenth of the contents."""
    testbed = testbed.other(f"{testbed.queue}.memory", testbed.crew, {})
    workers = testbed.els()
    figure = Figure("memory", f"largest worker process, from rest to {contents:,} contents", "MB")
    figure.values.append(workers.memory_mb())
    for _ in range(10):
        drain_uploads(testbed, [CLASS], contents // 10)
        figure.values.append(workers.memory_mb())
        tick()
    return figure


GOALS = [
    Goal(
        "a content in a batch of 100,000 against 100",
        "batch_of_100000",
        "batch_of_100",
        at_most=1.3,
    ),
    Goal("10,000 open batches against 1", "open_10000", "open_1"),
    Goal(
        "single contents in full tables against empty", "singles_full", "singles_empty", at_most=1.2
    ),
    Goal("uploads in full tables against empty", "uploads_full", "uploads_empty", at_most=1.2),
]
