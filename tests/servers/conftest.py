"""Servers as Debian packages them: each test starts its own, in a folder, on loopback."""

import os
import shutil
from contextlib import ExitStack

import pytest

from migrations import upgrade
from tests.live.conftest import on_broker  # noqa: F401 - a fixture

# Where Debian puts programs that are not on everybody's path.
ELSEWHERE = ("/usr/sbin", "/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/17/bin")


def program(name: str) -> str:
    """Return the path of a program; a test is skipped, with its name, where there is none."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *ELSEWHERE)))
    return found or pytest.skip(f"{name} is not installed: `make test-servers` installs it as root")


@pytest.fixture(scope="module")
def node():
    """A Postgres with the schema of the service, for all tests of a module."""
    from tests.servers.postgres import Node, folder  # which imports `program` from here

    with folder("postgres") as path, ExitStack() as undo:
        started = Node(path / "data")
        undo.callback(started.end)
        started.create(fsync="off").start().make()
        upgrade(started.url)
        yield started
