"""DBOS as its tutorials have it: a durable workflow a content, its steps, and a queue."""

import os
import threading

from dbos import DBOS, DBOSClient, DBOSConfig, run_dbos_database_migrations

from bench.peers import job
from bench.peers.job import DATABASE_URL, Content, uploads

QUEUE = "contents"
POLL_S = 0.1


@DBOS.step()
def assign(content: Content) -> bool:
    """Give a content a slot; tell whether it was the last one."""
    with job.pool().connection() as conn:
        return job.assign(conn, content)


@DBOS.step()
def announce(batch_id: str) -> None:
    """Say that a batch is ready."""
    with job.pool().connection() as conn:
        job.announce(conn, batch_id)


@DBOS.workflow()
def provision(content: Content) -> None:
    """Take a content through both steps, however often the process dies."""
    if assign(content):
        announce(content["batch_id"])


def work() -> None:
    """Work until killed."""
    config: DBOSConfig = {
        "name": "peers",
        "system_database_url": DATABASE_URL,
        "application_version": "1",
        "executor_id": str(os.getpid()),  # else each recovers what the other works on
        "console_log_level": "WARNING",
    }
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(QUEUE, polling_interval_sec=POLL_S)
    threading.Event().wait()


def enqueue() -> None:
    """Enqueue from outside."""
    run_dbos_database_migrations(system_database_url=DATABASE_URL)
    client = DBOSClient(system_database_url=DATABASE_URL)
    for _, contents in uploads():
        for content in contents:
            client.enqueue({"queue_name": QUEUE, "workflow_name": "provision"}, content)
