"""The signs of life of the running service, read for explanations and the board."""

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.pulse import NO_PULSE, Pulse, read_pulse

TIMEOUT_S = 2


def ask_once(url: str) -> redis.Redis:
    """Connect for people who wait: one try, then the answer is that nobody answers."""
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def read_signs(client: redis.Redis, broker_url: str, queue: str) -> Pulse:
    """Read the signs of life; none where Redis does not answer, which has a cause of its own."""
    waiting: int | None = 0
    if broker_url.startswith("redis"):
        try:
            with ask_once(broker_url) as broker:
                waiting = int(str(broker.llen(queue)))
        except redis.RedisError:
            waiting = None  # the broker does not answer, which is told
    try:
        return read_pulse(client, waiting)
    except redis.RedisError:
        return NO_PULSE
