"""What the service is built from: every package pinned by its hash, audited and listed."""

import json
import re
import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKED = sorted(path.name for path in ROOT.glob("requirements*.txt"))
WELL = {"name": "celery", "version": "5.7.0", "vulns": []}
VULNERABLE = {
    "name": "jinja2",
    "version": "3.0.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.6"]}],
}
UNKNOWN = {"name": "redis", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize("name", LOCKED)
def test_every_package_is_pinned_by_its_hash(name):
    lines = (ROOT / name).read_text()

    packages = re.findall(r"^[a-z0-9].*(?:\n    .*)*", lines, re.MULTILINE | re.IGNORECASE)
    assert packages
    assert [each for each in packages if "==" not in each or "--hash=sha256:" not in each] == []


def test_the_image_installs_nothing_without_a_hash():
    commands = re.findall(r"pip install [^\\&]*", (ROOT / "Dockerfile").read_text())

    assert [
        each for each in commands if "--require-hashes" not in each and "/wheels/" not in each
    ] == []


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([WELL], 0, "1 packages looked up, 0 with"),
        ([WELL, VULNERABLE], 1, "jinja2 3.0.0: PYSEC-1, fixed in 3.1.6"),
        ([VULNERABLE, UNKNOWN], 1, "NOT AUDITED"),
        ([WELL, UNKNOWN], 3, "NOT AUDITED: here: no answer for 1 packages: redis"),
        ([UNKNOWN], 3, "NOT AUDITED"),
        ([], 3, ""),
    ],
    ids=["well", "vulnerable", "both", "half", "no answer", "nothing"],
)
def test_an_audit_without_an_answer_is_not_a_good_one(capsys, packages, status, said):
    report = runpy.run_path(str(ROOT / "scripts/audit"))["_report"]

    assert report("here", packages) == status
    assert said in capsys.readouterr().out


def test_an_audit_of_a_file_that_is_not_there_is_not_a_good_one(capsys):
    assert runpy.run_path(str(ROOT / "scripts/audit"))["main"](["no-such-file.txt"]) == 3
    assert "NOT AUDITED: no-such-file.txt" in capsys.readouterr().out


def test_the_bill_of_materials_lists_every_locked_package(tmp_path):
    if not (ROOT / ".venv-deploy/.ready").exists():
        pytest.skip("its tool is not installed: `make sbom` installs it")

    done = subprocess.run(["make", "sbom"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    listed = json.loads((ROOT / "sbom.json").read_text())
    names = {each["name"] for each in listed["components"]}
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert listed["bomFormat"] == "CycloneDX"
    assert names == set(locked)
