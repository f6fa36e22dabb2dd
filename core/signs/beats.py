"""Which beat leads. Several may run; one sends the ticks, the others stand by.

The lease is a key in Redis that expires. Nobody needs it to be exact: ticks are safe to send twice,
so two leaders for a moment cost a few messages, and a lost lease costs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

from redis import Redis

from core.lua import script
from core.signs.pauses import server_time

LEAD, RESIGN = script("lead"), script("resign")
LEASE = timedelta(seconds=5)  # five renewals: a pause of garbage collection ends no lead
FORGOTTEN = timedelta(seconds=15)  # after which a silent beat counts as gone, as a worker does
LEADER = "els:beat:{queue}:leader"
BEATS = "els:beat:{queue}:all"


@dataclass(frozen=True)
class Beats:
    """The beats of a queue that have shown themselves of late, by name."""

    leader: str | None = None
    standing_by: Sequence[str] = ()
    gone: bool = False  # one was there, and none is now

    def __str__(self) -> str:
        if self.leader is None:
            return "no beat leads"
        others = len(self.standing_by)
        standing_by = f"{others or 'none'} stand{'' if others > 1 else 's'} by"
        return f"beat {self.leader} leads, {standing_by}"


NO_BEATS = Beats()


def lead(client: Redis, queue: str, beat: str) -> str:
    """Take or renew the lease unless another beat has it; return the beat that leads."""
    times = [int(LEASE.total_seconds() * 1000), int(FORGOTTEN.total_seconds())]
    return str(client.register_script(LEAD)(keys=_keys(queue), args=[beat, *times]))


def resign(client: Redis, queue: str, beat: str) -> None:
    """Give the lease up, if this beat has it: another leads at its next turn."""
    client.register_script(RESIGN)(keys=_keys(queue), args=[beat])


def read_beats(client: Redis, queue: str) -> Beats:
    leader_key, all_key = _keys(queue)
    oldest = server_time(client) - FORGOTTEN.total_seconds()
    with client.pipeline(transaction=False) as pipe:
        pipe.get(leader_key)
        pipe.zrangebyscore(all_key, oldest, "+inf")
        pipe.exists(all_key)
        leader, beats, known = cast("tuple[str | None, list[str], int]", pipe.execute())
    standing_by = [_host(each) for each in beats if each != leader]
    return Beats(leader and _host(leader), standing_by, bool(known and not leader and not beats))


def _host(beat: str) -> str:
    """Return the host and process id in a beat's name, without its random end."""
    return beat.partition("#")[0]


def _keys(queue: str) -> list[str]:
    return [LEADER.format(queue=queue), BEATS.format(queue=queue)]
