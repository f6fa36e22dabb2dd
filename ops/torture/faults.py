"""Every fault: what it does, and for how long. Each ends by itself."""

import errno
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import redis

from core.crash import POINTS
from core.errors import StackError
from ops.heartbeat import read_heartbeat
from ops.stack.proxy import BOTH, REPLIES, REQUESTS
from ops.stack.server import until
from ops.torture import refusals
from ops.torture.brokers import Broker, Redis
from ops.torture.stage import Stage, end

SQLSTATES = ("53100", "53200", "58030", "57014", "42501", "XX123", "ZZ001")
REFUSAL_S = (5, 12)
FROZEN_S = (10, 20)
SWALLOWED_S = (15, 40)
LOCKED_S = (75, 75)
STILL_S = (10, 10)
DISK_S = (8, 12)
CLOCK_S = (10, 20)
TICKS_S = 5  # a beat that is heard less often than this while its clock is off has stopped
SKEW_S = 60


@dataclass(frozen=True)
class Fault:
    """One kind of harm. `why_not` says why it cannot be done on this stage."""

    name: str
    strike: Callable[[Stage], object]
    why_not: Callable[[Stage], str | None] = lambda stage: None


class NoTicks(StackError):
    """No sweep ran while the clock of beat was off."""


def all_faults(broker: type[Broker]) -> list[Fault]:
    """List every fault, those more often that are to happen more often."""
    return [*_deaths(), *_connections(), *_postgres(), *_refusing(broker), *_clocks()]


def chosen(names: tuple[str, ...], broker: type[Broker]) -> list[Fault]:
    """List the faults of these names, or all. Raises StackError for a name that there is not."""
    faults = all_faults(broker)
    if unknown := sorted({*names} - {fault.name for fault in faults}):
        raise StackError(f"no such fault: {', '.join(unknown)}; `--list` prints the names")
    return [fault for fault in faults if not names or fault.name in names]


def _deaths() -> Iterator[Fault]:
    for point in POINTS:
        yield Fault(f"worker killed at {point}", partial(_kill_at, point))
    for _ in range(3):
        yield Fault("worker killed anywhere", Stage.kill_a_worker)
    yield Fault("beat killed", lambda stage: stage.signal("beat", signal.SIGKILL))
    yield Fault("consumer killed", lambda stage: stage.signal("downstream", signal.SIGKILL))
    yield Fault("slots killed", lambda stage: stage.signal("valkey", signal.SIGKILL))
    yield Fault("broker killed", Stage.kill_broker)
    yield Fault("Postgres stopped at once", lambda stage: stage.signal("postgres", signal.SIGQUIT))


def _connections() -> Iterator[Fault]:
    yield Fault("old messages replayed", lambda stage: stage.replay())
    yield Fault("slots flushed", lambda stage: stage.slots.insist(redis.Redis.flushdb))
    flush = redis.Redis.script_flush
    yield Fault("scripts flushed", lambda stage: stage.slots.insist(flush))
    for name in ("Postgres", "slots", "broker"):
        yield Fault(f"{name}: connections cut", partial(_cut, name))
        yield Fault(f"{name}: replies lost", partial(_lose_replies, name))
        yield Fault(f"{name}: slow", partial(_slow, name))
        yield Fault(f"{name}: connections swallowed", partial(_swallow, name))
    yield Fault("broker: connections dropped", lambda stage: stage.broker.drop_connections())


def _postgres() -> Iterator[Fault]:
    yield Fault("Postgres: connections ended", _terminate_backends)
    for stay, what in ((False, ""), (True, ", sessions of that time stay")):
        refusal = partial(refusals.read_only, sessions_stay=stay)
        yield Fault(f"Postgres: read-only{what}", _while(refusal, REFUSAL_S))
    for state in SQLSTATES:
        refusal = partial(refusals.raising, sqlstate=state)
        yield Fault(f"Postgres: writes raise {state}", _while(refusal, REFUSAL_S))
    yield Fault("Postgres: idle sessions ended", _while(refusals.idle_sessions_ended, REFUSAL_S))
    yield Fault("Postgres: essay_states locked", _while(refusals.locked, LOCKED_S))
    yield Fault("Postgres: frozen", partial(_freeze, ["postgres"], STILL_S))
    yield Fault("Postgres: disk full", _fill_disk, lambda stage: stage.disk.why_not)


