"""`els run` restarts a worker that hangs."""

import json
import os
import signal
import sys
import time

import psutil

from tests import factories as make
from tests.live.conftest import until
from tests.ops.conftest import Service, without_colour

ABOUT_S = 60  # 30 s of silence, 3 s to end by itself, and a start on a busy machine


def test_a_worker_that_hangs_is_replaced_and_the_batch_gets_ready(tmp_path):
    service = Service(tmp_path / "home")

    def worker():
        family = psutil.Process(service.process.pid).children()
        found = [each for each in family if "els worker" in " ".join(each.cmdline())]
        return found[0] if found else None

    try:
        until(lambda: list((tmp_path / "home").glob("worker-*.alive")), what="it gave a sign")
        hung = until(worker, what="there is a worker")
        batch = make.new_batch()
        os.kill(hung.pid, signal.SIGSTOP)
        started = time.monotonic()
        events = [make.registration(batch, 1), make.content(batch)]
        text = "\n".join(json.dumps(event) for event in events)
        told = service.els("submit", "-", "--wait", "--timeout-s", ABOUT_S, stdin=text)
        took = time.monotonic() - started
        until(
            lambda: "ready_for_pipeline_execution" in service.els("status", batch).stdout,
            what="the batch is ready",
        )
        said = without_colour(service.output.read_text())
        again = worker()
    finally:
        sys.stdout.write(service.output.read_text())  # pytest shows it where the test fails
        service.stop()

    assert told.returncode == 0, told.stdout + said
    assert took < ABOUT_S
    assert again.pid != hung.pid
    assert said.count("worker: hangs, no heartbeat for 3") == 1
    assert said.count("worker: killed by SIGKILL; starts again in 0.5 s") == 1
