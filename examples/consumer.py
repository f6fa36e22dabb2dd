"""A minimal downstream service: it receives our events and drops repeats.

    DOWNSTREAM_BROKER_URL=redis://… celery -A examples.consumer worker -Q els.events --pool solo

Events arrive at least once, so a consumer stores the ids that it has seen. The one rule: write the
id in the same transaction as your own work. A crash in between then undoes both, and the next
delivery does both. After that, a repeat finds its id and does nothing.
"""

import hashlib
import json
import os
import sqlite3
from contextlib import closing
from typing import Any

from celery import Celery

TYPES = [
    "batch_content_provisioning_completed",
    "batch_essays_ready",
    "batch_validation_errors",
    "batch_readiness_timeout",
    "batch_cancelled",
    "excess_content_provisioned",
    "essay_slot_assigned",
]
SCHEMA = """
CREATE TABLE IF NOT EXISTS received_events (
    id TEXT PRIMARY KEY, type TEXT, batch_id TEXT, sequence INTEGER, body TEXT,
    deliveries INTEGER DEFAULT 1
);
CREATE TABLE IF NOT EXISTS pipeline (batch_id TEXT PRIMARY KEY, essays INTEGER);
"""

app = Celery("downstream", broker=os.environ.get("DOWNSTREAM_BROKER_URL", "memory://"))
app.conf.update(
    accept_content=["json"],
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_default_queue="els.events",
    task_default_queue_type="quorum",  # RabbitMQ: the service declares the same
    worker_prefetch_multiplier=1,
    # Seconds until the broker redelivers the events of a dead worker.
    broker_transport_options={"visibility_timeout": 60},
    broker_connection_retry_on_startup=True,
)


def database() -> sqlite3.Connection:
    """Open the consumer's own database, named by `DOWNSTREAM_DB`."""
    opened = sqlite3.connect(os.environ.get("DOWNSTREAM_DB", "downstream.sqlite"), timeout=10)
    opened.executescript(SCHEMA)
    return opened


def receive(event: dict[str, Any]) -> bool:  # Any: a CloudEvent, JSON
    """Process an event once; return False for a repeat."""
    with closing(database()) as opened, opened:  # one transaction, rolled back on an error
        new = opened.execute(
            "INSERT INTO received_events (id, type, batch_id, sequence, body)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            [event["id"], event["type"], event["subject"], event["sequence"], json.dumps(event)],
        ).rowcount
        if not new:
            opened.execute(
                "UPDATE received_events SET deliveries = deliveries + 1 WHERE id = ?",
                [event["id"]],
            )
            return False
        if event["type"] == "BatchEssaysReady":
            start_pipeline(opened, event["data"])
    return True


def start_pipeline(opened: sqlite3.Connection, ready: dict[str, Any]) -> None:
    """Do your own work; here, store the batch, if its list of essays is intact."""
    essays = ready.get("ready_essays")
    if essays is not None and manifest(essays) != ready["manifest_sha256"]:
        raise ValueError(f"batch {ready['batch_id']}: the essays are not those of the manifest")
    opened.execute(
        "INSERT INTO pipeline (batch_id, essays) VALUES (?, ?)",
        [ready["batch_id"], ready["ready_count"]],
    )


def manifest(essays: list[dict[str, Any]]) -> str:
    """Compute the manifest of a list of essays; the rule is in docs/events.md."""
    lines = sorted(f"{essay['essay_id']} {essay['text_storage_id']}\n" for essay in essays)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


for event_type in TYPES:
    app.task(name=f"els.events.{event_type}")(receive)
