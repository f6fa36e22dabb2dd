"""The health file: a worker or beat touches it while its main loop turns. It holds its pid.

Supervisors read it instead of Redis: a broker that is away must not look like a dead worker, or an
outage becomes a storm of restarts. They read it often, so this module imports little.
"""

import os
import time
from contextlib import suppress
from pathlib import Path


def touch(home: Path, name: str, part: str = "worker") -> None:
    """Note that the main loop of this worker or beat turns; nobody finds what cannot be written."""
    path, pid = _file(home, name, part), str(os.getpid())
    with suppress(OSError):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _pid(path) == pid:
            path.touch()  # which a full disk allows
        else:
            path.write_text(pid)


def ages_s(home: Path, name: str = "*", part: str = "worker") -> dict[str, float]:
    """Return for each worker (or beat) of this home, or for one, the seconds since it touched."""
    now = time.time()
    return {
        path.stem.removeprefix(f"{part}-"): now - path.stat().st_mtime
        for path in home.glob(_file(home, name, part).name)
    }


def touched_at(home: Path) -> dict[int, float]:
    """Return for each pid the time of its last touch, by the file system's clock."""
    return {
        int(pid): path.stat().st_mtime
        for path in home.glob(_file(home, "*", "*").name)
        if (pid := _pid(path) or "").isdigit()
    }


def _pid(path: Path) -> str | None:
    try:
        return path.read_text().partition("\n")[0]
    except FileNotFoundError:
        return None


def _file(home: Path, name: str, part: str) -> Path:
    return home / f"{part}-{name.replace('/', '_')}.alive"
