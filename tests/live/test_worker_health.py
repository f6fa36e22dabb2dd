"""`els health worker`, beside real workers that turn, hang and wait."""

import json
import os
import subprocess
import sys
import time

import pytest

from core import ledger
from ops.embedded import Valkey, free_port
from tests import factories as make
from tests.live.conftest import until


@pytest.fixture
def health(tmp_path):
    """Ask for the health of the worker whose home is `home`, without any server's address."""
    home = tmp_path / "home"

    def ask(*arguments):
        told = subprocess.run(
            [sys.executable, "-m", "ops", "health", "worker", "--json", *arguments],
            env={"ELS_HOME": str(home), "PATH": os.defpath},
            capture_output=True,
            text=True,
            check=False,
        )
        answer = json.loads(told.stdout)
        assert told.returncode == (0 if answer["healthy"] else 1)
        return answer

    ask.home = home
    return ask


def test_without_a_worker_the_check_fails_and_says_where_it_looked(health):
    answer = health()

    assert not answer["healthy"]
    assert str(health.home) in answer["message"]


def test_a_worker_that_hangs_is_told_from_one_that_waits(workers, health, database_url):
    workers.start(ELS_HOME=str(health.home))  # solo: a task that hangs is a loop that hangs
    workers.ready(1)
    idle = until(lambda: health() if health()["healthy"] else None, what="it gave a sign")

    with ledger.connect_once(database_url) as holder, holder.transaction():
        holder.execute("LOCK TABLE batch_essay_trackers IN ACCESS EXCLUSIVE MODE")
        sent = workers.send("els.register_batch", make.registration(make.new_batch(), 1))
        until(lambda: not health("--max-age", "4")["healthy"], what="the check fails")
        hanging = health("--max-age", "4")
    sent.get(timeout=30)

    assert list(idle["ages_s"]) == [f"{workers.queue}-0@test"]
    assert "restart it" in hanging["message"]
    until(lambda: health("--max-age", "4")["healthy"], what="it turns again")


def test_a_worker_without_its_broker_stays_healthy(workers, health, tmp_path):
    broker = Valkey(tmp_path / "broker", free_port(), "password")
    broker.start()
    try:
        process = workers.start(ELS_HOME=str(health.home), ELS_BROKER_URL=broker.url)
        until(lambda: health()["healthy"], what="it gave a sign")
    finally:
        broker.stop()
    stopped = time.time()

    until(lambda: time.time() - min(health()["ages_s"].values()) > stopped + 20, 90, "signs go on")

    assert process.poll() is None
    assert health()["healthy"]


@pytest.mark.parametrize("name", ["a", "b"])
def test_one_of_several_workers_of_a_home_can_be_asked_for(health, name):
    from core import alive

    alive.show(health.home, name)

    assert health("--name", name)["healthy"]
    assert not health("--name", "c")["healthy"]


def test_the_check_loads_nothing_that_takes_long():
    script = (
        "import sys; sys.argv = ['els', 'health', 'worker']; import ops.__main__ as m; m.main();"
        "slow = {'celery', 'kombu', 'redis', 'psycopg', 'pydantic', 'typer', 'rich', 'sqlalchemy'};"
        "print(sorted(slow & set(sys.modules)))"
    )

    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert told.stdout.splitlines()[-1] == "[]"
