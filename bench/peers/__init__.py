"""Other ways to do the same job, each written as its own documentation would have it.

A peer is a module with a function `enqueue`, and a command that works. It gets its servers by the
same `ELS_*_URL` variables as we do. The job is that of `job.py`.
"""

import sys
from dataclasses import dataclass
from importlib.util import find_spec


def _calling(module: str, function: str) -> str:
    """Write a command that imports the module by its name, as the workers know it."""
    return f"{sys.executable} -c 'from bench.peers.{module} import {function} as f; f()'"


@dataclass(frozen=True)
class Peer:
    """One of them. `worker`: the command, which starts {n} processes, or else is one of n."""

    name: str
    what: str
    package: str
    worker: str
    families: bool = True  # whether the command itself starts {n} processes
    our_tables: bool = False
    at_least: float | None = None  # how many times as fast our single contents ought to be

    @property
    def enqueue(self) -> str:
        """The command that enqueues."""
        return _calling(self.name, "enqueue")

    @property
    def installed(self) -> bool:
        """Whether its package is there (`make bench` installs them all)."""
        return find_spec(self.package) is not None


PEERS = [
    Peer(
        "dramatiq_sql",
        "dramatiq, our claim and statement",
        "dramatiq",
        "dramatiq bench.peers.dramatiq_sql --processes {n}",
        our_tables=True,
        at_least=1.3,
    ),
    Peer(
        "dramatiq_groups",
        "dramatiq, group callbacks",
        "dramatiq",
        "dramatiq bench.peers.dramatiq_groups --processes {n}",
        at_least=2,
    ),
    Peer(
        "procrastinate_tasks",
        "procrastinate",
        "procrastinate",
        "procrastinate --app=bench.peers.procrastinate_tasks.app worker --concurrency 10",
        families=False,
        at_least=3,
    ),
    Peer(
        "asyncio_watch",
        "asyncio consumers, WATCH, two transactions",
        "redis",
        _calling("asyncio_watch", "work"),
        families=False,
        at_least=4,
    ),
    Peer(
        "rq_jobs",
        "rq",
        "rq",
        "rq worker --worker-class rq.SimpleWorker --url $ELS_REDIS_URL peers",
        families=False,
        at_least=4,
    ),
    Peer(
        "celery_orm",
        "Celery chord, SQLAlchemy ORM, results kept",
        "celery",
        "celery -A bench.peers.celery_orm worker -l INFO -E -c {n}",
        at_least=8,
    ),
    Peer(
        "dbos_workflows",
        "DBOS",
        "dbos",
        _calling("dbos_workflows", "work"),
        families=False,
        at_least=12,
    ),
]
