"""What real worker processes count reaches Redis from all of them, and does not stop with them."""

import pytest

from core import db, heartbeat
from core.metrics import HASH
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
    assert len(valkey.keys("{els:metrics}:*")) == 2
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


def test_the_messages_in_work_are_counted_until_they_end(workers, conn, valkey, database_url):
    workers.start(command="worker --pool prefork --concurrency 1")
    workers.ready(1)
    key = heartbeat.IN_WORK.format(worker=f"{workers.queue}-0@test")
    batches = [make.new_batch() for _ in range(3)]

    with db.connect_once(database_url) as holder, holder.transaction():
        holder.execute("LOCK TABLE batch_essay_trackers IN ACCESS EXCLUSIVE MODE")
        sent = [workers.send("els.register_batch", make.registration(each, 1)) for each in batches]
        until(lambda: int(valkey.get(key) or 0) > 0, what="a message is in work")
    workers.values(sent)

    until(lambda: valkey.get(key) == "0", what="none is in work")
    assert 0 < valkey.ttl(key) <= heartbeat.FRESH.total_seconds()
