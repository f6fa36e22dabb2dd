"""The bench measures what it says, on servers of its own; and every peer does the whole job."""

import json
import os
import xml.etree.ElementTree as ET
from datetime import UTC, datetime

import pytest

from bench import backlog, contest, growth
from bench.cases import Case, drain_singles
from bench.chart import bars, line
from bench.load import CLASS, register
from bench.machine import describe
from bench.measure import Figure, Goal, interleave, ratios
from bench.peers import PEERS
from bench.publish import publish
from bench.report import Report
from bench.run import QUICK
from bench.testbed import BenchError, Crew, Servers, Timing, open_testbed
from tests.ops.conftest import els


@pytest.fixture(scope="module")
def testbed():
    with open_testbed(Crew(), Servers(), lambda line: None) as opened:
        yield opened


@pytest.mark.timeout(900)  # a minute on a quiet machine
def test_a_quick_bench_gives_every_figure_and_its_files(tmp_path):
    told = els("bench", "--quick", "--json", "--out", tmp_path, timeout=800)

    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    rates = {each["name"]: each for each in found["figures"]}
    assert {"noop", "singles", "uploads_mixed", "register_100000", "readiness_p99"} <= rates.keys()
    assert all(each["low"] <= each["median"] <= each["high"] for each in rates.values())
    assert all(len(each["values"]) == QUICK.rounds for each in rates.values())
    assert all(each["low"] > 0 for each in rates.values())
    assert {each["of"] for each in found["ratios"]} >= {"singles", "register_10000", "readiness"}
    assert found["cpu_us_a_content"]["singles"].keys() == {"worker", "postgres", "valkey"}
    assert found["machine"]["postgres"]["fsync"] == "on"
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    assert list(tmp_path.glob("charts/*.svg"))


def test_what_a_backlog_delays_is_measured():
    with open_testbed(Crew(), Servers(), lambda line: None) as testbed:
        found = backlog.measure(testbed, 60 * CLASS, deadlines=2)  # more than a clock tick

    assert found["contents_a_second"]["placed"] >= found["contents_a_second"]["delivered"] > 0
    assert 0 < found["full_to_ready_s"]["n"] <= 60
    assert 0 <= found["full_to_ready_s"]["p50"] <= found["full_to_delivered_s"]["p99"]
    assert found["cpu_us_a_content"]["worker"] > 0


def test_a_fixed_amount_is_run_for_as_long_as_other_cases_take():
    amounts = []

    def run(amount):
        amounts.append(amount)
        return Timing(amount, 0.3, {"worker": 0.1})

    case = Case("name", "what", run, first=30, fixed=True)
    case.warm_up(1.0)
    del amounts[:]
    case.measure()

    assert amounts == [30] * 4
    assert case.figure.values == [pytest.approx(100)]
    assert case.cpu == {"worker": [pytest.approx(0.1 / 30 * 1e6)]}


def test_the_page_gets_the_figures_between_its_marks(tmp_path, testbed):
    figures = [Figure("singles", "single contents", "a second", [90.0, 110.0])]
    report = Report(
        describe(testbed),
        Crew(),
        "redis",
        2,
        2,
        started_at=datetime(2026, 11, 22, tzinfo=UTC),
        figures=figures,
        cpu={"singles": {"worker": 9}},
    )
    report.write(tmp_path / "results", "bench")
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")

    publish(tmp_path / "results", page)
    publish(tmp_path / "results", page)

    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| single contents | 100 (90 to 110) | a second | 9 |") == 1
    assert ", 22 November 2026: " in text
    assert "](results/charts/bench-rates.svg)" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pool", "gevent"], "gevent"),
        (["--rounds", "0"], "rounds"),
        (["--broker-url", "kafka://x"], "RabbitMQ"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_usage_is_refused(arguments, said):
    told = els("bench", *arguments)

    assert told.returncode == 2
    assert said in told.stderr


@pytest.mark.parametrize(
    ("option", "variable"),
    [("--database-url", "ELS_DATABASE_URL"), ("--redis-url", "ELS_REDIS_URL")],
)
def test_servers_that_hold_anything_are_left_alone(database_url, valkey, option, variable):
    valkey.set("somebody's", "value")

    told = els("bench", "--quick", option, os.environ[variable])

    assert told.returncode == 1
    assert "is not empty" in told.stderr
    assert "test-password" not in told.stderr
    assert valkey.get("somebody's") == "value"


def test_a_drain_that_lost_a_content_is_no_figure(testbed):
    testbed.empty()
    [batch] = register(testbed, [2])

    with pytest.raises(BenchError, match="'assigned': 0"):
        testbed.check([batch.batch_id], 2)


def test_a_drain_counts_the_cpu_of_workers_and_servers(testbed):
    timing = drain_singles(testbed, CLASS * 40)  # CPU time is counted in ticks of 10 ms

    assert timing.contents == CLASS * 40
    assert timing.cpu_s["worker"] > 0
    assert timing.cpu_s["postgres"] > 0


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_gives_every_content_a_slot_and_announces_every_batch_once(testbed, peer):
    if not peer.installed:
        pytest.skip(f"{peer.package} is not installed: make bench installs it")

    timing = contest.run_peer(testbed, peer, CLASS * 2)

    assert timing.contents == CLASS * 2 * (1 - contest.TENTH)
    with testbed.pool.connection() as conn:
        slots = "essay_states" if peer.our_tables else "peers.slots"
        held = conn.execute(
            f"SELECT batch_id, count(DISTINCT text_storage_id) AS n FROM {slots} GROUP BY 1"
        ).fetchall()
        ready = "event_outbox WHERE type = 'BatchEssaysReady'"
        told = conn.execute(
            f"SELECT batch_id FROM {ready if peer.our_tables else 'peers.ready'}"
        ).fetchall()
    assert [row["n"] for row in held] == [CLASS, CLASS]
    assert sorted(row["batch_id"] for row in told) == sorted(row["batch_id"] for row in held)


def test_growth_is_measured_in_large_batches_many_batches_and_full_tables(testbed):
    cases = growth.growth_cases(testbed, largest=100, essays=500)

    figures = growth.measure_growth(cases, seconds=0.1, rounds=1, tick=lambda: None)
    memory = growth.measure_memory(testbed, 1000, lambda: None)

    names = {figure.name for figure in figures if figure.values[0] > 0}
    assert {"batch_of_10", "batch_of_100", "open_1", "open_100", "singles_full"} <= names
    assert len(memory.values) == 11
    assert 10 < memory.values[0] < 500


def test_cases_take_turns_forth_and_back():
    seen = []

    interleave([lambda: seen.append("a"), lambda: seen.append("b")], rounds=3)

    assert "".join(seen) == "abbaab"


def test_a_ratio_is_taken_inside_each_round():
    figures = {"a": Figure("a", "", "", [10, 40]), "b": Figure("b", "", "", [5, 10])}

    [ratio] = ratios(figures, [Goal("", "a", "b", at_least=3.5), Goal("", "a", "nobody")])

    assert ratio.values == [2, 4]
    assert not ratio.goal.met(ratio.median)


def test_charts_are_well_formed_and_name_what_they_show():
    figure = Figure("x", "<uploads> & more", "a second", [1.0, 2.0])

    drawn = [bars("Rates", [figure]), line("Growth", [(10, figure), (1000, figure)], "essays")]

    texts = ["".join(ET.fromstring(svg).itertext()) for svg in drawn]
    assert "<uploads> & more" in texts[0]
    assert "1,000" in texts[1]
