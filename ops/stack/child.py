"""A supervised process: when it exits, hangs, and starts again."""

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ops.stack.worker_health import MAX_AGE_S

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10  # before a restart; doubles with each failure
STEADY_S = 30  # a run this long resets the pause
QUICK_S, QUICK_FAILURES = 5, 3  # this many runs this short: it keeps failing
ASLEEP_S = 10  # this long without a check: the machine slept, so heartbeats count from now
# The first heartbeat comes once all is imported, before a worker waits for any server.
FIRST_HEARTBEAT_S, HEARTBEAT_S = 180.0, MAX_AGE_S


@dataclass
class Child:
    """How to launch it, its current run, and when to restart it."""

    name: str
    launch: Callable[[], subprocess.Popen[bytes]]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = field(default_factory=time.monotonic)
    restart_at: float = 0
    pause: float = FIRST_PAUSE_S
    quick_failures: int = 0
    heartbeat: float | None = None  # the last one, by the file system's clock
    heartbeat_seen_at: float = 0  # when we first saw that one, by our clock
    checked_at: float = 0

    def start(self) -> None:
        self.process, self.started_at = self.launch(), time.monotonic()
        self.heartbeat, self.heartbeat_seen_at = None, self.started_at

    def silent_s(self, heartbeat: float | None, now: float) -> float:
        """Return for how long the heartbeat has not changed, where that is too long; else 0.

        None: there has been no heartbeat in this run.
        """
        if heartbeat != self.heartbeat or now - self.checked_at > ASLEEP_S:
            self.heartbeat, self.heartbeat_seen_at = heartbeat, now
        self.checked_at = now
        age_s = now - self.heartbeat_seen_at
        return age_s if age_s > (FIRST_HEARTBEAT_S if heartbeat is None else HEARTBEAT_S) else 0

    def record_exit(self, status: int) -> str:
        """Schedule the restart of an exited process; return a line that says so."""
        self.process, now = None, time.monotonic()
        age = now - self.started_at
        if age > STEADY_S:
            self.pause = FIRST_PAUSE_S
        self.quick_failures = self.quick_failures + 1 if age < QUICK_S else 0
        self.restart_at = now + self.pause
        how = (
            f"exited with status {status}" if status >= 0 else f"killed by {_signal_name(-status)}"
        )
        line = f"{self.name}: {how}; starts again in {self.pause:g} s"
        self.pause = min(2 * self.pause, LONGEST_PAUSE_S)
        if self.quick_failures >= QUICK_FAILURES:
            line += f"; it keeps failing, see {self.log}"
        return line


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
