"""`ELS_EAGER=1`: an upstream's own tests call our tasks in their process, without a worker."""

import json
import os
import subprocess
import sys

from tests import factories as make

PROGRAM = """
import json, sys
from tasks.upstream import assign_contents, register_batch
for task, event in zip((register_batch, assign_contents), json.load(sys.stdin)):
    print(json.dumps(task.delay(event=event).get()))
"""


def test_tasks_run_in_the_callers_process_up_to_readiness(database_url, conn):
    batch = make.new_batch()
    events = [make.registration(batch, 2), make.contents(batch, ["text-1", "text-2"])]

    told = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "ELS_EAGER": "1"},
        input=json.dumps(events),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert told.returncode == 0, told.stderr
    values = [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]
    assert [value["outcome"] for value in values] == ["registered", "accepted"]
    [ready] = conn.execute(
        "SELECT data FROM event_outbox WHERE batch_id = %s AND type = 'BatchEssaysReady'", [batch]
    ).fetchall()
    assert ready["data"]["ready_count"] == 2
