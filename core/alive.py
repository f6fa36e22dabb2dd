"""A file that a worker touches as long as its main loop turns, for supervisors. It holds its pid.

It stands apart from `core.heartbeat`, which asks Redis: a broker that is away must not look like
a dead worker, or an outage becomes a storm of restarts. Imports little, because it is read often.
"""

import os
import time
from pathlib import Path


def show(home: Path, worker: str) -> None:
    """Note that the main loop of this worker turns. Raises OSError."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, pid = _file(home, worker), str(os.getpid())
    if _pid(path) == pid:
        path.touch()  # which a full disk allows
    else:
        path.write_text(pid)


def ages_s(home: Path, worker: str = "*") -> dict[str, float]:
    """Tell how long ago each worker of this home gave its last sign; or one, by name."""
    now = time.time()
    return {
        path.stem.removeprefix("worker-"): now - path.stat().st_mtime
        for path in home.glob(_file(home, worker).name)
    }


def signs(home: Path) -> dict[int, float]:
    """Tell when each process gave its last sign, by the file system's clock."""
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
