"""The Procfile, as honcho and `els run` read it, and the commands that it starts."""

import subprocess
import sys

import pytest

from ops.stack.supervisor import procfile
from tests.ops.conftest import ROOT, els


def test_honcho_takes_the_procfile():
    told = subprocess.run(
        [sys.executable, "-m", "honcho", "check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.returncode == 0, told.stderr
    assert list(procfile()) == ["worker", "beat", "ops", "flower"]


def test_beat_keeps_no_file():
    assert procfile()["beat"] == "exec els beat"


@pytest.mark.parametrize("name", ["worker", "beat"])
def test_celerys_commands_take_their_options_and_import_no_others(name):
    asks = f"import sys; sys.argv = ['els', '{name}', '--help']; from ops.__main__ import main"
    asks += "\ntry: main()\nfinally: print(sorted({'flower', 'click_repl'} & {*sys.modules}))"

    told = subprocess.run(
        [sys.executable, "-c", asks], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert told.stdout.startswith(f"Usage: els {name}")
    assert "--loglevel" in told.stdout
    assert told.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("command", "settings", "said"),
    [
        ("worker", {}, "a worker needs ELS_DATABASE_URL and ELS_REDIS_URL"),
        ("worker", {"ELS_CONCURRENCY": "many"}, "ELS_CONCURRENCY"),
        ("beat", {"ELS_BROKER_URL": "redis://127.0.0.1:1"}, "workers and beat need ELS_REDIS_URL"),
    ],
)
def test_a_process_that_cannot_start_says_why(command, settings, said):
    ended = els(command, **settings)

    assert ended.returncode == 1
    assert f"els: {said}" in ended.stderr
    assert "Traceback" not in ended.stderr
