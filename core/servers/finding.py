"""What is wrong with a server, why that matters, and the next step."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum

SKEW_S = 5.0  # clocks further apart than this get a warning; a heartbeat counts for 15 s


class Severity(StrEnum):
    FAULT = "fault"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a server, why that matters, and the next step."""

    server: str  # postgres, redis, broker; worker
    severity: Severity
    wrong: str
    why: str
    step: str

    def __str__(self) -> str:
        return f"{self.server}: {self.wrong}; {self.why}. Next: {self.step}"

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def skew(server: str, read_clock: Callable[[], datetime]) -> Iterator[Finding]:
    """Compare clocks: the server reads its own at some moment before its answer comes."""
    before = datetime.now(UTC)
    ahead_s = (read_clock() - before).total_seconds()
    took_s = (datetime.now(UTC) - before).total_seconds()
    if -SKEW_S <= ahead_s <= took_s + SKEW_S:
        return
    wrong = f"its clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} ours"
    why = "two clocks decide on deadlines and heartbeats"
    yield Finding(server, Severity.WARNING, wrong, why, "let NTP set the clocks of both machines")
