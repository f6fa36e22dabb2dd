"""A Redis transport for Celery that loses no message: README.md says how to use it."""

from durable_redis.limits import BodyTooLarge, limit_bodies, mark, refuse_large
from durable_redis.messages import MALFORMED, Misshapen, check_call, check_headers, why
from durable_redis.redelivery import DELIVERY_COUNT, lost_workers
from durable_redis.refusals import LONGEST_PAUSE_S, Refusal, note_refusal, refusal
from durable_redis.sentinel import SentinelTransport
from durable_redis.transport import Transport, await_writes, install

__all__ = [
    "DELIVERY_COUNT",
    "LONGEST_PAUSE_S",
    "MALFORMED",
    "BodyTooLarge",
    "Misshapen",
    "Refusal",
    "SentinelTransport",
    "Transport",
    "await_writes",
    "check_call",
    "check_headers",
    "install",
    "limit_bodies",
    "lost_workers",
    "mark",
    "note_refusal",
    "refusal",
    "refuse_large",
    "why",
]
