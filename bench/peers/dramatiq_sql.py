"""dramatiq with our own claim and statement: what Celery costs in our route, and what the chord."""

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.peers.job import DATABASE_URL, REDIS_URL, uploads
from bench.queues import Json
from core import db
from core.lifecycle import Lifecycle
from core.messages import SINGLE_LIMIT, EssayContentProvisioned
from core.model import Message, StepResult
from core.parsing import parse
from core.servers.redis_client import connect
from core.slots import Slots
from ops.client import common

dramatiq.set_broker(RedisBroker(url=REDIS_URL, namespace="peers"))
lifecycle = Lifecycle(db.connect(DATABASE_URL, size=10, by_key=True), Slots(connect(REDIS_URL)))


@dramatiq.actor
def assign(event: Json) -> None:
    """Give a content a slot; whoever took the last one announces."""
    content, idem = parse(EssayContentProvisioned, "els.assign_content", event, SINGLE_LIMIT)
    [result] = lifecycle.assign([Message.of(content, idem)])
    if isinstance(result, StepResult) and result.full:
        announce.send(content.batch_id)


@dramatiq.actor
def announce(batch_id: str) -> None:
    """Seal a batch and write its events."""
    lifecycle.complete(batch_id)


def enqueue() -> None:
    """Enqueue the contents of every batch."""
    for _, contents in uploads():
        for each in contents:
            fields = {"text_storage_id": each["text_storage_id"], "file_size_bytes": 14_200}
            fields |= {"file_upload_id": each["text_storage_id"]}
            fields |= {"original_file_name": each["file_name"]}
            assign.send(common(each["batch_id"], **fields))
