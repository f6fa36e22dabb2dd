"""The health file: a worker touches it while its main loop turns. It holds the worker's pid.

Supervisors read it instead of Redis: a broker that is away must not look like a dead worker, or an
outage becomes a storm of restarts. They read it often, so this module imports little.
"""

import os
import time
from pathlib import Path


def touch(home: Path, worker: str) -> None:
    """Note that the main loop of this worker turns. Raises OSError."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, pid = _file(home, worker), str(os.getpid())
    if _pid(path) == pid:
        path.touch()  # which a full disk allows
    else:
        path.write_text(pid)


def ages_s(home: Path, worker: str = "*") -> dict[str, float]:
    """Return for each worker of this home, or for one, the seconds since its last touch."""
    now = time.time()
    return {
        path.stem.removeprefix("worker-"): now - path.stat().st_mtime
        for path in home.glob(_file(home, worker).name)
    }


def touched_at(home: Path) -> dict[int, float]:
    """Return for each pid the time of its last touch, by the file system's clock."""
    return {
        int(pid): path.stat().st_mtime
        for path in home.glob(_file(home, "*").name)
        if (pid := _pid(path) or "").isdigit()
    }


def _pid(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _file(home: Path, worker: str) -> Path:
    return home / f"worker-{worker.replace('/', '_')}.alive"
