"""What the hot path costs: one Redis call and one statement, however long the way around it."""

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, dropwhile, takewhile
from uuid import uuid4

import pytest
from psycopg.types.json import Jsonb

from core import db
from core.lifecycle import WHOLE_BATCH, Lifecycle
from core.messages import EssayContentProvisioned
from core.model import Message
from core.outbox import relay
from core.parsing import parse
from core.seals import Sealed
from tests.core import looks
from tests.core.story import assign, cancel, confirm, fill, register, reject, texts, upload
from tests.factories import LIMIT, content, essay_ids, new_batch


@dataclass(frozen=True)
class Wire:
    """What a step sent: Redis' commands, and how often Postgres was asked."""

    commands: list
    round_trips: int


@contextmanager
def traced(pool, path):
    """Let libpq write down what the pool's one connection sends."""
    with path.open("wb") as trace:
        with pool.connection() as connection:
            connection.pgconn.trace(trace.fileno())
        yield
        with pool.connection() as connection:
            connection.pgconn.untrace()


def commands_of(valkey, step):
    """Take a step; return the commands that Redis got from clients, those of scripts aside."""
    start, end = uuid4().hex, uuid4().hex
    with valkey.monitor() as monitor:
        valkey.echo(start)  # so that the client is connected
        step()
        valkey.echo(end)
        told = [*takewhile(lambda each: end not in each["command"], monitor.listen())]
    taken = [*dropwhile(lambda each: start not in each["command"], told)][1:]
    return [each["command"].split()[0].upper() for each in taken if each["client_type"] != "lua"]


@pytest.fixture
def costs(slots, valkey, database_url, tmp_path):
    """A lifecycle with one connection to Postgres, and a measure of its steps."""
    with db.connect(database_url, size=1) as pool:

        def measure(step):
            path = tmp_path / "trace"
            with traced(pool, path):
                commands = commands_of(valkey, step)
            told = [line.split("\t") for line in path.read_text().splitlines()]
            # F: by the frontend, us. A statement's own line breaks make lines without a mark.
            sent = [parts[3] for parts in told if parts[1:2] == ["F"]]
            return Wire(commands, sent.count("Sync") + sent.count("Query"))

        yield Lifecycle(pool, slots), measure


UPLOAD = 250  # contents


@pytest.mark.parametrize("kind", ["content", "rejection", "upload"])
def test_an_arrival_costs_one_redis_call_and_one_statement(costs, conn, batch_id, kind):
    lifecycle, measure = costs
    register(lifecycle, batch_id, 4 * UPLOAD)
    arrive = {
        "content": lambda text: assign(lifecycle, batch_id, text),
        "rejection": lambda text: reject(lifecycle, batch_id, text),
        "upload": lambda text: upload(lifecycle, batch_id, [f"{text}-{n}" for n in range(UPLOAD)]),
    }[kind]
    for text in texts(2):
        arrive(text)  # so that scripts are loaded and the statement is prepared

    wire = measure(lambda: arrive("text-measured"))

    assert wire.commands == ["EVALSHA"]
    assert wire.round_trips == 1
    assert looks.broken(conn, batch_id) == []


@pytest.mark.parametrize(("count", "each_gets"), [(1, 50), (10, 5)])
def test_contents_of_many_messages_cost_one_trip_to_redis_and_one_statement(
    costs, conn, count, each_gets
):
    lifecycle, measure = costs
    batches = [new_batch() for _ in range(count)]
    for each in batches:
        register(lifecycle, each, 4 * each_gets)

    def together(start):
        events = [content(each, text) for text in texts(each_gets, start) for each in batches]
        model = EssayContentProvisioned
        parsed = [parse(model, "els.assign_content", e, LIMIT) for e in events]
        results = lifecycle.assign([Message.of(*each) for each in parsed])
        assert {each.value["outcome"] for each in results} == {"assigned"}

    for start in (0, each_gets):
        together(start)  # so that scripts are loaded and the statement is prepared

    wire = measure(lambda: together(2 * each_gets))

    assert (wire.commands, wire.round_trips) == (["EVALSHA"] * count, 1)
    assert [looks.broken(conn, each) for each in batches] == [[]] * count


def test_the_last_content_costs_no_more(costs, batch_id):
    lifecycle, measure = costs
    register(lifecycle, batch_id, 3)
    for text in texts(2):
        assign(lifecycle, batch_id, text)

    wire = measure(lambda: assign(lifecycle, batch_id, "text-last"))

    assert (wire.commands, wire.round_trips) == (["EVALSHA"], 1)


