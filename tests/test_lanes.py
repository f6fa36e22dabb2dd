"""`make lanes` claims only what has held."""

from tests.lanes import counts

REPORT = '<testsuites><testsuite tests="3" failures="{}" errors="0" skipped="{}"/></testsuites>'


def test_a_lane_that_ran_to_its_end_without_a_failure_has_held():
    assert counts(REPORT.format(0, 1), ended_well=True)["state"] == "held"
    assert counts(REPORT.format(1, 0), ended_well=False)["state"] == "failed"
    assert counts(REPORT.format(0, 3), ended_well=True)["state"] == "skipped"


def test_a_lane_that_was_interrupted_has_not_held():
    assert counts(REPORT.format(0, 0), ended_well=False)["state"] == "failed"
    assert counts("", ended_well=False)["state"] == "failed"
