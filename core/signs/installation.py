"""How this service was started here.

A worker detects it of itself, and its sign of life passes it on to whoever explains.
"""

import json
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

IN_A_CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))


class Kind(StrEnum):
    """What starts the processes."""

    ELS_RUN = "els run"
    KUBERNETES = "kubernetes"
    COMPOSE = "compose"
    SYSTEMD = "systemd"
    COMMAND = "command"  # a person, or something that this program does not know


def detect(home: Path, environ: Mapping[str, str] = os.environ) -> Kind:
    """Detect what has started this process."""
    if os.getppid() in (_supervisor(home, "lock"), _supervisor(home, "stack.json")):
        return Kind.ELS_RUN
    if "KUBERNETES_SERVICE_HOST" in environ:
        return Kind.KUBERNETES
    if _is_of_the_container() and any(path.exists() for path in IN_A_CONTAINER):
        return Kind.COMPOSE
    # A terminal passes on what systemd has given to it; its process id is another one.
    if "INVOCATION_ID" in environ and _is_ours(environ.get("SYSTEMD_EXEC_PID")):
        return Kind.SYSTEMD
    return Kind.COMMAND


def _is_of_the_container() -> bool:
    """Tell whether a container runs this process; a shell in it has a session of its own."""
    return os.getppid() == 0 or os.getsid(0) == 1


def _is_ours(pid: str | None) -> bool:
    return pid in (None, str(os.getpid()))


def _supervisor(home: Path, file: str) -> int | None:
    """Read the process id of the `els run` of a home; None where there is none."""
    try:
        said = json.loads((home / file).read_text() or "null")
    except (OSError, ValueError):
        return None
    pid = said.get("pid") if isinstance(said, dict) else said
    return pid if isinstance(pid, int) else None
