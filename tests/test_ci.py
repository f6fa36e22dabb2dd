"""The hooks and the workflow run the checks of the Makefile and of `.ci/run`."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
ENTRIES = [hook["entry"] for hooks in HOOKS for hook in hooks["hooks"]]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


def recipe(target):
    """List the commands of a make target, as a person would type them."""
    [body] = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    lines = [line.strip().removeprefix("@") for line in body.splitlines()]
    return [line.replace("$(BIN)", ".venv/bin") for line in lines if not line.startswith("@echo")]


def test_the_hooks_are_the_steps_of_make_check_and_come_from_no_other_repository():
    assert {hooks["repo"] for hooks in HOOKS} == {"local"}
    assert {hook["language"] for hooks in HOOKS for hook in hooks["hooks"]} == {"system"}
    assert [line for line in recipe("check") if not line.startswith("echo")] == ENTRIES


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="make env made no environment here")
@pytest.mark.parametrize("entry", ENTRIES)
def test_the_command_of_a_hook_exists(entry):
    assert os.access(ROOT / shlex.split(entry)[0], os.X_OK)


def test_without_pre_commit_make_hooks_lets_git_run_make_check(tmp_path):
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}

    def run(*command):
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    run("git", "init")
    run("make", "-f", str(ROOT / "Makefile"), "hooks")

    hook = ROOT / run("git", "config", "core.hooksPath") / "pre-commit"
    assert os.access(hook, os.X_OK)
    assert "exec make check" in hook.read_text().splitlines()


def test_the_workflow_runs_what_every_change_must_pass():
    steps = WORKFLOW["jobs"]["everything"]["steps"]

    assert WORKFLOW[True].keys() == {"push", "pull_request"}  # YAML reads `on` as true
    [command] = [step["run"] for step in steps if "run" in step]
    script = shlex.split(command)[-1]
    assert script == ".ci/run"
    subprocess.run(["sh", "-n", ROOT / script], check=True)


def test_ci_runs_targets_that_exist():
    script = (ROOT / ".ci/run").read_text()
    lanes = re.search(r"for lane in (.*);", script)[1].split()

    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert {*re.findall(r"^make ([a-z-]+)", script, re.MULTILINE), *lanes} <= targets
