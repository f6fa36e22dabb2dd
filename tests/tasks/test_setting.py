"""`ELS_EAGER=1`: a program's own tests call our tasks in their process, without a worker."""

import json
import os
import subprocess
import sys

import pytest

from tests import factories as make
from tests.ops.served import own_database

CALL_EACH = """
import json, sys
from tasks.app import app
app.loader.import_default_modules()
for task, kwargs in json.load(sys.stdin):
    print(json.dumps(app.tasks[task].delay(**kwargs).get()))
"""
NOBODY = "127.0.0.1:1"
NO_SERVER = {
    "no URLs": ({"ELS_DATABASE_URL": "", "ELS_REDIS_URL": ""}, "`els run` starts both"),
    "no Postgres": ({"ELS_DATABASE_URL": f"postgresql://{NOBODY}/els"}, "postgres: "),
    "no Redis": ({"ELS_REDIS_URL": f"redis://{NOBODY}/0"}, "mend ELS_BROKER_URL"),
    "no broker": ({"ELS_BROKER_URL": f"amqp://{NOBODY}//"}, "broker: "),
}


def run(*arguments, stdin=None, **environ):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "ELS_EAGER": "1", **environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def call(*calls, **environ):
    """Call tasks one after the other; return their values."""
    program = ["-W", "error:task_always_eager", "-c", CALL_EACH]
    ran = run(*program, stdin=json.dumps(calls), **environ)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


def on(task, event):
    return task, {"event": event}


@pytest.fixture
def event_types(conn):
    def read(batch):
        query = "SELECT * FROM event_outbox WHERE batch_id = %s ORDER BY sequence"
        return {row["type"]: row for row in conn.execute(query, [batch])}

    return read


def test_tasks_run_in_the_callers_process_up_to_readiness(event_types, messages):
    batch = make.new_batch()

    values = call(
        on("els.register_batch", make.registration(batch, 2)),
        on("els.assign_contents", make.contents(batch, ["text-1", "text-2"])),
    )

    assert [value["outcome"] for value in values] == ["registered", "accepted"]
    ready = event_types(batch)["BatchEssaysReady"]
    assert ready["data"]["ready_count"] == 2
    assert ready["published_at"]
    assert str(ready["id"]) in {message["headers"]["id"] for message in messages()}


@pytest.mark.slow
def test_a_bad_event_is_an_outcome_as_on_a_worker():
    [value] = call(on("els.assign_content", {"batch_id": "x"}))

    assert (value["outcome"], value["code"]) == ("dead_letter", "VALIDATION_ERROR")


@pytest.mark.slow
def test_the_ticks_of_beat_are_called_by_hand(event_types):
    batch = make.new_batch()
    late = {"deadline_s": 0.001, "on_deadline": "fail"}

    *_, swept = call(
        on("els.register_batch", make.registration(batch, 2) | late), ("els.sweep", {})
    )

    assert sum(swept.values()) >= 1
    assert list(event_types(batch)) == ["BatchReadinessTimeout"]


@pytest.mark.slow
@pytest.mark.parametrize(("environ", "hint"), NO_SERVER.values(), ids=NO_SERVER)
def test_a_caller_learns_in_one_line_which_server_is_away(environ, hint):
    program = "from tasks.upstream import cancel_batch; cancel_batch.delay(event={})"

    ran = run("-c", program, **environ)

    assert ran.returncode == 1
    error = ran.stderr.splitlines()[-1]
    assert "with ELS_EAGER tasks run in this process" in error
    assert hint in error


REFUSED_LATER = """
import os, psycopg
from tasks.upstream import cancel_batch
cancel_batch.delay(event={}).get()
with psycopg.connect(os.environ["ELS_DATABASE_URL"], autocommit=True) as conn:
    conn.execute("ALTER TABLE dead_letters RENAME TO gone")
cancel_batch.delay(event={})
"""


@pytest.mark.slow
def test_no_caller_waits_for_a_server_that_refuses_later(database_url):
    with own_database(database_url, f"eager_{os.getpid()}") as url:
        ran = run("-c", REFUSED_LATER, ELS_DATABASE_URL=url)

    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("StackError: postgres refuses writes")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["-m ops worker", "-m ops beat", "-m celery -A tasks worker"])
def test_a_process_of_the_service_refuses_to_start(command, tmp_path):
    ran = run(*command.split(), ELS_HOME=str(tmp_path))

    assert ran.returncode == 1
    assert "makes no sense with ELS_EAGER" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_els_run_refuses_before_it_starts_a_server(tmp_path):
    ran = run("-m", "ops", "run", ELS_HOME=str(tmp_path / "home"))

    assert ran.returncode == 1
    assert "makes no sense with ELS_EAGER" in ran.stderr
    assert not (tmp_path / "home").exists()
