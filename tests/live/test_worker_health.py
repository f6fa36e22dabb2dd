"""`els health worker`, beside real workers that turn, hang and wait."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import redis

from core import db
from migrations import upgrade
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port
from tests import factories as make
from tests.live.conftest import until


@pytest.fixture
def health(tmp_path):
    """Ask for the health of the worker whose home is `home`, without any server's address."""
    home = tmp_path / "home"

    def ask(*arguments, part="worker"):
        told = subprocess.run(
            [sys.executable, "-m", "ops", "health", part, "--json", *arguments],
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

    with db.connect_once(database_url) as holder, holder.transaction():
        holder.execute("LOCK TABLE batch_essay_trackers IN ACCESS EXCLUSIVE MODE")
        sent = workers.send("els.register_batch", make.registration(make.new_batch(), 1))
        until(lambda: not health("--max-age", "4")["healthy"], what="the check fails")
        hanging = health("--max-age", "4")
    sent.get(timeout=30)

    assert list(idle["ages_s"]) == [f"{workers.queue}-0@test"]
    assert "restart it" in hanging["message"]
    until(lambda: health("--max-age", "4")["healthy"], what="it turns again")


@pytest.mark.redis_only("its broker is a Valkey of its own")
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
    from core.signs import health_file

    health_file.touch(health.home, name)

    assert health("--name", name)["healthy"]
    assert not health("--name", "c")["healthy"]


def test_a_beat_that_hangs_is_told_from_one_that_turns(workers, health):
    process = workers.start("--pidfile=", command="beat", ELS_HOME=str(health.home))
    until(lambda: health(part="beat")["healthy"], what="it turns")
    assert not health()["healthy"]

    process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: not health("--max-age", "3", part="beat")["healthy"], what="the check fails")
    finally:
        process.send_signal(signal.SIGCONT)

    until(lambda: health("--max-age", "3", part="beat")["healthy"], what="it turns again")


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


# --- the schema ----------------------------------------------------------------------------------


@pytest.fixture
def unmigrated(database_url, conn):
    """A database without a schema."""
    name = make.new_batch().replace("-", "_")
    conn.execute(f"CREATE DATABASE {name}")
    yield f"{database_url.rpartition('/')[0]}/{name}"
    conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("kind", ["solo", "prefork"])
def test_a_worker_waits_for_its_schema_and_then_goes_on_by_itself(
    workers, health, unmigrated, kind
):
    batch = make.new_batch()
    process = workers.start(
        command=f"worker --pool {kind}",
        ELS_HOME=str(health.home),
        ELS_DATABASE_URL=unmigrated,
        ELS_LOG_FORMAT="json",
    )
    log = workers.logs / "0.log"
    until(lambda: "worker_waits_to_start" in log.read_text(), 60, "it says that it waits")
    sent = workers.send("els.register_batch", make.registration(batch, 1))
    since = time.time() + 6
    until(lambda: time.time() - min(health()["ages_s"].values()) > since, what="signs go on")

    waiting = workers.waiting()
    upgrade(unmigrated)
    value = sent.get(timeout=60)

    assert waiting == 1
    assert value["outcome"] == "registered"
    [said] = [line for line in log.read_text().splitlines() if "worker_waits_to_start" in line]
    assert "els migrate" in json.loads(said)["step"]
    assert process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_worker_that_waits_for_its_schema_ends_when_told(workers, unmigrated, number):
    process = workers.start(ELS_DATABASE_URL=unmigrated)
    log = workers.logs / "0.log"
    until(lambda: "worker_waits_to_start" in log.read_text(), 60, "it says that it waits")

    process.send_signal(number)

    assert process.wait(15) == 0


@pytest.mark.redis_only("its broker is a Valkey of its own")
def test_a_worker_names_what_its_broker_lacks_and_works(workers, health, tmp_path, database_url):
    broker = Valkey(tmp_path / "broker", free_port(), "password")
    broker.start()
    try:
        with redis.Redis.from_url(broker.url) as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
        workers.start(ELS_HOME=str(health.home), ELS_BROKER_URL=broker.url)
        said = workers.logs / "0.log"
        until(lambda: "maxmemory-policy is allkeys-lru" in said.read_text(), what="it is named")
        until(lambda: health()["healthy"], what="it gave a sign")
    finally:
        broker.stop()
