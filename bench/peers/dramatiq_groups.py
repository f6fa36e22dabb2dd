"""dramatiq as its guide has it: a group a batch, with a completion callback."""

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend

from bench.peers import job
from bench.peers.job import REDIS_URL, Content, uploads

broker = RedisBroker(url=REDIS_URL, namespace="peers")
broker.add_middleware(GroupCallbacks(RedisBackend(url=REDIS_URL)))
dramatiq.set_broker(broker)


@dramatiq.actor
def assign(content: Content) -> None:
    """Give a content a slot."""
    with job.pool().connection() as conn:
        job.assign(conn, content)


@dramatiq.actor
def announce(batch_id: str) -> None:
    """Say that a batch is ready."""
    with job.pool().connection() as conn:
        job.announce(conn, batch_id)


def enqueue() -> None:
    """Enqueue the contents of every batch."""
    for upload_id, contents in uploads():
        group = dramatiq.group([assign.message(content) for content in contents])
        group.add_completion_callback(announce.message(upload_id))
        group.run()
