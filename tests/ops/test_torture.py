"""`els torture`: it does its harm, and a broken promise does not escape it."""

import json
import signal
import socket
import subprocess
import sys
import threading
from random import Random

import pytest

from ops.output import out
from ops.stack.ports import LOOPBACK
from ops.stack.proxy import BOTH, REPLIES, REQUESTS, Proxy
from ops.torture import Session, show, torture
from tests.ops.conftest import ROOT, els


def test_a_short_torture_ends_with_every_invariant():
    faults = ["worker killed at claimed", "slots: connections cut", "Postgres: connections cut"]
    chosen = [option for name in faults for option in ("--only", name)]

    told = els("torture", "--minutes", "0.1", "--seed", "7", "--json", *chosen, timeout=240)

    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert report["ok"] is True
    assert report["seed"] == 7
    assert sum(report["faults"].values()) == report["recovery_s"]["probes"] > 0
    assert report["recovery_s"]["slowest"].keys() == report["faults"].keys()
    assert report["batches"] > 0
    assert report["messages"] > report["batches"]
    assert {invariant["holds"] for invariant in report["invariants"]} == {True}
    assert report["explanations"] == []


def test_the_faults_are_listed_by_name():
    told = els("torture", "--list", "--json")

    names = json.loads(told.stdout)
    assert len(set(names)) == len(names)
    for part in ["read-only", "53100", "disk full", "locked", "swallowed", "replica", "clock"]:
        assert [name for name in names if part in name], part


def test_a_fault_that_there_is_not_is_an_error_that_says_where_the_names_are():
    told = els("torture", "--only", "a meteorite")

    assert told.returncode == 1
    assert "a meteorite" in told.stderr
    assert "--list" in told.stderr


def test_an_interrupted_torture_ends_though_a_server_is_down():
    command = [sys.executable, "-m", "ops", "torture", "--only", "broker killed"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        next(line for line in lines if line == "broker killed\n")
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]

    assert process.returncode == 130, rest
    assert "quiet" not in rest


@pytest.fixture(autouse=True)
def _no_given_servers(monkeypatch):
    monkeypatch.delenv("ELS_DATABASE_URL", raising=False)
    monkeypatch.delenv("ELS_REDIS_URL", raising=False)


@pytest.fixture
def spoilt(monkeypatch):
    """Something happens to a batch when all is quiet."""
    is_quiet = Session._is_quiet

    def spoil(statement):
        def spoil_when_quiet(session, batches):
            quiet = is_quiet(session, batches)
            if quiet:
                with session.stage.connection() as conn:
                    conn.execute(statement, {"batch": batches[0]})
            return quiet

        monkeypatch.setattr(Session, "_is_quiet", spoil_when_quiet)

    return spoil


def _a_moment(**more):
    return torture(seed=1, minutes=0.01, batches=2, say=lambda line: None, **more)


def _broken(report):
    return {each.title: each.broken for each in report.invariants if not each.holds}


def test_a_broken_invariant_is_reported_with_the_batch_explained(spoilt):
    spoilt("DELETE FROM essay_states WHERE batch_id = %(batch)s")

    report = _a_moment(only=("Postgres: connections ended",))
    with out.capture() as shown:
        show(report, out)

    assert not report.ok
    assert report.faults.keys() == {"Postgres: connections ended"}
    [explanation] = report.explanations
    assert f"{explanation.batch_id}: ready_for_pipeline_execution" in shown.get()
    assert "An invariant is broken." in shown.get()


def test_a_message_without_an_outcome_is_named(spoilt):
    spoilt("DELETE FROM idempotency_keys WHERE batch_id = %(batch)s AND task ~ 'register'")

    broken = _broken(_a_moment(only=("scripts flushed",)))

    [named] = broken["Every message has its outcome or its dead letter"]
    assert named.endswith("(els.register_batch)")


def test_a_message_given_up_for_a_refusal_is_named(spoilt):
    spoilt(
        "INSERT INTO dead_letters (task, task_id, batch_id, body, code, sqlstate, message)"
        " VALUES ('els.assign_content', 'id-1', %(batch)s, '{}', 'INTERNAL_ERROR', '25006', 'no')"
    )

    broken = _broken(_a_moment(only=("scripts flushed",)))

    [[named]] = broken.values()
    assert named.startswith("els.assign_content id-1 of ")
    assert named.endswith(": 25006 no")


# --- the proxy ---------------------------------------------------------------------------------


@pytest.fixture
def echo():
    """A server that answers what it is sent."""

    def serve(connection):
        with connection:
            while data := connection.recv(100):
                connection.sendall(data)

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server((LOOPBACK, 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo):
    started = Proxy(echo, Random(1))
    started.start()
    yield started
    started.stop()


def _answer(connection, word, timeout_s=5.0):
    """Say a word; return the answer, or None when there is none in time."""
    connection.settimeout(timeout_s)
    connection.sendall(word)
    try:
        return connection.recv(100)
    except TimeoutError:
        return None


@pytest.mark.parametrize("directions", [BOTH, {REQUESTS}, {REPLIES}], ids=["both", "out", "back"])
def test_a_swallowed_connection_stays_dead_and_open_while_new_ones_pass(proxy, directions):
    with (
        socket.create_connection((LOOPBACK, proxy.port)) as old,
        socket.create_connection((LOOPBACK, proxy.port)) as meanwhile,
    ):
        assert _answer(old, b"before") == b"before"
        proxy.swallow(directions)

        assert _answer(old, b"swallowed", 0.3) is None
        assert _answer(meanwhile, b"swallowed", 0.3) is None
        proxy.pass_again()

        with socket.create_connection((LOOPBACK, proxy.port)) as new:
            assert _answer(new, b"passed") == b"passed"
        assert _answer(old, b"still swallowed", 0.3) is None
        assert _answer(meanwhile, b"still swallowed", 0.3) is None
