"""Real servers for every test: the ones that are given, else embedded ones for this run."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

for name in [n for n in os.environ if n.startswith("ELS_") and not n.endswith("_URL")]:
    del os.environ[name]  # a developer's own settings do not change what is tested
os.environ["ELS_LOG_FORMAT"] = "console"


def pytest_addoption(parser):
    parser.addoption("--runs", type=int, default=1, help="how often each crash point is tried")
    parser.addoption("--images", type=Path, help="a folder that gets the pictures of the pages")


def pytest_generate_tests(metafunc):
    if "run" in metafunc.fixturenames:
        metafunc.parametrize("run", range(metafunc.config.getoption("--runs")))


def _serve() -> None:
    """Start what is not given, and set the URLs before anything imports the Celery app."""
    from ops.embedded import Postgres, Valkey, free_port

    home = Path(tempfile.mkdtemp(prefix="els-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for variable, kind, folder in [
        ("ELS_DATABASE_URL", Postgres, "postgres"),
        ("ELS_REDIS_URL", Valkey, "valkey"),
    ]:
        if variable not in os.environ:
            server = kind(home / folder, free_port(), "test-password")
            atexit.register(server.stop)
            server.start()
            os.environ[variable] = server.url


_serve()

import redis  # noqa: E402 - after the URLs are set

from core import ledger  # noqa: E402
from core.lifecycle import Lifecycle  # noqa: E402
from core.slots import Slots  # noqa: E402
from migrations import upgrade  # noqa: E402


@pytest.fixture(scope="session")
def database_url():
    """The migrated database of this run."""
    url = os.environ["ELS_DATABASE_URL"]
    upgrade(url)
    return url


@pytest.fixture(scope="session")
def pool(database_url):
    with ledger.connect(database_url, size=40) as opened:
        yield opened


@pytest.fixture
def conn(pool):
    with pool.connection() as connection:
        yield connection


@pytest.fixture(scope="session")
def valkey():
    client = redis.Redis.from_url(os.environ["ELS_REDIS_URL"], decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def slots(valkey):
    valkey.flushdb()
    return Slots(valkey)


@pytest.fixture
def lifecycle(pool, slots):
    return Lifecycle(pool, slots)
