"""`els torture`: it does its harm, and a broken promise does not escape it."""

import json

import pytest

from ops.terminal import out
from ops.torture import Chamber, show, torture
from tests.ops.conftest import els


def test_a_short_torture_ends_with_every_invariant():
    told = els("torture", "--minutes", "0.1", "--seed", "7", "--json", timeout=240)

    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert report["ok"] is True
    assert report["seed"] == 7
    assert sum(report["faults"].values()) == report["recovery_s"]["probes"] > 0
    assert report["batches"] > 0
    assert report["messages"] > report["batches"]
    assert {invariant["holds"] for invariant in report["invariants"]} == {True}
    assert report["explanations"] == []


@pytest.fixture
def a_lost_slot(monkeypatch):
    """A row vanishes when all is quiet."""
    is_quiet = Chamber._is_quiet

    def spoil(chamber, batches):
        quiet = is_quiet(chamber, batches)
        if quiet:
            with chamber._books() as conn:
                conn.execute("DELETE FROM essay_states WHERE batch_id = %s", [batches[0]])
        return quiet

    monkeypatch.setattr(Chamber, "_is_quiet", spoil)


def test_a_broken_invariant_is_reported_with_the_batch_explained(a_lost_slot, monkeypatch):
    monkeypatch.delenv("ELS_DATABASE_URL", raising=False)
    monkeypatch.delenv("ELS_REDIS_URL", raising=False)

    report = torture(seed=1, minutes=0.01, batches=2, say=lambda line: None)
    with out.capture() as shown:
        show(report, out)

    assert not report.ok
    [explanation] = report.explanations
    broken = {name for each in report.invariants if not each.holds for name in each.broken}
    assert broken == {explanation.batch_id}
    assert f"{explanation.batch_id}: ready_for_pipeline_execution" in shown.get()
    assert "An invariant is broken." in shown.get()
