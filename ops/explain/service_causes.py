"""What keeps every batch waiting: servers, locks, workers, beat, queues."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from socket import gethostname
from typing import Any

import psutil

from core.servers.finding import Finding, Severity
from core.servers.rights import NO_RIGHT
from core.signs.heartbeat import FRESH
from core.signs.pauses import Outage, Pause
from ops.by_hand import IN_FUNCTION
from ops.explain.causes import CAUSES, Cause
from ops.explain.locks import Lock
from ops.heartbeat import ASKER, NO_SCHEMA, Heartbeat
from ops.installation import POSTGRES, PSQL, command
from ops.queries.sweep import Holder
from ops.signs import Sign
from ops.wording import number, utc

STOPPED_BY = "is stopped, by a signal or a debugger"
STOPPED = {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
BACKLOG = 1_000  # waiting messages that take the worker more than a second or two
SERVERS = {"postgres": "Postgres", "redis": "Redis", "broker": "The broker"}
SETTINGS = {"postgres": "DATABASE", "redis": "REDIS", "broker": "BROKER"}
TOO_SLOW = "57014"  # our own limit for a statement
LOCKED, MIGRATE = "55P03", "els migrate"
TOOK_WRITES = (
    "it has just taken a write of whoever asks, so workers go on within 10 s, unless their role or"
    " address is another"
)
REDIS = "els env  # then redis-cli -u REDIS_URL {}"
COMPARE = "els env  # ELS_REDIS_URL and ELS_DATABASE_URL of the worker must be these"
ALONE = "-c 'ALTER SYSTEM RESET synchronous_standby_names' -c 'SELECT pg_reload_conf()'"
PROMOTE = (
    "els env  # name the primary in ELS_REDIS_URL (redis-cli -u REDIS_URL ROLE says which it is);"
    " if it should be this one: redis-cli -u REDIS_URL REPLICAOF NO ONE"
)
RESTORE = (
    "els env  # on the host of DATABASE_URL: dmesg and its log say what became of the disk; restore"
    " that file, or a backup (an index: REINDEX)"
)
LIMITS = "els env  # then compare ELS_DATABASE_URL of that process: options=-cstatement_timeout=…"
ENDS_SESSIONS = POSTGRES.format(
    "SELECT pid, usename, application_name, query FROM pg_stat_activity"
    " WHERE query ILIKE $$%terminate_backend%$$"
)
LOOK_AT = {  # by SQLSTATE, or by a word of Redis' answer
    "25006": POSTGRES.format("SELECT pg_is_in_recovery()"),
    "42501": "els migrate --roles",
    "standby": f"{PSQL} {ALONE}",
    "58P01": RESTORE,
    "XX001": RESTORE,
    "XX002": RESTORE,
    "53100": "els env  # then, on the host of DATABASE_URL: df -h",
    "57014": POSTGRES.format(
        "SELECT pid, application_name, wait_event, now() - query_start, query FROM pg_stat_activity"
        " WHERE state <> $$idle$$ ORDER BY query_start"
    ),
    "57P01": ENDS_SESSIONS,
    "53300": POSTGRES.format("SHOW max_connections"),
    "OOM": REDIS.format("INFO memory"),
    "OutOfMemoryError": REDIS.format("INFO memory"),
    "ReadOnlyError": PROMOTE,
    "READONLY": PROMOTE,
    "PAUSE,": REDIS.format("CLIENT UNPAUSE"),
    "MISCONF": REDIS.format("INFO persistence"),
    "BUSY": REDIS.format("SCRIPT KILL; FUNCTION KILL, if that says so; UNKILLABLE: it has written,")
    + " and ends by itself",
    "alarm": "rabbitmq-diagnostics alarms  # on each host of ELS_BROKER_URL",
    "NOREPLICAS": REDIS.format("INFO replication: start the replica that lacks; or, without one,")
    + " CONFIG SET min-replicas-to-write 0",
    "NOPERM": "els access redis  # prints the rights that each user needs",
    "NoPermissionError": "els access redis  # prints the rights that each user needs",
}
# What is wrong where a server cannot be reached, by words of its error, and what a person does.
UNREACHED = {
    "not permitted to log in": "ALTER ROLE … LOGIN, or correct {setting}",
    "CONNECT privilege": "GRANT CONNECT ON DATABASE … TO the role of {setting}",
    "password": "put the new password into {setting} of every part, or prolong it (VALID UNTIL)",
    "NOAUTH": "put its password into {setting} of every part, and start them again",
    "pg_hba.conf": "let pg_hba.conf on its host admit this user, host and database, and reload it",
    "connection slots": "psql DATABASE_URL, as a superuser: who has them? {sessions}",
    "connections for role": "psql DATABASE_URL, as a superuser: ALTER ROLE … CONNECTION LIMIT -1;"
    " or end those that it has: {sessions}",
    "connections for database": "psql DATABASE_URL, as a superuser: ALTER DATABASE … CONNECTION"
    " LIMIT -1; or end those that it has: {sessions}",
    "too many": "psql DATABASE_URL, as a superuser: who has them? {sessions}",
    "max number of clients": "redis-cli: CLIENT LIST, who has them? or CONFIG SET maxclients 10000",
    "resolve host": "correct the name of the host in {setting}, or in DNS",
    "Name or service": "correct the name of the host in {setting}, or in DNS",
    "accepting connections": "psql to another database of it, as a superuser: ALTER DATABASE …"
    " ALLOW_CONNECTIONS true",
    "does not exist": "correct {setting}: its server has no such name",
    "limit (": "rabbitmqctl clear_vhost_limits -p VHOST; rabbitmqctl clear_user_limits USER all",
    "access to vhost": "rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*', or with those"
    " rights that `els access rabbitmq` prints",
    "Login was refused": "put the right user and password into {setting} of every part",
    "ACCESS_REFUSED": "els access rabbitmq prints the rights that each program needs",
    "vhost": "correct the virtual host in {setting}, or rabbitmqctl add_vhost VHOST",
    "inequivalent arg": "somebody has declared that queue in another way: stop its senders, empty"
    " it, rabbitmqctl delete_queue QUEUE, and start the workers again, which declare it",
    "refused": "start it on that host, or correct {setting}",
    "Timeout reading": "on its host: ps -C redis-server,valkey-server -o pid,stat,etime. T: kill"
    " -CONT PID. R or D: a long command, or its disk; afterwards SLOWLOG GET 9 names it. S: CLIENT"
    " PAUSE, which ends by itself",
    "timeout expired": "on its host: ps -C postgres -o pid,stat,args. T: kill -CONT PID. No such"
    " process: start it, or correct {setting}",
    "PL/pgSQL function": "psql DATABASE_URL, as a superuser: \\dy lists the triggers that a login"
    " meets; ALTER EVENT TRIGGER … DISABLE",
    "statement timeout": "take statement_timeout out of the options of {setting}, or PGOPTIONS",
    "speaks no TLS": "write redis:// in {setting}, not rediss://, or give its TLS port",
    "starting up": "wait until it has recovered; its log says how far it is",
    "not yet accepting": "wait until it has recovered; its log says how far it is",
    "loading the dataset": "wait until it has read its file; INFO persistence says how far it is",
}
OF_A_ROLE = ("password", "log in", "CONNECT privilege", "pg_hba.conf", "connections for role")
SESSIONS = (
    "SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2 ORDER BY 3 DESC"
)
REPLY = re.compile(r"\([345]\d\d\) [A-Z_]+ ")  # of RabbitMQ, which is there
LENGTH_OF = re.compile(r"\((?:LLEN|LINDEX) ([^\s)]+)")  # in an error of Redis' client
OTHER_KEY = re.compile(r"WRONGTYPE the key (\S+) is")
HIDDEN = re.compile(r'row-level security policy for table "(\w+)"')
CRASHPOINT = "ELS_CRASHPOINT"
LOG_FULL = "its log goes to a pipe that nobody empties, so a write to it never ends"
TO_A_FILE = "  # its output to a file, or to a program that reads it"
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
        cause = CAUSES["redis_unreachable"].fill(error=redis_side["error"], step=step)
        if "permissions" in str(redis_side["error"]):  # it says nothing of the workers' user
            title = "Redis does not let whoever asks read its keys"
            cause = replace(cause, title=title, by_itself="nothing", command="els access redis")
        yield cause
        return
    pauses = [each for each in heartbeat.pauses if not (locks and _is_locked(each.outage))]
    if is_no_list(heartbeat.broker_error or ""):
        pauses = [each for each in pauses if not is_no_list(each.outage.error)]
    yield from _refusals(pauses, heartbeat)
    if is_no_list(heartbeat.broker_error or ""):
        yield _no_list(heartbeat.broker_error or "")
    elif heartbeat.waiting is None:
        yield from _broker_away(heartbeat, pauses)
    yield from broker_lacks(heartbeat, Severity.FAULT)
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
        words = {"what": _listed(lock.what), "holder": lock}
        words["waiting"] = number(lock.waiting, "other session waits", "other sessions wait")
        step = _end_session(lock.pid)
        if lock.gid is not None:
            step = f"{PSQL} -c {shlex.quote(_rollback(lock.gid))}"
        yield CAUSES["lock_held"].fill(lock.since, step=step, **words)


def _rollback(gid: str) -> str:
    quoted = gid.replace("'", "''")
    return f"ROLLBACK PREPARED '{quoted}'"


def _end_session(pid: int | None) -> str:
    return POSTGRES.format(f"SELECT pg_terminate_backend({pid})")


def refusal(outage: Outage, since: datetime | None, heartbeat: Heartbeat) -> Cause:
    """Name a server that does not take writes, by its own error."""
    obstacle = heartbeat.asked.obstacle if outage.server == "postgres" else None
    if outage.server == "postgres" and _lacks_schema(outage):
        return schema_missing(obstacle, outage.error, since, heartbeat)
    error, step = outage.error, look_at(outage.server, outage.error, outage.sqlstate)
    if obstacle:
        error, step = f"{obstacle.wrong} ({error})", command(obstacle.step)
    server = SERVERS[outage.server]
    cause = CAUSES["server_refuses"].fill(since, server=server, error=error, step=step)
    if outage.sqlstate != TOO_SLOW or obstacle:  # only whoever asks waits so briefly
        return cause
    return replace(
        cause,
        title="Postgres takes over a second for a write",
        reason=f"its disk is slow, others keep it busy, or a trigger takes its time ({error})",
        by_itself="workers go on slowly, and try again what takes longer than a minute",
    )


def _lacks_schema(outage: Outage) -> bool:
    """Tell whether a statement of ours misses something; a function of others may, too."""
    return outage.sqlstate in NO_SCHEMA and not IN_FUNCTION.search(outage.error)


def schema_missing(
    found: Finding | None, error: str, since: datetime | None, heartbeat: Heartbeat
) -> Cause:
    """Say what the schema lacks: a migration, or what somebody has renamed, moved or dropped."""
    wrong, step = f"{found.wrong} ({error})" if found else error, found.step if found else MIGRATE
    step = heartbeat.asked.installation.migrate if step == MIGRATE else command(step)
    return CAUSES["schema_missing"].fill(since, error=wrong, step=step)


def look_at(server: str, error: str, sqlstate: str | None = None) -> str:
    """Choose the command that shows more of an error of a server, or ends it."""
    if key := OTHER_KEY.search(error):
        return f"els env  # then redis-cli -u BROKER_URL RENAME {key[1]} {key[1]}.wrong"
    if table := HIDDEN.search(error):
        return POSTGRES.format(f"ALTER TABLE {table[1]} DISABLE ROW LEVEL SECURITY")
    for word in (sqlstate, *error.replace(":", " ").split()):
        if word in LOOK_AT:
            return LOOK_AT[word]
    setting = f"ELS_{SETTINGS[server]}_URL"
    for words, step in UNREACHED.items():
        if words in error and not sqlstate:
            return f"els env  # then {step.format(setting=setting, sessions=SESSIONS)}"
    return "els env" if server == "postgres" else f"els env  # {setting}"


def _refusals(pauses: Sequence[Pause], heartbeat: Heartbeat) -> Iterator[Cause]:
    """Name each server that processes wait for, since the first of them does.

    What whoever asks has met just now is newer than what a process noted.
    """
    first = {pause.outage.server: pause for pause in reversed(pauses)}
    own = {pause.outage.server: pause.outage for pause in pauses if pause.process == ASKER}
    for server, pause in first.items():
        cause = refusal(own.get(server, pause.outage), pause.since, heartbeat)
        if pause.outage.sqlstate == TOO_SLOW and server in heartbeat.asked.took_writes:
            title = f"Postgres ends what {pause.process} begins"
            why = f"a limit of time in its URL, its role or its PGOPTIONS is short: {cause.reason}"
            yield replace(cause, title=title, reason=why, by_itself="nothing", command=LIMITS)
            continue
        of_a_role = _is_of_a_role(pause.outage)  # whoever asks may have another
        if server in heartbeat.asked.took_writes and not of_a_role:
            step = heartbeat.asked.installation.log("worker")
            cause = replace(cause, reason=f"{cause.reason}; {TOOK_WRITES}", command=step)
        yield cause


def _is_of_a_role(outage: Outage) -> bool:
    """Tell whether Postgres refuses a role, a user or an address, and not everybody."""
    said = outage.error
    return outage.sqlstate == NO_RIGHT or any(words in said for words in OF_A_ROLE)


def _is_locked(outage: Outage) -> bool:
    return outage.sqlstate == LOCKED


def _broker_away(heartbeat: Heartbeat, pauses: Sequence[Pause]) -> Iterator[Cause]:
    """Name a broker that does not answer, or that refuses whoever asks, unless workers say so."""
    error = heartbeat.broker_error or "it is down, or not reachable from here"
    cause = CAUSES["broker_unreachable"].fill(error=error, step=look_at("broker", error))
    if not REPLY.search(error):
        yield cause
    elif not any(each.outage.server == "broker" and error in each.outage.error for each in pauses):
        yield replace(cause, title="The broker refuses the connection")


def broker_lacks(heartbeat: Heartbeat, severity: Severity) -> Iterator[Cause]:
    """Repeat what the workers have found to be wrong with RabbitMQ, as `/readyz` does."""
    for each in heartbeat.broker_lacks(severity):
        step = f"els env  # then, on a host of ELS_BROKER_URL: {each['step']}"
        wrong, why = each["wrong"], each["why"]
        yield CAUSES["broker_lacks"].fill(None, step=step, wrong=wrong, why=why)


def is_no_list(error: str) -> bool:
    """Tell whether a key that should be the list of a queue is something else."""
    return "WRONGTYPE" in error


def _no_list(error: str) -> Cause:
    named = LENGTH_OF.search(error)
    key = named[1] if named else "KEY"
    cause = CAUSES["server_refuses"].fill(None, server=SERVERS["broker"], error=error)
    title = f"The broker cannot use the queue {key}: its key is no list"
    why = f"another program has written that key, and senders and workers get this error: {error}"
    step = f"els env  # then redis-cli -u BROKER_URL RENAME {key} {key}.wrong"
    return replace(cause, title=title, reason=why, command=step)


# --- workers -------------------------------------------------------------------------------------


def _worker_causes(heartbeat: Heartbeat) -> Iterator[Cause]:
    """Name why no worker executes messages, or which one does not."""
    asked, live = heartbeat.asked, _live(heartbeat)
    ours = {name: sign for name, sign in live.items() if not _wrong(sign, asked.queue, "queues")}
    serving = serving_workers(heartbeat)
    yield from _waiting_to_start(heartbeat)
    yield from _crashing(heartbeat)
    yield from restarting(heartbeat)
    others = [*_others(heartbeat)]
    yield from others
    if not serving and not any(cause.code == "worker_other_redis" for cause in others):
        yield from _none_serves(heartbeat, live, ours)
    for name, sign in serving.items():
        if sign and sign.database and asked.database and sign.database != asked.database:
            restart = asked.installation.restart("worker", sign.pid)
            step = f"els env  # if ELS_DATABASE_URL is right here, correct the worker's: {restart}"
            theirs = sign.database_name
            if theirs == asked.database_name:
                theirs = f"{theirs} too, but in another schema (search_path) or on another server"
            yield CAUSES["worker_other_database"].fill(
                worker=name, theirs=theirs, database=asked.database_name, step=step
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
    by_sign = {name: sign for name, sign in heartbeat.signs.items() if sign.fresh}
    known = {name: heartbeat.signs.get(name) for name in heartbeat.workers}
    return {name: sign for name, sign in (known | by_sign).items() if not (sign and sign.waits)}


def _wrong(sign: Sign | None, wanted: str | None, name: str) -> bool:
    """Tell whether a sign says that its worker does not have what is wanted."""
    said = getattr(sign, name, None)
    return bool(wanted and said and wanted not in said)


def _of_other_broker(sign: Sign | None, heartbeat: Heartbeat) -> bool:
    asked = heartbeat.asked.broker
    return bool(sign and sign.broker and asked and sign.broker != asked)


def _waiting_to_start(heartbeat: Heartbeat) -> Iterator[Cause]:
    for name, sign in heartbeat.signs.items():
        if sign.waits and sign.fresh:
            said = {key: sign.waits.get(key, "") for key in ("wrong", "why", "step")}
            if said["step"].startswith("start it"):  # a server; perhaps its error says more
                known = look_at("postgres", said["wrong"])
                said["step"] = said["step"] if known == "els env" else known
            if said["step"] == "els migrate":
                said["step"] = heartbeat.asked.installation.migrate
            words = {**said, "worker": name, "waiting": _messages(heartbeat)}
            yield CAUSES["worker_waits"].fill(sign.waits_since, **words)


def restarting(heartbeat: Heartbeat) -> Iterator[Cause]:
    """Name workers that end again and again."""
    crashing = _with_crash_points(heartbeat)
    for worker, starts in heartbeat.restarting().items():
        if worker in crashing:
            continue
        step = heartbeat.asked.installation.why_it_ends
        words = {"worker": worker, "times": len(starts), "waiting": _messages(heartbeat)}
        yield CAUSES["worker_restarts"].fill(starts[0], step=step, **words)


def _with_crash_points(heartbeat: Heartbeat) -> dict[str, Sign]:
    return {
        name: sign
        for name, sign in heartbeat.signs.items()
        if CRASHPOINT in sign.settings and (sign.fresh or name in heartbeat.restarting())
    }


def _crashing(heartbeat: Heartbeat) -> Iterator[Cause]:
    """Name workers that a setting for tests ends."""
    for name, sign in _with_crash_points(heartbeat).items():
        setting = f"{CRASHPOINT}={sign.settings[CRASHPOINT]}"
        restart = heartbeat.asked.installation.restart("worker", sign.pid)
        step = f"{restart}  # without {CRASHPOINT}"
        yield CAUSES["worker_crashes"].fill(None, step=step, worker=name, setting=setting)


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
    elif not any(sign.waits and sign.fresh for sign in heartbeat.signs.values()):
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
    signs = {n: sign for n, sign in heartbeat.signs.items() if not (sign.waits or _is_beat(n))}
    last = max(signs, key=lambda name: signs[name].at, default=None)
    sign = signs[last] if last else None
    install, title = heartbeat.asked.installation, "No worker is running"
    step = install.start("worker")
    if sign is None:
        said = "no worker has given a sign of life for 15 s"
    elif sign.failed:
        said = f"the last one, {last}, could not start at {utc(sign.at)}: {sign.failed}"
        step = f"{step}  # once that is corrected"
    elif sign.by_itself:
        said = f"the last one, {last}, ended by itself at {utc(sign.at)}"
        said += f": {sign.error}" if sign.error else ": its log says why"
        step = install.why_it_ends
    elif sign.stopped:
        said = f"the last one, {last}, was stopped at {utc(sign.at)}"
    else:
        title = "No worker gives a sign of life"
        said = f"the last one, {last}, has given none since {utc(sign.at)}{_was_at(sign)}"
        step = install.restart("worker", sign.pid) if sign.held else step
    silent = sign is not None and not (sign.stopped or sign.failed)
    if sign and silent and sign.pid in _stopped(sign):
        said += f"; its process {sign.pid} {STOPPED_BY}"
        step = f"kill -CONT {sign.pid}"
    elif sign and silent and _hangs_on_its_log(sign):
        said += f"; its process {sign.pid} hangs: {LOG_FULL}"
        step = f"{install.restart('worker', sign.pid)}{TO_A_FILE}"
    elif sign and silent and heartbeat.consumers and heartbeat.waiting:
        said += "; it is still connected to the broker, and takes nothing: it is stopped or hangs"
        step = install.restart("worker", sign.pid)
    elif heartbeat.consumers:
        title, step = "No worker gives a sign of life", COMPARE
        said += (
            f"; {number(heartbeat.consumers, 'consumer waits', 'consumers wait')} for messages of"
            " the broker: another program, or a worker with another ELS_REDIS_URL"
        )
    since = sign.at if sign else None
    words = {"title": title, "last": said, "waiting": _messages(heartbeat)}
    return CAUSES["no_worker"].fill(since, step=step, **words)


def _stopped(sign: Sign) -> list[int]:
    """List the processes of a worker on this host that are stopped, as by SIGSTOP."""
    with suppress(psutil.Error):
        if sign.pid and sign.host == gethostname():
            main = psutil.Process(sign.pid)
            return [each.pid for each in (main, *main.children()) if each.status() in STOPPED]
    return []


def _hangs_on_its_log(sign: Sign) -> bool:
    """Tell whether the main process of a worker hangs in a write to a pipe."""
    with suppress(OSError):
        here = sign.pid and sign.host == gethostname()
        return bool(here) and "pipe_w" in Path(f"/proc/{sign.pid}/wchan").read_text()
    return False


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
        if stopped := _stopped(sign):
            pids = " ".join(map(str, stopped))
            doing += f"; process {pids} {STOPPED_BY}"
            step = f"kill -CONT {pids}"
        elif sign.log_full:
            doing += f"; {LOG_FULL}"
            step = f"{heartbeat.asked.installation.restart('worker', sign.pid)}{TO_A_FILE}"
        words = {"worker": name, "doing": doing, "held": number(sign.held, "message")}
        yield CAUSES["worker_stalled"].fill(since, step=step, **words)


def _silent(heartbeat: Heartbeat) -> Iterator[Cause]:
    """Name workers that fell silent a while ago with messages in their hands."""
    for name, sign in heartbeat.signs.items():
        age_s = (datetime.now(UTC) - sign.at).total_seconds()
        silent = FRESH.total_seconds() < age_s < SILENT_SHOWN_S
        if silent and sign.held and not sign.stopped and not sign.waits:
            step = heartbeat.asked.installation.restart("worker", sign.pid)
            held = number(sign.held, "message")
            words = {"worker": name, "held": held, "doing": _was_at(sign)}
            yield CAUSES["worker_silent"].fill(sign.at, step=step, **words)


def _was_at(sign: Sign) -> str:
    if sign.task and sign.began_at:
        return f"; it was at {sign.task} since {utc(sign.began_at)}"
    return f"; it held {number(sign.held, 'message')}" if sign.held else ""


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
    step = install.start(part) if none else install.log(part)
    for name, sign in heartbeat.signs.items():
        if none and sign.failed and _is_beat(name):
            reason = f"the last one, {name}, could not start at {utc(sign.at)}: {sign.failed}"
            step = f"{install.start('beat')}  # once that is corrected"
    if heartbeat.beats.leader and not heartbeat.tick_waits:
        reason = "the beat that leads sends no ticks: its ELS_SWEEP_EVERY is too long"
        step = "els reconcile  # once; then start beat again without its ELS_SWEEP_EVERY"
    if heartbeat.beats.never_ends:
        reason = "the lease of the beat that leads never ends: another program has written its key"
        step = REDIS.format(f"DEL {heartbeat.beats.never_ends}")
    words = {"title": title, "beats": heartbeat.beats, "reason": reason + last}
    yield CAUSES["beat_silent"].fill(heartbeat.swept_at, step=step, **words)


def _is_beat(name: str) -> bool:
    return name.startswith("beat@")


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
