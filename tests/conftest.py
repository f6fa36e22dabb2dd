"""Real servers for every test: the ones that are given, else embedded ones of this process."""

import gc
import os
import shutil
import tempfile
from contextlib import ExitStack
from multiprocessing.util import Finalize
from pathlib import Path

import psutil
import pytest
import redis
import structlog
from hypothesis import HealthCheck, settings

from core import db
from core.lifecycle import Lifecycle
from core.slots import Slots
from migrations import upgrade
from ops.stack.embedded import Postgres, Valkey
from ops.stack.ports import free_port

ELS = [name for name in os.environ if name.startswith("ELS_")]
# One of several test processes (pytest-xdist) inherits what the first set: nothing is given to it.
ONE_OF_SEVERAL = "PYTEST_XDIST_WORKER" in os.environ
GIVEN = [name for name in ELS if name.endswith("_URL") and not ONE_OF_SEVERAL]
for name in set(ELS) - set(GIVEN):
    del os.environ[name]  # a developer's own settings do not change what is tested
os.environ["ELS_LOG_FORMAT"] = "console"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes would compile our modules

# The URLs are set before anything imports the Celery app; the servers start with the first test.
KINDS = {"ELS_DATABASE_URL": Postgres, "ELS_REDIS_URL": Valkey}
MEMORY = Path("/dev/shm")
ROOM = 4 << 30  # bytes; servers of three test processes write below one GB
PORTS = {name: free_port() for name in KINDS if name not in GIVEN}


def _server(name, home):
    return KINDS[name](home / name, PORTS[name], "test-password")


os.environ.update({name: _server(name, Path()).url for name in PORTS})


# By itself structlog draws each traceback with Rich, which takes seconds where it is deep.
PLAIN = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], PLAIN])


# How long an example takes says how busy the machine is. Fixtures are shared between examples.
settings.register_profile(
    "no clock",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("no clock")


def pytest_configure():
    """Let all that this run writes to a temporary folder be in one, which goes with the run.

    Programs that tests end leave files there, as the server that forks `els` does.
    """
    if ONE_OF_SEVERAL:  # it inherits the folder
        return
    place = Path(tempfile.gettempdir())
    remove_interrupted(place, "els-tests-")
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(place))  # pytest keeps its last three
    made = tempfile.mkdtemp(prefix=f"els-tests-{os.getpid()}-")
    Path(made).chmod(0o1777)  # some programs run as another user
    os.environ["TMPDIR"], tempfile.tempdir = made, made
    # After multiprocessing's own, which expects its folder to be there (priority -100).
    Finalize(None, shutil.rmtree, (made,), {"ignore_errors": True}, exitpriority=-1_000)


def remove_interrupted(place, prefix):
    """Remove the folders of runs that did not come to it; the process id follows the prefix."""
    for left in place.glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption("--runs", type=int, default=1, help="how often each crash point is tried")
    parser.addoption(
        "--broker", choices=["redis", "rabbitmq"], default="redis", help="of tests/live"
    )
    parser.addoption("--images", type=Path, help="a folder that gets the pictures of the pages")


def pytest_xdist_auto_num_workers():
    """One more than there are cores, as tests wait a good deal; one alone on given servers.

    Its tests flush the one server and count what is in the other.
    """
    return 0 if GIVEN else (os.cpu_count() or 1) + 1


def pytest_xdist_setupnodes():
    if GIVEN:
        raise pytest.UsageError(f"{', '.join(GIVEN)}: given servers are for one process, `-n 0`")


def pytest_collection_modifyitems(items):
    """Begin with the longest files, so that no process works alone in the end."""
    items.sort(key=lambda item: item.path.parent.name not in {"ops", "live"})


def pytest_generate_tests(metafunc):
    if "run" in metafunc.fixturenames:
        metafunc.parametrize("run", range(metafunc.config.getoption("--runs")))


@pytest.fixture(scope="session")
def memory(tmp_path_factory):
    """Lend a folder for data of servers: in memory, if there is room, as no test is about disks."""
    remove_interrupted(MEMORY, "els-memory-")
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
    where = MEMORY if roomy else tmp_path_factory.getbasetemp()
    prefix = f"els-memory-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=where, ignore_cleanup_errors=True) as made:
        yield Path(made)


@pytest.fixture(scope="session", autouse=True)
def _servers(memory):
    with ExitStack() as undo:
        for name in PORTS:
            server = _server(name, memory)
            undo.callback(server.stop)
            server.start()
        undo.callback(gc.collect)  # what is left to be ended ends while the servers are up
        yield


@pytest.fixture(scope="session")
def database_url():
    """The migrated database of this run."""
    url = os.environ["ELS_DATABASE_URL"]
    upgrade(url)
    return url


@pytest.fixture(scope="session")
def pool(database_url):
    with db.connect(database_url, size=40, by_key=True) as opened:
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
