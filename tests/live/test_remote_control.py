"""Remote control is off; where a setting turns it on, health shows what somebody did by it."""

import json
import os
from urllib.parse import urlsplit

import pytest

from core.signs import health_file
from ops.heartbeat import read_heartbeat
from tests import factories as make
from tests.live.conftest import until

pytestmark = pytest.mark.redis_only("it looks at what Redis knows of listeners")


def served(workers):
    """Wait until a worker has executed a message."""
    event = make.registration(make.new_batch(), 1)
    return workers.send("els.register_batch", event).get(60)["outcome"] == "registered"


@pytest.mark.parametrize("pool", ["solo", "prefork --concurrency 1"])
def test_by_default_nobody_steers_a_worker(workers, valkey, pool):
    valkey.flushdb()
    worker = workers.start(command=f"worker --pool {pool}", ELS_REMOTE_CONTROL="")
    assert served(workers)
    control = workers.upstream.control

    control.cancel_consumer(workers.queue)
    control.pool_shrink(1)
    control.shutdown()
    answers = control.ping(timeout=2)

    assert answers == []
    assert served(workers)
    assert worker.poll() is None
    assert not valkey.pubsub_channels("*pidbox*"), "it listens to nobody"
    assert not valkey.pubsub_channels("*celeryev*")


def test_a_worker_that_was_told_to_consume_no_more_is_not_healthy(workers, valkey, tmp_path):
    valkey.flushdb()
    workers.start(ELS_HOME=str(tmp_path))
    workers.ready(1)
    name = f"{workers.queue}-0@test"
    until(lambda: name in read_heartbeat(valkey, 0).workers, what="it counts")

    workers.upstream.control.cancel_consumer(workers.queue, destination=[name], reply=True)

    until(lambda: health_file.ages_s(tmp_path)[name] > 6, 30, "its signs of life end")
    assert "worker_consumes_no_more" in (tmp_path / "0.log").read_text()
    until(lambda: name not in read_heartbeat(valkey, 0).workers, 30, "it counts no more")

    workers.upstream.control.add_consumer(workers.queue, destination=[name], reply=True)

    until(lambda: health_file.ages_s(tmp_path)[name] < 3, 30, "it is healthy again")
    assert served(workers)


def test_what_a_worker_tells_of_its_settings_has_no_password(workers):
    workers.start()
    workers.ready(1)

    told = json.dumps(workers.upstream.control.inspect(timeout=10, limit=1).conf())

    secrets = [urlsplit(os.environ[n]).password for n in ("ELS_DATABASE_URL", "ELS_REDIS_URL")]
    assert "task_acks_late" in told
    assert not [secret for secret in secrets if secret in told]
