"""What a process counts reaches Redis once, whatever becomes of the replies."""

import os
from random import Random
from urllib.parse import urlsplit

import pytest
from redis.exceptions import ConnectionError as LostConnection

from core import metrics
from core.metrics import HASH, MINUTES, MINUTES_KEPT, Pusher
from core.servers.redis_client import connect
from ops.stack.proxy import Proxy
from ops.web.activity import assigned_by_minute

REPAIRED = 'els_sweep_repairs_total{rule="a_rule"}'


@pytest.fixture
def through_a_proxy():
    parts = urlsplit(os.environ["ELS_REDIS_URL"])
    proxy = Proxy(parts.port, Random(1))
    proxy.start()
    url = parts._replace(netloc=parts.netloc.replace(str(parts.port), str(proxy.port))).geturl()
    client = connect(url)
    yield proxy, client
    client.close()
    proxy.stop()


def count_repair():
    metrics.REPAIRS.labels("a_rule").inc()


def test_a_push_adds_what_was_counted_since_the_last_one(valkey):
    valkey.flushdb()
    count_repair()
    pusher = Pusher(valkey)

    for _ in range(3):
        count_repair()
        pusher.push()

    assert {name: float(value) for name, value in valkey.hgetall(HASH).items()} == {REPAIRED: 3}


def test_what_several_processes_count_adds_up(valkey):
    valkey.flushdb()
    pushers = [Pusher(valkey), Pusher(valkey)]
    count_repair()

    for pusher in pushers:
        pusher.push()

    assert float(valkey.hget(HASH, REPAIRED)) == 2


def test_a_process_that_counted_nothing_sends_nothing(valkey):
    valkey.flushdb()

    Pusher(valkey).push()

    assert valkey.dbsize() == 0


def test_contents_are_counted_by_the_minute_for_a_day(valkey):
    valkey.flushdb()
    minute = int(valkey.time()[0]) // 60
    valkey.hset(MINUTES, mapping={minute - 1: 2, minute - MINUTES_KEPT - 1: 5})
    pushers = [Pusher(valkey), Pusher(valkey)]
    for pusher in pushers:
        metrics.executed("els.assign_contents", "accepted", {"assigned": 3, "excess": 1}, 0.1)
        pusher.push()

    found = assigned_by_minute(valkey)

    assert found.pop(minute - 1) == 2
    assert sum(found.values()) == 9, "the second process counted both"
    assert set(found) <= {minute, minute + 1}
    assert 0 < valkey.ttl(MINUTES) <= MINUTES_KEPT * 60


@pytest.mark.parametrize("lost", [1, 3], ids=["asked again at once", "asked again and again"])
def test_a_push_whose_reply_is_lost_is_added_once(valkey, through_a_proxy, lost):
    proxy, client = through_a_proxy
    valkey.flushdb()
    pusher = Pusher(client)
    count_repair()
    pusher.push()
    proxy.lose_replies(lost)

    count_repair()
    pusher.push()

    assert float(valkey.hget(HASH, REPAIRED)) == 2


def test_a_push_that_failed_is_made_up_for_by_the_next_one(valkey, through_a_proxy):
    proxy, client = through_a_proxy
    valkey.flushdb()
    pusher = Pusher(client)
    count_repair()
    pusher.push()
    proxy.lose_replies(20)
    count_repair()
    with pytest.raises(LostConnection):
        pusher.push()
    proxy.lose_replies(0)

    count_repair()
    pusher.push()
    pusher.push()

    assert float(valkey.hget(HASH, REPAIRED)) == 3
