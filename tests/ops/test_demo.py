"""`els demo`, as the README shows it."""

import json

import pytest

from tests.ops.conftest import els, without_colour


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Run the demo once; return its home too."""
    home = tmp_path_factory.mktemp("demo") / "home"
    return home, els("demo", "--json", home=home)


def test_the_demo_ends_with_readiness_and_every_invariant(first):
    _, told = first

    assert told.returncode == 0, told.stderr
    played = json.loads(told.stdout)
    assert played["ok"] is True
    assert all(invariant["holds"] for invariant in played["invariants"])
    assert sorted(e["data"]["ready_count"] for e in played["readiness"]) == [4, 25]
    outcomes = [sent["outcome"]["outcome"] for sent in played["sent"]]
    assert {"pending", "assigned", "failed_slot", "excess", "registered", "confirmed"} == set(
        outcomes
    )


def test_the_demo_can_be_run_again_on_its_home_and_reads_well(first):
    home, _ = first

    told = els("demo", home=home)

    shown = without_colour(told.stdout)
    assert told.returncode == 0, told.stderr
    assert "BatchEssaysReady" in shown
    assert "Every invariant held." in shown
    assert "✘" not in shown


def test_a_folder_is_uploaded_and_broken_files_are_rejected(tmp_path):
    folder = tmp_path / "upload"
    folder.mkdir()
    (folder / "good [one].txt").write_text("word " * 100, encoding="utf-8")
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("Too short.")
    (folder / "scan.txt").write_bytes(b"\xff\xfe\x00\xd8 no text")
    (folder / ".hidden").write_text("not part of the upload")

    told = els("demo", "--folder", folder, "--json", home=tmp_path / "home")

    assert told.returncode == 0, told.stderr
    played = json.loads(told.stdout)
    [ready] = played["readiness"]
    codes = {
        sent["event"]["original_file_name"]: sent["event"]["validation_error_code"]
        for sent in played["sent"]
        if sent["task"] == "els.reject_content"
    }
    assert codes == {
        "empty.txt": "EMPTY_CONTENT",
        "short.txt": "CONTENT_TOO_SHORT",
        "scan.txt": "TEXT_EXTRACTION_FAILED",
    }
    [essay] = ready["data"]["ready_essays"]
    assert essay["original_file_name"] == "good [one].txt"
    assert (ready["data"]["expected_count"], ready["data"]["failed_count"]) == (4, 3)


def test_a_folder_of_rejected_files_ends_without_readiness(tmp_path):
    folder = tmp_path / "upload"
    folder.mkdir()
    (folder / "empty.txt").write_text("")

    told = els("demo", "--folder", folder, "--json", home=tmp_path / "home")

    played = json.loads(told.stdout)
    assert told.returncode == 0, told.stderr
    assert played["readiness"] == []
    assert "BatchValidationErrors" in [event["type"] for event in played["events"]]
