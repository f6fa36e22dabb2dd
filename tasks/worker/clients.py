"""The Redis client of a worker's main loop, of beat, and of who asks whether Redis is well."""

from functools import cache

from redis import Redis

from core.errors import BadSettings
from core.servers.redis_client import connect_once
from tasks.app import settings

ANSWER_S = 1  # a main loop, or beat, waits meanwhile


@cache
def brief_redis() -> Redis:
    """Connect so that each call is tried once, and briefly. Raises BadSettings without a URL.

    Beat has no login to Postgres, so it asks for Redis alone.
    """
    if not settings.redis_url:
        raise BadSettings("workers and beat need ELS_REDIS_URL: `els env` prints that of `els run`")
    return connect_once(settings.redis_url, timeout_s=ANSWER_S)
