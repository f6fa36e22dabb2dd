"""`els torture --rabbitmq`: the same harm and the same promises, on a node of its own."""

import json
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from core.errors import StackError
from ops.torture import brokers, torture
from tests.ops.conftest import els


def processes_of(folder):
    """List the processes whose home is below this folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HOME", "").startswith(str(folder)):
                found.append(process.cmdline())
    return found


def test_a_short_torture_on_rabbitmq_ends_with_every_invariant(tmp_path):
    faults = ["broker killed", "broker: connections dropped"]
    chosen = [option for name in faults for option in ("--only", name)]

    options = ("--minutes", "0.6", "--logs", tmp_path, "--json", *chosen)
    told = els("torture", "--rabbitmq", *options, timeout=280, TMPDIR=str(tmp_path))

    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert report["ok"] is True
    assert report["broker"] == "rabbitmq"
    assert report["faults"].keys() == set(faults)
    assert report["messages"] > report["batches"] > 0
    assert list((tmp_path / "broker").glob("*.log"))
    assert "no_dead_letter_policy" not in (tmp_path / "workers.log").read_text()
    assert processes_of(tmp_path) == []


def test_the_faults_on_rabbitmq_are_those_that_it_can_have():
    told = els("torture", "--rabbitmq", "--list", "--json")

    names = json.loads(told.stdout)
    assert {"broker: memory alarm", "broker: disk alarm", "broker: frozen"} <= {*names}
    assert {"slots: a replica", "slots and broker: frozen", "Postgres: read-only"} <= {*names}
    assert "broker: a replica" not in names
    assert "slots and broker: a replica" not in names


@pytest.fixture
def _not_installed(monkeypatch):
    monkeypatch.setattr(brokers, "RABBITMQ_SERVER", Path("/nonexistent/rabbitmq-server"))


@pytest.mark.usefixtures("_not_installed")
def test_without_rabbitmq_it_says_how_to_install_it():
    with pytest.raises(StackError, match="apt install rabbitmq-server"):
        torture(seed=1, minutes=0.1, batches=1, say=print, rabbitmq=True)
