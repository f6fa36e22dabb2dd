"""Messages that a worker of the service holds for longer than the visibility timeout."""

import signal
import time

import pytest

from tests import factories as make


@pytest.mark.outage
def test_a_message_of_a_service_waits_for_its_countdown_and_is_placed_once(
    workers, conn, events_of, assert_invariants
):
    batch = make.new_batch()
    first = workers.start()
    workers.ready(1)
    workers.send("els.register_batch", make.registration(batch, 1)).get(timeout=30)
    sent = time.monotonic()
    late = workers.send("els.assign_content", make.content(batch), countdown=20)

    for end in (signal.SIGKILL, signal.SIGTERM):
        time.sleep(2)
        first.send_signal(end)
        first.wait(20)
        first = workers.start()
    value = late.get(timeout=60)

    assert time.monotonic() - sent >= 20
    assert value["outcome"] == "assigned"
    assert conn.execute("SELECT 1 FROM dead_letters WHERE batch_id = %s", [batch]).fetchall() == []
    assert_invariants(batch)