def test_the_measure_sees_a_longer_way(costs, batch_id, valkey):
    lifecycle, measure = costs
    register(lifecycle, batch_id, 3)
    assign(lifecycle, batch_id, "text-1")

    def forgetful():
        valkey.flushdb()
        assign(lifecycle, batch_id, "text-2")

    wire = measure(forgetful)

    assert len(wire.commands) > 2
    assert wire.round_trips > 3


def sealed_and_announced(lifecycle, *batches):
    [[ranges]] = lifecycle.headers(dict.fromkeys(batches, 3))
    seals, books = lifecycle.seal_slots(ranges), lifecycle.seal_books(batches)
    return lifecycle.announce_ready({b: Sealed([seals[b]], books[b]) for b in batches})


def filled(lifecycle, batch_id):
    fill(lifecycle, batch_id, 3)


def awaiting_students(lifecycle, batch_id):
    fill(lifecycle, batch_id, 3, class_id="class-1")
    lifecycle.complete(batch_id)


def announced(lifecycle, batch_id):
    filled(lifecycle, batch_id)
    sealed_and_announced(lifecycle, batch_id)


def relayed(lifecycle, *batches):
    relay(lifecycle.pool, batches, lambda events: None)


def nothing(lifecycle, batch_id):
    pass


# What comes before, the step, of how many batches it is taken at once, its Redis calls, its round
# trips to Postgres (BEGIN and COMMIT too).
STEPS = {
    "registration": (nothing, register, 1, ["EVALSHA"], 7),
    "headers": (filled, lambda c, b: [*c.headers({b: None})], 1, [], 1),
    "headers of a small batch": (filled, lambda c, b: [*c.headers({b: 3})], 1, [], 0),
    "seal of a range": (filled, lambda c, b: c.seal_slots({b: WHOLE_BATCH}), 1, [], 1),
    "seal of the books": (filled, lambda c, b: c.seal_books([b]), 1, ["SCARD"], 1),
    "seals and announcement": (
        filled,
        sealed_and_announced,
        1,
        ["SCARD", "DEL", "EXPIRE", "EXPIRE"],
        5,
    ),
    "seals and announcement of three": (
        filled,
        sealed_and_announced,
        3,
        [*["SCARD"] * 3, *["DEL", "EXPIRE", "EXPIRE"] * 3],
        5,
    ),
    "students": (
        awaiting_students,
        lambda c, b: confirm(c, b, {e: f"of-{e}" for e in essay_ids(3)}),
        1,
        [],
        12,
    ),
    "cancellation": (filled, cancel, 1, ["DEL", "EXPIRE", "EXPIRE"], 7),
    "relay": (announced, relayed, 1, [], 3),
    "relay of three": (announced, relayed, 3, [], 3),
}


@pytest.mark.parametrize("name", STEPS)
def test_each_step_costs_a_known_number_of_calls(costs, name):
    lifecycle, measure = costs
    before, step, count, commands, round_trips = STEPS[name]
    groups = [[new_batch() for _ in range(count)] for _ in range(3)]
    for batch_id in chain(*groups):
        before(lifecycle, batch_id)
    for group in groups[:2]:
        step(lifecycle, *group)  # so that scripts are loaded and statements are prepared

    wire = measure(lambda: step(lifecycle, *groups[2]))

    assert (wire.commands, wire.round_trips) == (commands, round_trips)


def plan_of_placing(conn, batch_id):
    batches = [{"batch_id": batch_id, "submissions": [{"essay_id": "essay-1"}]}]
    one = {"batches": Jsonb(batches), "traceparent": None}
    told = conn.execute("EXPLAIN " + db.slots.PLACE, one).fetchall()
    return "\n".join(line["QUERY PLAN"] for line in told)


def test_a_content_reads_one_slot_of_a_large_batch_whatever_the_statistics(
    lifecycle, conn, batch_id
):
    register(lifecycle, batch_id, 5_000)
    conn.execute("ANALYZE essay_states")

    plan = plan_of_placing(conn, batch_id)

    both = [line for line in plan.splitlines() if "Index Cond" in line and "a_1.essay_id" in line]
    assert len(both) == 1
    assert "batch_id = (a_1.batch_id)" in both[0]


@pytest.mark.parametrize("by_key", [True, False])
def test_a_worker_looks_slots_up_by_key_in_a_new_table_too(database_url, batch_id, by_key):
    with db.connect(database_url, size=1, by_key=by_key) as pool, pool.connection() as conn:
        conn.execute("CREATE TEMP TABLE essay_states (LIKE public.essay_states INCLUDING ALL)")

        plan = plan_of_placing(conn, batch_id)

    assert ("Seq Scan on essay_states" in plan) is not by_key
