"""A receiver with the kit: Celery, and the inbox in a Postgres of its own.

BROKER_URL=redis://… DATABASE_URL=… celery -A kit_receiver worker --pool solo
"""

import os

import psycopg
from celery import Celery
from celery.signals import worker_ready
from psycopg.types.json import Jsonb

from els_client.inbox import Inbox
from els_client.receiver import receive_events

BROKER_URL, DATABASE_URL = os.environ["BROKER_URL"], os.environ["DATABASE_URL"]

app = Celery("receiver", broker=BROKER_URL)
app.conf.update(
    accept_content=["json"],
    worker_redirect_stdouts=False,
)
if BROKER_URL.startswith("redis"):
    app.conf.broker_transport = "durable_redis:Transport"
    app.conf.broker_transport_options = {"visibility_timeout": 2}
inbox = Inbox()
refusals = [OSError("not now")] * int(os.environ.get("REFUSALS", "0"))  # before it succeeds
with psycopg.connect(DATABASE_URL) as db:
    inbox.create_table(db)
    db.execute("CREATE TABLE IF NOT EXISTS effects (event_id uuid, type text, event jsonb)")


def receive(event):
    with psycopg.connect(DATABASE_URL) as db:  # one transaction
        if not inbox.is_new(db, event):
            print("again", event["id"], flush=True)  # noqa: T201 - for the test
            return
        row = [event["id"], event["type"], Jsonb(event)]
        db.execute("INSERT INTO effects VALUES (%s, %s, %s)", row)
        if refusals:
            raise refusals.pop()


receive_events(app, receive)


@worker_ready.connect
def say(**_):
    print("receiving", flush=True)  # noqa: T201 - for the test
