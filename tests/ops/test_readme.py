"""The README's commands are run, and what it shows of the demo is what the demo prints."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.conftest import ROOT, els, without_colour

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
ELS_COMMANDS = [
    line.removeprefix("$ .venv/bin/els ")
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith("$ .venv/bin/els ")
]
MADE = sorted(set(re.findall(r"`?\bmake ([a-z]+)`?", README)))
VARIABLE = [
    (r"\b(guest|regular)-[0-9a-f]{8}\b", r"\1-ID"),
    (r"\bessay-\d{3}\b", "essay-NNN"),
    (r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b", "UUID"),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"\(\d+\.\d s\)", "(SECONDS)"),
    (r"assigned|pending", "TAKEN"),  # which of the two the race between two workers decides
    (r" +", " "),
]


def masked(line):
    for pattern, name in VARIABLE:
        line = re.sub(pattern, name, line)
    return line.strip()


MADE_HERE = Path(sys.prefix) == ROOT / ".venv"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run `make demo`; where make did not make this environment, run the demo itself."""
    home = tmp_path_factory.mktemp("demo") / "home"
    if not MADE_HERE:
        return els("demo", home=home, COLUMNS="80")
    path = "/usr/local/bin:/usr/bin:/bin"
    return subprocess.run(
        ["make", "demo"],
        cwd=ROOT,
        env={"PATH": path, "ELS_HOME": str(home), "LANG": "C.UTF-8", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_readme_shows_what_the_demo_prints(demo):
    [shown] = [block for block in BLOCKS if block.startswith("$ make demo")]

    printed = {masked(line) for line in without_colour(demo.stderr + demo.stdout).splitlines()}

    lines = [line for line in shown.splitlines()[1:] if line.strip() not in ("", "…")]
    assert [line for line in lines if masked(line) not in printed] == []


@pytest.mark.parametrize("command", ELS_COMMANDS)
def test_a_command_of_the_readme_works(service, command):
    told = service.els(*shlex.split(command))

    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("target", MADE)
def test_a_make_target_of_the_readme_exists(target):
    told = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert told.returncode == 0, told.stderr


@pytest.mark.skipif(not MADE_HERE, reason="make did not make this environment")
def test_make_demo_runs_the_demo(demo):
    assert demo.returncode == 0, demo.stderr
    assert "Every invariant held." in demo.stdout


def test_every_setting_of_the_readme_is_known_and_every_known_one_is_told():
    from core.settings import PREFIX, Settings

    told = set(re.findall(r"`(ELS_[A-Z_]+)`", README))

    known = {PREFIX + name.upper() for name in Settings.model_fields} - {"ELS_CRASHPOINT"}
    assert told == known
