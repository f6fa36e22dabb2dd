"""Signs of a worker, written every 2 s: its queues, its database, and what it executes.

A sign stays for a day after its worker's last one, so that an explanation can say who was here and
how it ran. `Sign` in `ops/signs.py` lists the fields.
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from redis import Redis

SIGN = "els:sign:{worker}"  # JSON; moments are seconds by Redis' clock
KEPT = timedelta(days=1)


def write_sign(client: Redis, worker: str, sign: Mapping[str, Any]) -> None:  # Any: JSON
    """Write a sign; its moments are seconds by Redis' clock. Raises redis.RedisError."""
    client.set(SIGN.format(worker=worker), json.dumps(sign), ex=KEPT)
