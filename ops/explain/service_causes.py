"""What keeps every batch waiting: servers, locks, workers, beat, queues."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from core.db.sweep import Holder
from core.rules import Cause
from core.signs.heartbeat import FRESH, Heartbeat
from core.signs.pauses import Outage, Pause
from core.signs.sign import Sign
from ops.explain.causes import CAUSES
from ops.explain.locks import PREPARED, Lock
from ops.wording import number, utc

BACKLOG = 1_000  # waiting messages that take the worker more than a second or two
SERVERS = {"postgres": "Postgres", "redis": "Redis", "broker": "The broker"}
SETTINGS = {"postgres": "DATABASE", "redis": "REDIS", "broker": "BROKER"}
NO_SCHEMA = {"42P01", "42703", "3F000"}  # no such table, column, schema
LOCKED = "55P03"
POSTGRES = "els env  # then psql DATABASE_URL -c '{}'"
REDIS = "els env  # then redis-cli -u REDIS_URL {}"
COMPARE = "els env  # ELS_REDIS_URL and ELS_DATABASE_URL of the worker must be these"
LOOK_AT = {  # by SQLSTATE, or by a word of Redis' answer
    "25006": POSTGRES.format("SELECT pg_is_in_recovery()"),
    "42501": "els migrate --roles",
    "standby": POSTGRES.format("SELECT application_name, state FROM pg_stat_replication"),
    "53100": "els env  # then, on the host of DATABASE_URL: df -h",
    "53300": POSTGRES.format("SHOW max_connections"),
    "OOM": REDIS.format("INFO memory"),
    "OutOfMemoryError": REDIS.format("INFO memory"),
    "ReadOnlyError": REDIS.format("ROLE"),
    "READONLY": REDIS.format("ROLE"),
    "MISCONF": REDIS.format("INFO persistence"),
    "alarm": "rabbitmq-diagnostics alarms  # on each host of ELS_BROKER_URL",
    "NOREPLICAS": REDIS.format("INFO replication"),
}
SILENT_SHOWN_S = 120  # after which the messages of a silent worker have been redelivered
Row = Mapping[str, Any]  # Any: a database row


def service_causes(
    redis_side: Row,
    heartbeat: Heartbeat,
    holder: Holder | None = None,
    locks: Sequence[Lock] = (),
) -> Iterator[Cause]:
    """Name what keeps every batch waiting; `redis_side` has an "error" if Redis is away.

    `holder` has the lock of the sweep, which has not run for a while. `locks` hold up writes.
    """
    yield from lock_causes(locks)
    if "error" in redis_side:
        step = look_at("redis", str(redis_side["error"]))
        yield CAUSES["redis_unreachable"].fill(error=redis_side["error"], step=step)
        return
    pauses = [pause for pause in heartbeat.pauses if not (locks and _is_locked(pause.outage))]
    yield from _refusals(pauses, heartbeat)
    if heartbeat.waiting is None:
        error = heartbeat.broker_error or "it is down, or not reachable from here"
        yield CAUSES["broker_unreachable"].fill(error=error, step=look_at("broker", ""))
    # Where Redis takes no writes, nobody can give a sign of life.
    if not any(pause.outage.server == "redis" for pause in pauses):
        yield from _worker_causes(heartbeat)
        yield from _beat_causes(heartbeat, holder)
    if (heartbeat.waiting or 0) > BACKLOG:
        step = heartbeat.asked.installation.log("worker")
        yield CAUSES["queue_backlog"].fill(waiting=heartbeat.waiting, step=step)


# --- servers and locks ---------------------------------------------------------------------------


def lock_causes(locks: Iterable[Lock]) -> Iterator[Cause]:
    """Name each session that others wait for, since its transaction began."""
    for lock in locks:
        words = {"what": _listed(lock.what), "holder": lock, "waiting": lock.waiting}
        yield CAUSES["lock_held"].fill(lock.since, step=_end_session(lock.pid), **words)


def _end_session(pid: int | None) -> str:
    if pid == PREPARED:
        return POSTGRES.format("SELECT gid, prepared FROM pg_prepared_xacts")
    return POSTGRES.format(f"SELECT pg_terminate_backend({pid})")


def refusal(outage: Outage, since: datetime | None, heartbeat: Heartbeat) -> Cause:
    """Name a server that does not take writes, by its own error."""
    if outage.server == "postgres" and outage.sqlstate in NO_SCHEMA:
        step = heartbeat.asked.installation.migrate
        return CAUSES["schema_missing"].fill(since, error=outage.error, step=step)
    step = look_at(outage.server, outage.error, outage.sqlstate)
    server = SERVERS[outage.server]
    return CAUSES["server_refuses"].fill(since, server=server, error=outage.error, step=step)


def look_at(server: str, error: str, sqlstate: str | None = None) -> str:
    """Choose the command that shows more of an error of a server."""
    for word in (sqlstate, *error.replace(":", " ").split()):
        if word in LOOK_AT:
            return LOOK_AT[word]
    return "els env" if server == "postgres" else f"els env  # ELS_{SETTINGS[server]}_URL"


def _refusals(pauses: Sequence[Pause], heartbeat: Heartbeat) -> Iterator[Cause]:
    """Name each server that processes wait for, since the first of them does."""
    first = {pause.outage.server: pause for pause in reversed(pauses)}
    for pause in first.values():
        yield refusal(pause.outage, pause.since, heartbeat)


def _is_locked(outage: Outage) -> bool:
    return outage.sqlstate == LOCKED


# --- workers -------------------------------------------------------------------------------------


def _worker_causes(heartbeat: Heartbeat) -> Iterator[Cause]:
    """Name why no worker executes messages, or which one does not."""
    asked, live = heartbeat.asked, _live(heartbeat)
    ours = {name: sign for name, sign in live.items() if not _wrong(sign, asked.queue, "queues")}
    serving = serving_workers(heartbeat)
    yield from _waiting_to_start(heartbeat)
    others = [*_others(heartbeat)]
    yield from others
    if not serving and not any(cause.code == "worker_other_redis" for cause in others):
        yield from _none_serves(heartbeat, live, ours)
    for name, sign in serving.items():
        if sign and sign.database and asked.database and sign.database != asked.database:
            step = asked.installation.restart("worker", sign.pid)
            yield CAUSES["worker_other_database"].fill(
                worker=name, theirs=sign.database_name, database=asked.database_name, step=step
            )
    yield from _inner_queues(heartbeat, serving)
    yield from _limited(heartbeat, serving)
    yield from _stalled(heartbeat, serving)
    if serving:
        yield from _silent(heartbeat)


def serving_workers(heartbeat: Heartbeat) -> dict[str, Sign | None]:
    """Return the workers that give signs of life, and take messages of this queue and broker."""
    return {
        name: sign
        for name, sign in _live(heartbeat).items()
        if not _wrong(sign, heartbeat.asked.queue, "queues")
        and not _of_other_broker(sign, heartbeat)
    }


def _live(heartbeat: Heartbeat) -> dict[str, Sign | None]:
    """Return the workers that give signs of life; None: of an older release, which says no more."""
    by_sign = {name: sign for name, sign in heartbeat.signs.items() if _is_fresh(sign)}
    known = {name: heartbeat.signs.get(name) for name in heartbeat.workers}
    return {name: sign for name, sign in (known | by_sign).items() if not (sign and sign.waits)}


def _is_fresh(sign: Sign) -> bool:
    return not sign.stopped and abs(datetime.now(UTC) - sign.at) <= FRESH


def _wrong(sign: Sign | None, wanted: str | None, name: str) -> bool:
    """Tell whether a sign says that its worker does not have what is wanted."""
    said = getattr(sign, name, None)
    return bool(wanted and said and wanted not in said)


def _of_other_broker(sign: Sign | None, heartbeat: Heartbeat) -> bool:
    asked = heartbeat.asked.broker
    return bool(sign and sign.broker and asked and sign.broker != asked)


def _waiting_to_start(heartbeat: Heartbeat) -> Iterator[Cause]:
    for name, sign in heartbeat.signs.items():
        if sign.waits and _is_fresh(sign):
            said = {key: sign.waits.get(key, "") for key in ("wrong", "why", "step")}
            if said["step"] == "els migrate":
                said["step"] = heartbeat.asked.installation.migrate
            words = {**said, "worker": name, "waiting": _messages(heartbeat)}
            yield CAUSES["worker_waits"].fill(sign.waits_since, **words)


def _others(heartbeat: Heartbeat) -> Iterator[Cause]:
    """Name the Celery workers that take our messages, and give no sign of life here."""
    for name, queues in heartbeat.others.items():
        if name in heartbeat.signs or name in heartbeat.workers:
            continue
        words = {"worker": name, "queue": _listed(queues)}
        if set(queues) & set(heartbeat.asked.inner_queues):  # nobody else knows these
            yield CAUSES["worker_other_redis"].fill(None, step=COMPARE, **words)
            continue
        control = f"control -d {shlex.quote(name)} cancel_consumer {queues[0]}"
        step = f"els env  # then celery -b BROKER_URL {control}"
        yield CAUSES["foreign_consumer"].fill(None, step=step, **words)


def _none_serves(
    heartbeat: Heartbeat, live: Mapping[str, Sign | None], ours: Mapping[str, Sign | None]
) -> Iterator[Cause]:
    """Say why no worker takes messages of this queue: elsewhere, not started, or gone."""
    asked, waiting = heartbeat.asked, _messages(heartbeat)
    step = asked.installation.start("worker")
    if ours:
        name, sign = next(iter(ours.items()))
        theirs = sign.broker if sign else None
        words = {"broker": asked.broker, "worker": name, "theirs": theirs, "waiting": waiting}
        yield CAUSES["worker_other_broker"].fill(None, step=step, **words)
    elif live:
        name, sign = next(iter(live.items()))
        queues = _listed(sign.queues if sign else ())
        words = {"queue": asked.queue, "worker": name, "queues": queues, "waiting": waiting}
        step = asked.installation.serve(asked.queue or "els")
        if sign and asked.queue in sign.cancelled:
            words["waiting"] = f", as remote control has cancelled this one{waiting}"
            step = asked.installation.restart("worker", sign.pid)
        yield CAUSES["worker_other_queue"].fill(None, step=step, **words)
    elif not any(sign.waits and _is_fresh(sign) for sign in heartbeat.signs.values()):
        yield _no_worker(heartbeat)


def _inner_queues(heartbeat: Heartbeat, serving: Mapping[str, Sign | None]) -> Iterator[Cause]:
    """Name the queues of the service's own steps that none of its workers serves."""
    for queue in heartbeat.asked.inner_queues:
        if serving and all(_wrong(sign, queue, "queues") for sign in serving.values()):
            name, sign = next(iter(serving.items()))
            queues = _listed(sign.queues if sign else ())
            yield CAUSES["worker_other_queue"].fill(
                None,
                step=heartbeat.asked.installation.start("worker"),
                queue=queue,
                worker=name,
                queues=queues,
                waiting="; what seals batches, sweeps and relays events goes through it",
            )


