"""A broker of our own that a test may stop and start, and what is in its queue."""

import base64
import json

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from els_client import Sender
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port


class Broker:
    """A Valkey of the test's. It keeps its messages when it is stopped and started."""

    def __init__(self, home):
        home.mkdir(parents=True, exist_ok=True)
        self.server = Valkey(home / "valkey", free_port(), "test-password")
        self.url = self.server.url

    def start(self):
        self.server.start()

    def stop(self):
        self.server.stop()

    def messages(self, queue="els"):
        """Read the messages of a queue, oldest first: their headers and events."""
        with redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0)) as client:
            raw = [json.loads(each) for each in reversed(client.lrange(queue, 0, -1))]
        return [(each["headers"], _event(each)) for each in raw]

    def events(self, queue="els"):
        return [event for _, event in self.messages(queue)]


def _event(message):
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert args == []
    assert kwargs.keys() == {"event"}
    return kwargs["event"]


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path / "broker")
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def spool(tmp_path):
    return tmp_path / "spool" / "els.sqlite"


@pytest.fixture
def sender(broker, spool):
    with Sender(broker.url, spool=spool) as sender:
        yield sender
