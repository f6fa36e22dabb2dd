"""The kit for Python beside a stack: what is sent arrives once, and no event is lost."""

import sys
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery

from ops.reference.examples import EVENT_EXAMPLES
from tests.clients.programs import Neighbours, Program
from tests.clients.proofs import (
    test_a_broker_that_is_away_costs_nothing,
    test_a_receiver_that_is_killed_again_and_again_has_each_effect_once,
    test_a_sender_and_a_receiver_take_a_batch_to_its_readiness,
)
from tests.live.conftest import until

__all__ = [
    "test_a_broker_that_is_away_costs_nothing",
    "test_a_receiver_that_is_killed_again_and_again_has_each_effect_once",
    "test_a_sender_and_a_receiver_take_a_batch_to_its_readiness",
]
PROGRAMS = Path(__file__).parent / "python"
ALONE = ("--without-mingle", "--without-gossip", "--without-heartbeat")  # starts a second sooner


class PythonNeighbours(Neighbours):
    """A sender with a spool, and a Celery worker with an inbox."""

    def sender(self, broker_url: str) -> Program:
        spool = str(self.folder / "spool.sqlite")
        script = str(PROGRAMS / "kit_sender.py")
        return self.run("sender", script, BROKER_URL=broker_url, SPOOL=spool, QUEUE=self.queue)

    def receiver(self, broker_url: str, *pool: str, **environ: str) -> Program:
        queue = f"{self.queue}.events"
        worker = ["-m", "celery", "-A", "kit_receiver", "worker", "-Q", queue]
        worker += pool or ["--pool", "solo"]
        environ |= {"BROKER_URL": broker_url, "DATABASE_URL": self.database_url}
        return self.run("receiver", *worker, *ALONE, **environ)

    def run(self, name: str, *arguments: str, **environ: str) -> Program:
        return self.start(name, sys.executable, *arguments, PYTHONPATH=str(PROGRAMS), **environ)


@pytest.fixture
def kit():
    return PythonNeighbours


@pytest.mark.parametrize("task", ["els.event", "els.events.batch_cancelled", "of.a_later_release"])
def test_an_event_comes_again_until_its_effect_is_there(beside, broker, task):
    neighbours = beside(f"refusing-{uuid4().hex[:8]}")
    receiver = neighbours.receiver(broker.url, REFUSALS="3")
    receiver.says(1, "receiving", 60)
    event = EVENT_EXAMPLES["BatchCancelled"] | {"subject": neighbours.queue}

    with Celery(broker=broker.url, set_as_current=False) as sender:
        sender.conf.task_create_missing_queue_type = "quorum"
        sender.send_task(task, [], {"event": event}, queue=f"{neighbours.queue}.events")

    assert until(lambda: neighbours.effects(neighbours.queue), 30, "the effect") == [event]
    assert "comes again in 0.4 s" in "\n".join(receiver.said)


@pytest.mark.parametrize("pool", [[], ["--concurrency", "2"]], ids=["solo", "prefork"])
def test_a_worker_that_stops_gives_back_what_it_cannot_take(beside, broker, pool):
    neighbours = beside(f"refusing-{uuid4().hex[:8]}")
    receiver = neighbours.receiver(broker.url, *pool, REFUSALS="1000")
    receiver.says(1, "receiving", 60)
    event = EVENT_EXAMPLES["BatchCancelled"] | {"subject": neighbours.queue}
    with Celery(broker=broker.url, set_as_current=False) as sender:
        sender.conf.task_create_missing_queue_type = "quorum"
        sender.send_task("els.event", [], {"event": event}, queue=f"{neighbours.queue}.events")
    until(lambda: any("comes again" in line for line in receiver.said), 30, "it is refused")

    receiver.stop()
    neighbours.receiver(broker.url)

    assert until(lambda: neighbours.effects(neighbours.queue), 30, "the effect") == [event]
