"""What workers keep for each other, and the steps of a chord, read by the other release."""

import json

import pytest

from tests.releases import ROOT
from tests.upgrade.test_side_by_side import PREFORK, SOLO, until

MESSAGE = 'MESSAGE = "5f0c7c1e-3c46-4d52-9d64-6f7ab3a5d1aa"\n'
KEEP = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
import redis
try:
    from core.signs import health_file, heartbeat, pauses
except ImportError:  # of 1.0.0
    from core import health_file, heartbeat, pauses
from tasks.worker import deaths

client = redis.Redis.from_url(sys.argv[1], decode_responses=True)
outage = pauses.Outage("postgres", "OperationalError: away", "57P03")
pauses.write_pause(client, pauses.Pause("host:1", outage, datetime.fromtimestamp(1, UTC)))
heartbeat.note_worker(client, "worker@host")
heartbeat.note_sweep(client)
heartbeat.may_send_tick(client, "els", "els.sweep")
health_file.touch(Path(sys.argv[2]), "worker@host")
deaths.note(MESSAGE)
request = SimpleNamespace(id=MESSAGE, hostname="w@host", delivery_info={"redelivered": True})
with deaths.marked(request):
    os._exit(0)
"""
READ = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import redis
try:
    from core.signs import health_file, heartbeat
    from ops.heartbeat import read_heartbeat
except ImportError:  # of 1.0.0
    from core import health_file, heartbeat
    from core.heartbeat import read_heartbeat
from tasks.worker import deaths

client = redis.Redis.from_url(sys.argv[1], decode_responses=True)
found = read_heartbeat(client, 0)
headers = {"x-delivery-count": 1}
request = SimpleNamespace(id=MESSAGE, delivery_info={"redelivered": True}, get=headers.get)
print(json.dumps({
    "pauses": [pause.as_json() for pause in found.pauses],
    "workers": found.workers,
    "swept": found.swept_at is not None,
    "may_send": heartbeat.may_send_tick(client, "els", "els.sweep"),
    "health": [*health_file.ages_s(Path(sys.argv[2]))],
    "pids": len(health_file.touched_at(Path(sys.argv[2]))),
    "deaths": deaths.count(request),
}))
"""
DISPATCH = """
import sys
from tasks.app import app
from tasks import maintenance
from tasks.completion import dispatch_completion
dispatch_completion({sys.argv[1]: None})
"""
FILL = """
INSERT INTO batch_essay_trackers (batch_id, status, user_id, course_code, correlation_id,
    expected_count, available_slots, essay_ids_sha256, on_deadline, deadline_at, full_at)
VALUES ('b', 'awaiting_content_validation', 'u', 'c', gen_random_uuid(), 1, 0, '', 'fail',
    now() + interval '1 h', now());
INSERT INTO essay_states (batch_id, essay_id, current_status, text_storage_id, file_upload_id,
    original_file_name, assigned_at)
VALUES ('b', 'essay-1', 'ready_for_processing', 'text-1', 'file-1', 'a.txt', now());
"""
PAIRS = pytest.mark.parametrize(("writes", "reads"), [("last", "this"), ("this", "last")])


@pytest.fixture
def releases(release, last_tree):
    return {name: release(name, tree) for name, tree in (("last", last_tree), ("this", ROOT))}


def run(release, code, *arguments):
    done = release.run("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@PAIRS
def test_what_one_release_keeps_the_other_reads(releases, writes, reads, servers, tmp_path):
    arguments = (servers.redis_url, str(tmp_path / "home"))

    run(releases[writes], MESSAGE + KEEP, *arguments)
    found = json.loads(run(releases[reads], MESSAGE + READ, *arguments))

    [pause] = found.pop("pauses")
    assert (pause["process"], pause["server"], pause["sqlstate"]) == ("host:1", "postgres", "57P03")
    assert found == {
        "workers": ["worker@host"],
        "swept": True,
        "may_send": False,
        "health": ["worker@host"],
        "pids": 1,
        "deaths": 2,  # one that its parent saw, and the writer, which is gone
    }


@pytest.fixture
def full(releases, conn):
    """A full batch that nobody has sealed yet."""
    releases["this"].els("migrate")
    for statement in FILL.strip().split(";")[:2]:
        conn.execute(statement)
    return "b"


def wait_until_ready(conn):
    def status():
        [row] = conn.execute("SELECT status FROM batch_essay_trackers").fetchall()
        return row["status"]

    until(lambda: status() == "ready_for_pipeline_execution", what="the batch is ready")
    assert conn.execute("SELECT 1 FROM repairs UNION SELECT 1 FROM dead_letters").fetchall() == []


@PAIRS
@pytest.mark.parametrize("pool", [PREFORK, SOLO], ids=["prefork", "solo"])
def test_a_chord_of_one_release_is_completed_by_the_other(
    releases, writes, reads, pool, full, conn, valkey
):
    run(releases[writes], DISPATCH, full)
    if reads == "last" and valkey.llen("els") == 0:
        pytest.skip("this release sends its chord to a queue that the last one does not consume")
    releases[reads].worker(1, *pool)

    wait_until_ready(conn)

    assert "Traceback" not in releases[reads].log()


@pytest.mark.parametrize("pool", [PREFORK, SOLO], ids=["prefork", "solo"])
def test_a_chord_of_a_release_that_nobody_knows_yet_waits_for_a_worker_of_it(
    releases, release, far_tree, pool, full, conn
):
    far = release("far", far_tree)
    run(far, DISPATCH, full)
    releases["this"].worker(1, *pool)
    until(
        lambda: releases["this"].log().count("held_for_another_release") >= 2,
        what="a worker of this release gives its steps back",
    )

    far.worker(1, *pool)

    wait_until_ready(conn)
