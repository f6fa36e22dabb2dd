"""Sends the lines of standard input, however long the broker is away: docs/tasks.md#a-sender."""

import json
import os
import sqlite3
import sys
import time
from contextlib import suppress

from celery import Celery
from kombu import exceptions as kombu

app = Celery("sender")
app.conf.task_create_missing_queue_type = "quorum"  # these three are for RabbitMQ
app.conf.task_create_missing_queue_exchange_type = "topic"
app.conf.broker_transport_options = {"confirm_publish": True}
db = sqlite3.connect("spool.sqlite")


def flush():
    for row, line in db.execute("SELECT rowid, line FROM spool ORDER BY rowid").fetchall():
        while not sent(**json.loads(line)):
            time.sleep(1)
        with db:  # if we die before this, the next flush sends it again, with the same event_id
            db.execute("DELETE FROM spool WHERE rowid = ?", [row])


def sent(task, event):  # nothing, where the broker is away or refuses
    queue = os.environ.get("ELS_QUEUE", "els")
    with suppress(OSError, kombu.OperationalError, kombu.ChannelError, kombu.ConnectionError):
        return app.send_task(task, kwargs={"event": event}, queue=queue, ignore_result=True)


if __name__ == "__main__":
    with db:  # a service spools in the transaction of what the message is about
        db.execute("CREATE TABLE IF NOT EXISTS spool (line)")
        lines = [[line] for line in filter(str.strip, sys.stdin) if json.loads(line)]
        db.executemany("INSERT INTO spool VALUES (?)", lines)
    flush()