def _refusing(broker: type[Broker]) -> Iterator[Fault]:
    known = {"slots": Redis.refusals, "broker": broker.refusals}
    for names in (["slots"], ["broker"], ["slots", "broker"]):
        who = " and ".join(names)
        for what in known[names[0]]:
            if all(what in known[name] for name in names):
                yield Fault(f"{who}: {what}", partial(_refuse, names, what))
        processes = ["valkey" if name == "slots" else name for name in names]
        yield Fault(f"{who}: frozen", partial(_freeze, processes, FROZEN_S))


def _clocks() -> Iterator[Fault]:
    yield Fault("beat: clock a minute ahead", partial(_set_clock, SKEW_S))
    yield Fault("beat: clock a minute behind", partial(_set_clock, -SKEW_S))
    yield Fault("beat: clock a minute ahead, then beat killed", _restart_with_clock)


# --- how each is done --------------------------------------------------------------------------


def _kill_at(point: str, stage: Stage) -> None:
    """Run a worker that dies at this point, or, when it does not get there, anywhere."""
    doomed = stage.start_worker(["--pool", "solo"], ELS_CRASHPOINT=point)
    until(lambda: doomed.poll() is not None, 8)
    end(doomed)


def _cut(name: str, stage: Stage) -> None:
    stage.proxies[name].cut()


def _lose_replies(name: str, stage: Stage) -> None:
    stage.proxies[name].lose_replies(5)


def _slow(name: str, stage: Stage) -> None:
    stage.proxies[name].delay_s = 0.1
    stage.hold(2, 2)
    stage.proxies[name].delay_s = 0


def _swallow(name: str, stage: Stage) -> None:
    """Let connections die in silence: both ways, or only requests, or only replies."""
    proxy = stage.proxies[name]
    proxy.swallow(stage.random.choice([BOTH, {REQUESTS}, {REPLIES}]))
    try:
        stage.hold(*SWALLOWED_S)
    finally:
        proxy.pass_again()


def _terminate_backends(stage: Stage) -> None:
    refusals.end_sessions(stage.database_url)


def _while(
    refusal: Callable[[str], AbstractContextManager[object]], bounds: tuple[float, float]
) -> Callable[[Stage], None]:
    def strike(stage: Stage) -> None:
        with refusal(stage.database_url):
            stage.hold(*bounds)

    return strike


def _refuse(names: list[str], what: str, stage: Stage) -> None:
    with ExitStack() as undo:
        for name in names:
            undo.enter_context(stage.servers[name].refusing(what))
        stage.hold(*REFUSAL_S)


def _freeze(processes: list[str], bounds: tuple[float, float], stage: Stage) -> None:
    with ExitStack() as undo:
        for name in processes:
            undo.enter_context(refusals.frozen(stage.pid(name)))
        stage.hold(*bounds)


def _fill_disk(stage: Stage) -> None:
    """Fill the disk of Postgres, and again whenever a byte becomes free; then free it."""
    filler = stage.disk.path / "filler"
    deadline = time.monotonic() + min(stage.longest_s, stage.random.uniform(*DISK_S))
    block = bytes(1024 * 1024)
    try:
        with filler.open("ab", buffering=0) as file:
            while time.monotonic() < deadline and not stage.ended.is_set():
                try:
                    file.write(block)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    stage.ended.wait(0.1)
    finally:
        filler.unlink()


def _set_clock(by_s: int, stage: Stage) -> None:
    """Set the clock of beat while it runs; see whether its ticks still lead to sweeps."""
    stage.clock.write_text(str(by_s))
    try:
        began, lasted = time.time(), stage.hold(*CLOCK_S)
        heard = lasted < TICKS_S or _swept_since(stage, began)
    finally:
        stage.clock.write_text("0")
    if not heard:
        raise NoTicks(f"no sweep for {lasted:.0f} s while the clock of beat was off by {by_s} s")
    _await_ticks(stage)


def _restart_with_clock(stage: Stage) -> None:
    """Set the clock of beat right, and have beat start again with what it remembers."""
    stage.clock.write_text(str(SKEW_S))
    try:
        stage.hold(*CLOCK_S)
    finally:
        stage.clock.write_text("0")
    stage.signal("beat", signal.SIGKILL)
    _await_ticks(stage)


def _await_ticks(stage: Stage) -> None:
    since = time.time()
    if not until(lambda: _swept_since(stage, since), 30):
        raise NoTicks("no sweep for 30 s after the clock of beat was set right")


def _swept_since(stage: Stage, since: float) -> bool:
    with suppress(redis.RedisError):
        swept_at = read_heartbeat(stage.slots.client, None).swept_at
        return swept_at is not None and swept_at.timestamp() > since
    return False
