"""Another program's Celery app: `python -m celery -A tests.explain.legacy worker -Q QUEUE`."""

import os

from celery import Celery

app = Celery("legacy", broker=os.environ["LEGACY_BROKER"])
app.conf.task_create_missing_queue_type = "quorum"
app.conf.task_create_missing_queue_exchange_type = "topic"
