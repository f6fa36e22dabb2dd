"""Leaves word in Redis why a worker or beat could not start: whoever explains does not see its log.

It is a sign of life that ends at once. Workers that run are not touched: it has a name of its own.
The start counts like that of a worker that ends: a supervisor may repeat it without end.
"""

import os
from contextlib import suppress
from pathlib import Path
from socket import gethostname

import redis

from core.errors import BadSettings
from core.servers.redis_client import connect_once
from core.settings import PREFIX, Settings
from core.signs.heartbeat import note_gone, note_start, write_sign
from core.signs.installation import detect
from core.signs.pauses import server_time

NODENAME = "celery"  # of a worker without a name, as Celery has it
TO_REACH_REDIS = (f"{PREFIX}REDIS_", f"{PREFIX}TLS_")


def note_failed_start(part: str, why: str) -> None:
    """Note why a `worker` or `beat` cannot start, where the settings of Redis are right."""
    given = {name: value for name, value in os.environ.items() if name.startswith(TO_REACH_REDIS)}
    with suppress(BadSettings, redis.RedisError):
        if url := Settings.from_env(given).redis_url:
            with connect_once(url, timeout_s=1) as client:
                if part == "worker":
                    note_start(client, f"{NODENAME}@{gethostname()}")
                _note(client, f"{part}@{gethostname()}", why)


def _note(client: redis.Redis, name: str, why: str) -> None:
    home = Path(os.environ.get(f"{PREFIX}HOME", ".els")).absolute()
    sign = {"installation": detect(home), "home": str(home)}
    write_sign(client, name, {**sign, "at": server_time(client), "failed": why})
    note_gone(client, name)
