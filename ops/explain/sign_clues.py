"""What workers, and the Redis that has their signs, show of messages that never became outcomes."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import redis

from ops.explain.clues import Clue
from ops.heartbeat import Heartbeat
from ops.wording import number, utc

BEFORE = timedelta(minutes=1)  # a message that registers a batch may have asked for its contents
A_DAY = timedelta(days=1)  # for the messages of a batch that nobody has registered
TIMEOUT = "ELS_VISIBILITY_TIMEOUT"
EVICTING = "allkeys"  # how policies begin that take any key


def sign_clues(heartbeat: Heartbeat, since: datetime | None, *, has_queue: bool) -> Iterator[Clue]:
    """Tell of messages that were dropped since a batch was registered.

    `since`: that moment, or of a batch that nobody has registered yesterday's. None: there was no
    batch at all, so a Redis without keys is new. `has_queue`: the Redis of the signs is the broker
    too.
    """
    begin = since or datetime.now(UTC) - A_DAY
    for name, sign in heartbeat.signs.items():
        if sign.ignored_at and sign.ignored_at > begin - BEFORE:
            yield Clue(
                f"a message asked the worker {name} for further tasks at {utc(sign.ignored_at)}"
                f" ({', '.join(sign.ignored)}), which it never sends: their sender must send each"
                " as a message of its own"
            )
    if has_queue and since and heartbeat.since and heartbeat.since > since:
        yield Clue(
            f"the broker has lost its keys, or is another one, since {utc(heartbeat.since)}"
            " (FLUSHALL, a restart without appendonly): what waited in it then must be sent again"
        )


def timeout_clues(heartbeat: Heartbeat) -> Iterator[Clue]:
    """Tell when the broker delivers again what a dead worker held, where a setting says so."""
    for name, sign in heartbeat.signs.items():
        if sign.fresh and TIMEOUT in sign.settings:
            yield Clue(f"{TIMEOUT} of the worker {name} is {float(sign.settings[TIMEOUT]):g} s")


def eviction_clues(client: redis.Redis) -> Iterator[Clue]:
    """Tell whether a Redis broker has dropped keys for want of memory. Raises redis.RedisError."""
    said = client.info()
    policy, evicted = str(said.get("maxmemory_policy")), int(said.get("evicted_keys", 0))
    if evicted and policy.startswith(EVICTING):
        yield Clue(
            f"the broker has dropped {number(evicted, 'key')} for want of memory, as its"
            f" maxmemory-policy is {policy}: a queue with its messages may be among them",
            "els env  # then redis-cli -u BROKER_URL CONFIG SET maxmemory-policy noeviction",
        )
