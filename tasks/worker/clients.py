"""The Redis client of a worker's main loop, of beat, and of who asks whether Redis is well."""

from functools import cache

from redis import Redis

from core.servers.redis_client import connect_once
from tasks.app import settings

ANSWER_S = 1  # a main loop, or beat, waits meanwhile


@cache
def brief_redis() -> Redis:
    """Connect so that each call is tried once, and briefly."""
    _, redis_url = settings.server_urls()
    return connect_once(redis_url, timeout_s=ANSWER_S)
