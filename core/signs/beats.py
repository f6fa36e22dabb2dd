"""Which beat leads. Several may run; one sends the ticks, the others stand by.

The lease is a key in Redis that expires. Nobody needs it to be exact: ticks are safe to send twice,
so two leaders for a moment cost a few messages, and a lost lease costs nothing.
"""

from datetime import timedelta

from redis import Redis

from core.lua import script

LEAD, RESIGN = script("lead"), script("resign")
LEASE = timedelta(seconds=5)  # five renewals: a pause of garbage collection ends no lead
FORGOTTEN = timedelta(seconds=15)  # after which a silent beat counts as gone, as a worker does
LEADER = "els:beat:{queue}:leader"
BEATS = "els:beat:{queue}:all"


def lead(client: Redis, queue: str, beat: str) -> str:
    """Take or renew the lease unless another beat has it; return the beat that leads."""
    times = [int(LEASE.total_seconds() * 1000), int(FORGOTTEN.total_seconds())]
    return str(client.register_script(LEAD)(keys=keys(queue), args=[beat, *times]))


def resign(client: Redis, queue: str, beat: str) -> None:
    """Give the lease up, if this beat has it: another leads at its next turn."""
    client.register_script(RESIGN)(keys=keys(queue), args=[beat])


def keys(queue: str) -> list[str]:
    return [LEADER.format(queue=queue), BEATS.format(queue=queue)]
