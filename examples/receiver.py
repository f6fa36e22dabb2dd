"""Keeps each event, whatever its type, and acts once on it: docs/events.md#a-receiver."""

import json
import sqlite3
import time

from celery import Celery
from celery.worker.consumer import Consumer


class KeepsAll(Consumer):
    def on_unknown_task(self, body, message, exc):
        message.headers["task"] = "els.event"  # the catch-all; Celery would drop the message
        self.create_task_handler()(message)


app = Celery("receiver")
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_consumer=KeepsAll)
app.conf.task_create_missing_queue_type = "quorum"  # on RabbitMQ, as the service declares it
app.conf.broker_transport_options = {"visibility_timeout": 60}  # seconds, on Redis


@app.task(name="els.event")
def receive(event, **_):
    while True:
        try:
            db = sqlite3.connect("receiver.sqlite")
            db.execute("CREATE TABLE IF NOT EXISTS inbox (id PRIMARY KEY, event, done)")
            db.execute("CREATE TABLE IF NOT EXISTS pipelines (batch_id)")
            with db:  # keep it; afterwards the broker may forget it, whatever happens below
                row = [event["id"], json.dumps(event)]
                db.execute("INSERT OR IGNORE INTO inbox VALUES (?, ?, false)", row)
            break
        except sqlite3.OperationalError:  # our database is away; the broker has the event
            time.sleep(1)
    with db:  # act: the effect and its mark are one transaction, so it happens once
        mark = "UPDATE inbox SET done = true WHERE id = ? AND NOT done"
        if db.execute(mark, row[:1]).rowcount and event["type"] == "BatchEssaysReady":
            db.execute("INSERT INTO pipelines VALUES (?)", [event["subject"]])
