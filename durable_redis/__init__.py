"""A Redis transport for Celery that loses no message: README.md says how to use it."""

from durable_redis.redelivery import DELIVERY_COUNT, lost_workers
from durable_redis.refusals import LONGEST_PAUSE_S, Refusal, note_refusal, refusal
from durable_redis.sentinel import SentinelTransport
from durable_redis.transport import Transport, await_writes, install

__all__ = [
    "DELIVERY_COUNT",
    "LONGEST_PAUSE_S",
    "Refusal",
    "SentinelTransport",
    "Transport",
    "await_writes",
    "install",
    "lost_workers",
    "note_refusal",
    "refusal",
]
