"""The ops page on a database and a Redis of its own, in this process, and how to read it."""

import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from html import unescape
from uuid import uuid4

import psycopg
import redis

from core.lifecycle import Lifecycle
from core.settings import Settings
from core.signs.heartbeat import note_sweep, note_worker
from core.slots import Slots
from migrations import upgrade
from ops.brief_postgres import pool_for_pages
from ops.stack.ports import free_port
from ops.web.app import create_app
from ops.web.server import server_of
from tests.live.conftest import until

REDIS_DB = 9  # the other tests flush theirs


@dataclass
class Answer:
    status: int
    text: str
    headers: dict = field(repr=False)

    @property
    def words(self):
        """What a reader sees."""
        bare = re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", self.text, flags=re.S)
        return re.sub(r"\s+", " ", unescape(bare))

    @property
    def batches(self):
        """The batches that the board lists, in their order."""
        return re.findall(r'class="batch"><a href="/batches/([^"]*)"', self.text)

    @property
    def following(self):
        """The address of the next page."""
        found = re.search(r'rel="next" href="([^"]*)"', self.text)
        return unescape(found[1]) if found else None


class Served:
    """The page, what it reads, and what fills that."""

    def __init__(self, database_url, redis_url, port=None, **settings):
        self.settings = Settings(database_url=database_url, redis_url=redis_url, **settings)
        self.app = create_app(self.settings)
        self.stream = self.app.state.stream
        self.client = redis.Redis.from_url(redis_url, decode_responses=True)
        self.pool = pool_for_pages(database_url, size=4)
        self.lifecycle = Lifecycle(self.pool, Slots(self.client))
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = server_of(self.app, "127.0.0.1", self.port)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self):
        self.thread.start()
        until(lambda: self.server.started, what="the page is up")
        self.lives()
        return self

    def __exit__(self, *error):
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.pool.close()
        self.client.close()

    def lives(self):
        """Give the signs of life of a worker and of the sweep."""
        note_worker(self.client, "worker@test")
        note_sweep(self.client)

    def get(self, path, method="GET", **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, headers=named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return Answer(answer.status, answer.read().decode(), dict(answer.headers))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read().decode(), dict(error.headers))

    @contextmanager
    def viewer(self, path="/stream", **headers):
        """Watch the stream; give a function that reads the next event: its fields."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, headers=named)
        with urllib.request.urlopen(request, timeout=20) as answer:
            yield lambda: next_event(answer)


def next_event(answer):
    event = {}
    while True:
        line = answer.readline().decode().rstrip("\r\n")
        if not line and event:
            return event
        name, _, value = line.partition(": ")
        if name in ("id", "event", "data"):
            event[name] = event[name] + "\n" + value if name in event else value


@contextmanager
def page_of_its_own(database_url):
    """Serve the page on a database that nobody else fills."""
    redis_url = own_redis(os.environ["ELS_REDIS_URL"])
    name = f"page_{uuid4().hex[:8]}"
    with own_database(database_url, name) as url, Served(url, redis_url) as served:
        yield served


def own_redis(url):
    return urllib.parse.urlsplit(url)._replace(path=f"/{REDIS_DB}").geturl()


@contextmanager
def own_database(url, name):
    """Make an empty, migrated database, gone afterwards."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template(url)}")
        try:
            yield at_database(url, name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@cache
def template(url):
    """Migrate a database of this server, once, for the others to be copied from."""
    name = "migrated_once"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name}")
    upgrade(at_database(url, name))
    return name


def at_database(url, name):
    return urllib.parse.urlsplit(url)._replace(path=f"/{name}").geturl()
