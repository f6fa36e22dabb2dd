"""An administrator limits, stops or changes RabbitMQ under load: nothing is lost or poison."""

import json
import os
import signal
import time
from contextlib import contextmanager

import psutil
import pytest

from tests.live.conftest import until
from tests.rabbitmq.traffic import Traffic

FOR_S = 8
POOL = "worker --pool prefork --concurrency 2"


@pytest.fixture
def account(policed, node):
    """A user with every right, for the worker."""
    name = policed.queue
    node.ctl("add_user", name, "secret")
    node.ctl("set_permissions", name, ".*", ".*", ".*")
    yield node.url.replace("guest:guest", f"{name}:secret")
    node.ctl("delete_user", name)


@pytest.fixture
def traffic(policed, tmp_path, account):
    """Traffic for a worker of two processes, and beat."""
    policed.settings["ELS_BROKER_URL"] = account
    policed.start(command=POOL)
    policed.start("--schedule", str(policed.logs / "beat"), "--pidfile=", command="beat")
    policed.ready(1)
    with Traffic.of(policed, tmp_path / "spool") as made:
        yield made


@contextmanager
def vhost_made_anew(node, workers):
    until(lambda: workers.depth() == 0, what="what a virtual host holds is lost with it")
    node.ctl("delete_vhost", "/")
    yield
    node.ctl("add_vhost", "/")
    for user in ("guest", workers.queue):
        node.ctl("set_permissions", "-p", "/", user, ".*", ".*", ".*")
    node.do("policy", workers.queue)


@contextmanager
def rights_taken(node, workers):
    node.ctl("clear_permissions", workers.queue)
    node.drop_connections()
    yield
    time.sleep(FOR_S)
    node.ctl("set_permissions", workers.queue, ".*", ".*", ".*")


@contextmanager
def rights_taken_quietly(node, workers):
    """The connections stay open."""
    node.ctl("clear_permissions", workers.queue)
    yield
    time.sleep(FOR_S)
    node.ctl("set_permissions", workers.queue, ".*", ".*", ".*")


@contextmanager
def maintenance(node, workers):
    node.ctl("eval", "rabbit_maintenance:drain().")
    yield
    time.sleep(FOR_S)
    node.ctl("eval", "rabbit_maintenance:revive().")


@contextmanager
def no_connections(node, workers):
    node.ctl("set_vhost_limits", '{"max-connections": 0}')
    node.drop_connections()
    yield
    time.sleep(FOR_S)
    node.ctl("clear_vhost_limits")


def user_limits(**limits):
    @contextmanager
    def limited(node, workers):
        given = {name.replace("_", "-"): value for name, value in limits.items()}
        node.ctl("set_user_limits", workers.queue, json.dumps(given))
        node.drop_connections()
        yield
        time.sleep(FOR_S)
        node.ctl("clear_user_limits", workers.queue, "all")

    return limited


@contextmanager
def frozen(workers):
    """Freeze the worker, so that messages wait."""
    worker = psutil.Process(workers.processes[0].pid)
    everybody = [worker, *worker.children(recursive=True)]
    for each in everybody:
        os.kill(each.pid, signal.SIGSTOP)
    yield
    for each in everybody:
        os.kill(each.pid, signal.SIGCONT)


def operator_policy(ends="([.](internal|control))?", **definition):
    @contextmanager
    def limited(node, workers):
        given = {name.replace("_", "-"): value for name, value in definition.items()}
        pattern = f"^{workers.queue}{ends}$"
        node.ctl(
            "set_operator_policy", workers.queue, pattern, json.dumps(given), "--apply-to", "queues"
        )
        with frozen(workers):
            node.drop_connections()
            yield
            time.sleep(FOR_S)
        node.drop_connections()
        time.sleep(1)
        node.drop_connections()
        node.ctl("clear_operator_policy", workers.queue)

    return limited


@contextmanager
def restarted_workers(node, workers):
    yield
    for number in (0, 2, 3):
        workers.processes[number].terminate()
        workers.start(command=POOL)
        time.sleep(2)


@contextmanager
def disk_alarm(node, workers):
    node.ctl("set_disk_free_limit", "1000000GB")
    yield
    time.sleep(FOR_S)
    node.ctl("set_disk_free_limit", "50MB")


@contextmanager
def both_alarms(node, workers):
    node.ctl("set_vm_memory_high_watermark", "0")
    with disk_alarm(node, workers):
        yield
    node.ctl("set_vm_memory_high_watermark", "0.4")


@contextmanager
def suspended(node, workers):
    """Nobody can connect."""
    node.ctl("suspend_listeners")
    node.drop_connections()
    yield
    time.sleep(FOR_S)
    node.ctl("resume_listeners")


@contextmanager
def user_made_anew(node, workers):
    node.ctl("delete_user", workers.queue)
    yield
    time.sleep(FOR_S)
    node.ctl("add_user", workers.queue, "secret")
    node.ctl("set_permissions", workers.queue, ".*", ".*", ".*")


@contextmanager
def no_queue_declared(node, workers):
    """Somebody deletes `els`, and nobody may declare it."""
    until(lambda: workers.depth() == 0, what="what a queue holds is lost with it")
    node.ctl("set_vhost_limits", '{"max-queues": 0}')
    node.ctl("delete_queue", workers.queue)
    yield
    time.sleep(FOR_S)
    node.ctl("clear_vhost_limits")


@contextmanager
def five_restarts(node, workers):
    yield
    for _ in range(5):
        node.ctl("stop_app")
        node.ctl("start_app")


FAULTS = {
    "the virtual host is deleted and made again": vhost_made_anew,
    "the rights are taken": rights_taken,
    "the rights are taken while connected": rights_taken_quietly,
    "maintenance": maintenance,
    "no connection is allowed": no_connections,
    "two connections are allowed": user_limits(max_connections=2),
    "three channels are allowed": user_limits(max_channels=3),
    "queues of five messages": operator_policy(max_length=5),
    "all queues of five messages": operator_policy(
        ends="([.](internal|control|dead))?", max_length=5
    ),
    "messages live half a second": operator_policy(message_ttl=500),
    "one redelivery": operator_policy(delivery_limit=1),
    "no redelivery": operator_policy(delivery_limit=0),
    "rolling restarts": restarted_workers,
    "the disk is full": disk_alarm,
    "both alarms": both_alarms,
    "nobody can connect": suspended,
    "the user is deleted and made again": user_made_anew,
    "no queue may be declared, and els is deleted": no_queue_declared,
    "five restarts of the node": five_restarts,
}


REFUSES = {  # what senders hear of it
    "no connection is allowed": "connection limit",
    "queues of five messages": "OperationalError",
    "all queues of five messages": "OperationalError",
    "the virtual host is deleted and made again": "NOT_ALLOWED",
}


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost(traffic, policed, node, letters, assert_invariants, name):
    with traffic.sent(), FAULTS[name](node, policed):
        traffic.send(within_s=3)

    assert_invariants(traffic.batches, 30)
    assert letters() == []
    assert REFUSES.get(name, "") in "; ".join(["", *traffic.refusals])
