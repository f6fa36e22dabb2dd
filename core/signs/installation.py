"""How this service was started here, and so the commands that start its parts again.

A worker detects it of itself, and its sign of life passes it on to whoever explains.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
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


START = {
    Kind.ELS_RUN: "els run --home {home}",
    Kind.KUBERNETES: "kubectl rollout restart deployment/els-{part}",
    Kind.COMPOSE: "docker compose up -d {part}",
    Kind.SYSTEMD: "systemctl start {unit}",
    Kind.COMMAND: "els {part}",
}
RESTART = START | {
    Kind.COMPOSE: "docker compose restart {part}",
    Kind.SYSTEMD: "systemctl restart {unit}",
    Kind.COMMAND: "kill -KILL {pid}; els {part}",
}
LOG = {
    Kind.ELS_RUN: "tail -n 20 {home}/log/{part}.log",
    Kind.KUBERNETES: "kubectl logs deployment/els-{part} --tail 20",
    Kind.COMPOSE: "docker compose logs --tail 20 {part}",
    Kind.SYSTEMD: "journalctl -n 20 -u '{unit}'",
}
MIGRATE = {
    Kind.KUBERNETES: "kubectl apply -k deploy/kubernetes/migrate",
    Kind.COMPOSE: "docker compose run --rm migrate",
    Kind.SYSTEMD: "systemctl start els-migrate",
}
UNITS = {"worker": "els-worker@*", "beat": "els-beat"}


@dataclass(frozen=True)
class Installation:
    """What starts the processes of this service, and where. `up`: an `els run` lives there."""

    kind: Kind = Kind.COMMAND
    home: str = ".els"
    up: bool = False

    def start(self, part: str) -> str:
        """Return the command that starts a part that is gone: `worker` or `beat`."""
        if self.kind is Kind.ELS_RUN and self.up:  # it starts the part again itself
            return self.log(part)
        unit = "els-worker@1" if part == "worker" else UNITS[part]
        return START[self.kind].format(part=part, home=self.home, unit=unit)

    def serve(self, queue: str) -> str:
        """Return the command that starts a worker of this queue."""
        setting = f"ELS_QUEUE={queue}"
        if self.kind is Kind.KUBERNETES:
            return f"kubectl set env deployment/els-worker {setting}"
        if self.kind is Kind.SYSTEMD:
            return f"{self.start('worker')}  # with {setting} in its environment file"
        if self.kind is Kind.ELS_RUN:
            return f"{setting} {START[self.kind].format(home=self.home)}"
        return f"{setting} {self.start('worker')}"

    def restart(self, part: str, pid: int | None) -> str:
        """Return the command that ends a part that hangs, and starts it again."""
        if pid is not None and self.kind in (Kind.ELS_RUN, Kind.COMMAND):
            again = "" if self.kind is Kind.ELS_RUN else f"; els {part}"
            return f"kill -KILL {pid}{again}"
        unit = UNITS[part]
        return RESTART[self.kind].format(part=part, home=self.home, unit=unit, pid=pid)

    def log(self, part: str) -> str:
        """Return the command that shows what a part has logged last."""
        if self.kind not in LOG:
            return f"els health {part}"
        return LOG[self.kind].format(part=part, home=self.home, unit=UNITS[part])

    @property
    def migrate(self) -> str:
        return MIGRATE.get(self.kind, "els migrate")


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
