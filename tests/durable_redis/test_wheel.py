"""The transport is a distribution of its own: it needs nothing of the server around it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import durable_redis

SOURCE = Path(durable_redis.__file__).parent
# Without the current folder and the environment's .pth files, which lead to this repository.
IMPORT = """
import sys
sys.path[:0] = [sys.argv[1], *sys.argv[2:]]
import durable_redis, durable_redis.proof
from kombu import Connection
assert durable_redis.__file__.startswith(sys.argv[1]), durable_redis.__file__
Connection("redis://", transport="durable_redis:Transport").transport
ours = {"core", "tasks", "ops", "structlog", "psycopg"} & sys.modules.keys()
assert not ours, ours
"""


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_wheel_is_built_offline_and_imported_without_the_server(tmp_path):
    build = ["-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    run(sys.executable, *build, cwd=SOURCE)
    [wheel] = tmp_path.glob("durable_redis_transport-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        packed.extractall(tmp_path / "installed")
    files = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")}
    files |= {f"lua/{path.name}" for path in SOURCE.glob("lua/*.lua")} | {"README.md"}
    libraries = [path for path in sys.path if path.endswith("site-packages")]

    run(sys.executable, "-ISc", IMPORT, tmp_path / "installed", *libraries, cwd=tmp_path)

    assert {f"durable_redis/{name}" for name in files} <= names
    assert "durable_redis/pyproject.toml" not in names