def _no_worker(heartbeat: Heartbeat) -> Cause:
    """Tell when the last worker was there, and what it was at."""
    signs = {name: sign for name, sign in heartbeat.signs.items() if not sign.waits}
    last = max(signs, key=lambda name: signs[name].at, default=None)
    sign = signs[last] if last else None
    install, title = heartbeat.asked.installation, "No worker is running"
    step = install.start("worker")
    if sign is None:
        said = "no worker has given a sign of life for 15 s"
    elif sign.stopped:
        said = f"the last one, {last}, was stopped at {utc(sign.at)}"
    else:
        title = "No worker gives a sign of life"
        said = f"the last one, {last}, has given none since {utc(sign.at)}{_was_at(sign)}"
        step = install.restart("worker", sign.pid) if sign.held else step
    if heartbeat.consumers:
        title, step = "No worker gives a sign of life", COMPARE
        said += (
            f"; {number(heartbeat.consumers, 'consumer waits', 'consumers wait')} for messages of"
            " the broker: another program, or a worker with another ELS_REDIS_URL"
        )
    since = sign.at if sign else None
    words = {"title": title, "last": said, "waiting": _messages(heartbeat)}
    return CAUSES["no_worker"].fill(since, step=step, **words)


def _limited(heartbeat: Heartbeat, serving: Mapping[str, Sign | None]) -> Iterator[Cause]:
    """Name workers whose tasks somebody has slowed down."""
    for name, sign in serving.items():
        if sign and sign.limited:
            limits = ", ".join(f"{task}: {limit}" for task, limit in sign.limited.items())
            step = heartbeat.asked.installation.restart("worker", sign.pid)
            yield CAUSES["worker_limited"].fill(None, step=step, worker=name, limits=limits)


