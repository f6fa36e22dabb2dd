"""What real worker processes count reaches Redis from all of them, and does not stop with them."""

import pytest

from core.metrics import HASH
from ops.heartbeat import read_heartbeat
from tests import factories as make
from tests.live.conftest import until

ASSIGNED = 'els_content_assignment_total{outcome="assigned"}'
SECONDS = "els_content_assignment_seconds_count"


@pytest.fixture
def counts(valkey):
    """Read the counts of the workers that started since."""
    valkey.flushdb()
    return lambda: {name: float(value) for name, value in valkey.hgetall(HASH).items()}


def fill(workers, slots):
    batch = make.new_batch()
    workers.send("els.register_batch", make.registration(batch, slots)).get(timeout=30)
    sent = [workers.send("els.assign_content", make.content(batch, f"t{n}")) for n in range(slots)]
    workers.values(sent)


def test_the_counts_of_every_child_of_a_worker_arrive(workers, counts, valkey):
    workers.start(command="worker --pool prefork --concurrency 2")
    workers.ready(1)

    fill(workers, 40)

    until(lambda: counts().get(SECONDS) == counts().get(ASSIGNED) == 40, what="all are counted")
    assert len([*valkey.scan_iter("{els:metrics}:*", _type="string")]) == 2
    assert counts()['els_content_assignment_seconds_bucket{le="+Inf"}'] == 40
    until(lambda: counts().get("els_batch_readiness_seconds_count") == 1, what="it is ready")


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_worker_that_is_stopped_leaves_its_counts_behind(workers, counts, pool):
    process = workers.start(command=f"worker --pool {pool}")
    workers.ready(1)
    fill(workers, 5)

    process.terminate()
    process.wait(15)

    assert counts()[ASSIGNED] == 5


def test_a_worker_says_what_it_has_in_work_and_since_when(workers, valkey, conn):
    valkey.flushdb()
    workers.start(command="worker --pool prefork --concurrency 2")
    workers.ready(1)
    batch = make.new_batch()
    workers.send("els.register_batch", make.registration(batch, 2)).get(timeout=30)

    def in_work():
        return read_heartbeat(valkey, None).in_work()

    with conn.transaction():
        conn.execute("SELECT FROM batch_essay_trackers WHERE batch_id = %s FOR UPDATE", [batch])
        sent = workers.send("els.assign_content", make.content(batch, "t1"))
        held, oldest_s = until(lambda: (found := in_work())[1] > 1 and found, what="it is seen")
    workers.values([sent])

    assert held == 1
    assert oldest_s < 30
    until(lambda: in_work() == (0, 0.0), what="nothing is in work")
