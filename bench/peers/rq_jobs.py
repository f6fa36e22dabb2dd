"""rq as its documentation has it: functions, and a queue in Redis."""

from redis import Redis
from rq import Queue

from bench.peers import job
from bench.peers.job import REDIS_URL, Content, uploads

queue = Queue("peers", connection=Redis.from_url(REDIS_URL or "redis://"))


def assign(content: Content) -> None:
    """Give a content a slot; whoever took the last one enqueues the announcement."""
    with job.pool().connection() as conn:
        last = job.assign(conn, content)
    if last:
        queue.enqueue(announce, content["batch_id"])


def announce(batch_id: str) -> None:
    """Say that a batch is ready."""
    with job.pool().connection() as conn:
        job.announce(conn, batch_id)


def enqueue() -> None:
    """Enqueue the contents of every batch."""
    for _, contents in uploads():
        queue.enqueue_many([Queue.prepare_data(assign, [each]) for each in contents])
