"""What the hot path costs: one Redis call and one statement, however long the way around it."""

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from uuid import uuid4

import pytest

from core import ledger
from core.events import EssayContentProvisioned, parse
from core.lifecycle import CHUNK, Lifecycle
from tests.core import looks
from tests.core.story import assign, register, reject, texts, upload
from tests.factories import LIMIT, content


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
    with ledger.connect(database_url, size=1) as pool:

        def measure(step):
            path = tmp_path / "trace"
            with traced(pool, path):
                commands = commands_of(valkey, step)
            told = [line.split("\t") for line in path.read_text().splitlines()]
            # F: by the frontend, us. A statement's own line breaks make lines without a mark.
            sent = [parts[3] for parts in told if parts[1:2] == ["F"]]
            return Wire(commands, sent.count("Sync") + sent.count("Query"))

        yield Lifecycle(pool, slots), measure


@pytest.mark.parametrize("kind", ["content", "rejection", "upload"])
def test_an_arrival_costs_one_redis_call_and_one_statement(costs, conn, batch_id, kind):
    lifecycle, measure = costs
    register(lifecycle, batch_id, 2 * CHUNK)
    arrive = {
        "content": lambda text: assign(lifecycle, batch_id, text),
        "rejection": lambda text: reject(lifecycle, batch_id, text),
        "upload": lambda text: upload(
            lifecycle, batch_id, [f"{text}-{n}" for n in range(CHUNK // 2)]
        ),
    }[kind]
    for text in texts(2):
        arrive(text)  # so that scripts are loaded and the statement is prepared

    wire = measure(lambda: arrive("text-measured"))

    assert wire.commands == ["EVALSHA"]
    assert wire.round_trips == 1
    assert looks.broken(conn, batch_id) == []


def test_contents_of_many_messages_cost_one_redis_call_and_one_statement(costs, conn, batch_id):
    lifecycle, measure = costs
    register(lifecycle, batch_id, 200)

    def together(start):
        events = [content(batch_id, text) for text in texts(50, start)]
        model = EssayContentProvisioned
        placed = lifecycle.assign_together(
            [parse(model, "els.assign_content", e, LIMIT) for e in events]
        )
        assert all(placed)

    for start in (0, 50):
        together(start)  # so that scripts are loaded and the statement is prepared

    wire = measure(lambda: together(100))

    assert (wire.commands, wire.round_trips) == (["EVALSHA"], 1)
    assert looks.broken(conn, batch_id) == []


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
