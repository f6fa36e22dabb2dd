"""The lease of the leading beat, on a real Redis."""

import pytest

from core.signs import beats
from ops.signs import read_beats
from tests.factories import new_batch

ONE, OTHER = "host:7#0a", "host:7#0b"  # of two containers: host name and process id are the same


@pytest.fixture
def queue():
    return new_batch()


def test_one_beat_leads_and_the_other_stands_by(valkey, queue):
    leaders = [beats.lead(valkey, queue, each) for each in (ONE, OTHER, ONE, OTHER)]

    assert leaders == [ONE] * 4
    seen = read_beats(valkey, queue)
    assert (seen.leader, seen.standing_by) == ("host:7", ["host:7"])
    assert str(seen) == "beat host:7 leads, 1 stands by"


def test_a_beat_that_resigns_lets_the_other_lead(valkey, queue):
    beats.lead(valkey, queue, ONE)

    beats.resign(valkey, queue, OTHER)
    kept = beats.lead(valkey, queue, OTHER)
    beats.resign(valkey, queue, ONE)

    assert (kept, beats.lead(valkey, queue, OTHER)) == (ONE, OTHER)


def test_a_lease_that_is_not_renewed_ends(valkey, queue):
    beats.lead(valkey, queue, ONE)

    left_ms = valkey.pttl(beats.LEADER.format(queue=queue))

    assert 0 < left_ms <= beats.LEASE.total_seconds() * 1000


def test_each_queue_has_a_leader_of_its_own(valkey, queue):
    assert beats.lead(valkey, queue, ONE) == ONE
    assert beats.lead(valkey, f"{queue}-2", OTHER) == OTHER


def test_a_beat_that_is_silent_for_long_is_not_shown(valkey, queue):
    key = beats.BEATS.format(queue=queue)
    for each in (ONE, OTHER):
        beats.lead(valkey, queue, each)
    valkey.zincrby(key, -beats.FORGOTTEN.total_seconds() - 1, OTHER)

    shown = read_beats(valkey, queue).standing_by
    beats.lead(valkey, queue, ONE)

    assert (shown, valkey.zrange(key, 0, -1)) == ([], [ONE])


def test_without_a_beat_nobody_leads(valkey, queue):
    assert str(read_beats(valkey, queue)) == "no beat leads"
