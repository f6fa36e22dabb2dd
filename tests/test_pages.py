"""The pages about operations: their commands, and the figures that they repeat."""

import re
from pathlib import Path

import pytest
import typer.main

from ops.cli.main import app
from ops.stack.supervisor import procfile
from tests import lanes

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("operations.md", "security.md")}
MAKEFILE = (ROOT / "Makefile").read_text()
MEASURED = (ROOT / "docs/performance.md").read_text()


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_names_exists(name):
    text = PAGES[name]

    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)`", text)) <= targets
    commands = set(typer.main.get_command(app).commands)
    assert set(re.findall(r"`els ([a-z-]+)", text)) <= commands | set(procfile())
    for path in re.findall(r"`((?:tests|deploy|scripts)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "figure", ["1,828", "6,961", "10,500", "63,330", "32.5", "42.5", "628 · 95 · 100"]
)
def test_a_figure_of_the_sizing_was_measured(figure):
    assert figure in MEASURED
    assert figure.split(" ·")[0] in PAGES["operations.md"]


def test_every_lane_names_tests_and_versions():
    assert len({lane.name for lane in lanes.LANES}) == len(lanes.LANES)
    for lane in lanes.LANES:
        assert lane.servers in lanes.SERVERS
        assert lane.broker in lanes.BROKERS
        assert lane.way in lanes.WAYS
        assert set(lane.needs) <= lanes.VERSIONS.keys()


@pytest.mark.parametrize(
    ("numbers", "state", "cell"),
    [
        ((5, 0, 0, 0), "held", "held: 5 tests"),
        ((5, 0, 0, 2), "held", "held: 3 tests, 2 skipped"),
        ((5, 1, 1, 0), "failed", "**failed: 2**, 3 passed"),
        ((5, 0, 0, 5), "skipped", "skipped: 5 tests"),
        ((0, 0, 0, 0), "skipped", "skipped: 0 tests"),
    ],
)
def test_a_lane_holds_only_if_a_test_ran_and_none_failed(numbers, state, cell):
    names = ("tests", "failures", "errors", "skipped")
    given = " ".join(f'{name}="{number}"' for name, number in zip(names, numbers, strict=True))

    read = lanes.counts(f"<testsuites><testsuite {given}/></testsuites>")

    assert read["state"] == state
    assert lanes.cell(read) == cell


def test_a_lane_that_did_not_report_has_failed():
    assert lanes.counts("")["state"] == "failed"


def test_a_lane_that_was_interrupted_has_not_held():
    report = '<testsuites><testsuite tests="2" failures="0" errors="0" skipped="0"/></testsuites>'

    assert lanes.counts(report, ended=False)["state"] == "failed"


def test_the_matrix_claims_nothing_that_no_lane_ran():
    drawn = lanes.table({})

    assert "held" not in drawn
    assert drawn.count("not run yet") == len(lanes.LANES)
    cells = len(lanes.SERVERS) * len(lanes.BROKERS) * len(lanes.WAYS)
    assert drawn.count("no lane") == cells - len(lanes.LANES)