def _stalled(heartbeat: Heartbeat, serving: Mapping[str, Sign | None]) -> Iterator[Cause]:
    """Name workers with a process that hangs, unless it waits for a server and says so."""
    paused = {pause.process.rpartition(":")[0] for pause in heartbeat.pauses}
    for name, sign in serving.items():
        since = sign.stalled_since if sign else None
        if sign is None or since is None or sign.host in paused or sign.limited:
            continue
        doing = "no process takes the next message"
        if sign.began_at == since:
            process = f"process {sign.task_pid}" if sign.task_pid else "it"
            doing = f"{process} has been at {sign.task} since {utc(since)}"
        step = heartbeat.asked.installation.restart("worker", sign.task_pid or sign.pid)
        words = {"worker": name, "doing": doing, "held": sign.held}
        yield CAUSES["worker_stalled"].fill(since, step=step, **words)


def _silent(heartbeat: Heartbeat) -> Iterator[Cause]:
    """Name workers that fell silent a while ago with messages in their hands."""
    for name, sign in heartbeat.signs.items():
        age_s = (datetime.now(UTC) - sign.at).total_seconds()
        silent = FRESH.total_seconds() < age_s < SILENT_SHOWN_S
        if silent and sign.held and not sign.stopped and not sign.waits:
            step = heartbeat.asked.installation.restart("worker", sign.pid)
            words = {"worker": name, "held": sign.held, "doing": _was_at(sign)}
            yield CAUSES["worker_silent"].fill(sign.at, step=step, **words)


