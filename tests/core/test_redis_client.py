"""The client of Redis blames the server for what it cannot read."""

import os
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import redis

from core.faults import Fault, fault
from core.probe import probe_redis
from core.servers.redis_client import connect, connect_once
from core.slots import Slots
from tests.core.babbling import REPLIES_OF_NOBODY, Babbling


@pytest.fixture
def babbling():
    url = urlsplit(os.environ["ELS_REDIS_URL"])
    proxy = Babbling(url.port)
    proxy.start()
    proxy.url = url._replace(netloc=url.netloc.replace(f":{url.port}", f":{proxy.port}")).geturl()
    yield proxy
    proxy.stop()


@pytest.mark.parametrize("reply", REPLIES_OF_NOBODY.values(), ids=REPLIES_OF_NOBODY)
@pytest.mark.parametrize("open_before", [True, False], ids=["connected", "connecting"])
def test_a_reply_that_makes_no_sense_is_no_fault_of_a_message(babbling, reply, open_before):
    with connect_once(babbling.url, timeout_s=1) as client:
        if open_before:
            client.ping()
        babbling.instead = reply
        outage = probe_redis(Slots(client))
        met = []
        for call in (client.time, client.info, lambda: piped(client)):
            try:
                call()
            except Exception as error:  # noqa: BLE001 - whatever it is
                met.append(fault(error))
        babbling.instead = None
        with suppress(redis.ConnectionError, redis.TimeoutError):  # of before
            client.ping()

        assert outage is not None
        assert outage.server == "redis"
        assert set(met) <= {Fault.ENVIRONMENT}, met
        assert client.time()[0] > 0
        assert probe_redis(Slots(client)) is None


def piped(client):
    with client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.time()
        return pipe.execute()


def test_no_reply_of_before_answers_what_is_asked_later(babbling):
    with connect(babbling.url, timeout_s=1) as client:
        client.set("babble", "right")
        babbling.instead = b"$2\r\n\xff\xfe\r\n" + b"$5\r\nwrong\r\n" * 3
        with pytest.raises(redis.RedisError):
            client.get("babble")
        babbling.instead = None

        assert client.get("babble") == "right"
