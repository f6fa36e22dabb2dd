"""The kit for Python beside a stack: what is sent arrives once, and no event is lost."""

import sys
from pathlib import Path

import pytest

from tests.clients.programs import Neighbours, Program
from tests.clients.proofs import (
    test_a_broker_that_is_away_costs_nothing,
    test_a_receiver_that_is_killed_again_and_again_has_each_effect_once,
    test_a_sender_and_a_receiver_take_a_batch_to_its_readiness,
)

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

    def receiver(self, broker_url: str) -> Program:
        queue = f"{self.queue}.events"
        worker = ["-m", "celery", "-A", "kit_receiver", "worker", "-Q", queue, "--pool", "solo"]
        database = self.database_url
        return self.run("receiver", *worker, *ALONE, BROKER_URL=broker_url, DATABASE_URL=database)

    def run(self, name: str, *arguments: str, **environ: str) -> Program:
        return self.start(name, sys.executable, *arguments, PYTHONPATH=str(PROGRAMS), **environ)


@pytest.fixture
def kit():
    return PythonNeighbours