def _was_at(sign: Sign) -> str:
    if sign.task and sign.began_at:
        return f"; it was at {sign.task} since {utc(sign.began_at)}"
    return f"; it held {sign.held} messages" if sign.held else ""


def _messages(heartbeat: Heartbeat) -> str:
    """Say how many messages wait, from the first one on."""
    if not heartbeat.waiting:
        return ""
    queue = f" {heartbeat.asked.queue}" if heartbeat.asked.queue else ""
    verb = "message waits" if heartbeat.waiting == 1 else "messages wait"
    oldest = f", the oldest sent at {utc(heartbeat.oldest_sent)}" if heartbeat.oldest_sent else ""
    return f"; {heartbeat.waiting} {verb} in the queue{queue}{oldest}"


# --- beat ----------------------------------------------------------------------------------------


def _beat_causes(heartbeat: Heartbeat, holder: Holder | None) -> Iterator[Cause]:
    """Name why the sweep does not run."""
    if not heartbeat.beat_silent:
        return
    if holder is not None and not holder.sweeping:
        step = _end_session(holder.pid)
        yield CAUSES["sweep_lock_held"].fill(holder.since, step=step, holder=holder)
    none = heartbeat.beats.leader is None and not heartbeat.beats.standing_by
    title = "No beat is running" if none else "The sweep has not run for a while"
    reason = "no beat has given a sign of life for 15 s" if none else "no worker executes its ticks"
    last = f"; the last sweep ran at {utc(heartbeat.swept_at)}" if heartbeat.swept_at else ""
    part = "beat" if none else "worker"
    install = heartbeat.asked.installation
    words = {"title": title, "beats": heartbeat.beats, "reason": reason + last}
    step = install.start(part) if none else install.log(part)
    yield CAUSES["beat_silent"].fill(heartbeat.swept_at, step=step, **words)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
