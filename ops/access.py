"""What each program may do on Redis and on RabbitMQ: the rules of its user there.

A program gets the rights that it needs, and no others. Anybody may write to `els`; the queues of
the chord and of beat are the service's own.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from kombu.transport.redis import Channel

from core.servers.urls import kind_and_path
from core.settings import Settings
from ops.routing import types_by_queue
from tasks.worker.amqp_dropped import dead_name

PROGRAMS = {
    "sender": "an upstream service: puts messages into the queue of the tasks",
    "worker": "els worker, and the commands that change something",
    "beat": "els beat",
    "ops": "els ops, the pages and /metrics, and the commands that read",
    "flower": "els flower",
    "receiver": "a downstream service: takes events",
}
NOTHING = "^$"
DEFAULT = "amq[.]default"
DELAYS = "celery_delayed_.*"  # the exchanges and queues of countdowns; they lead to `els` alone
# Kombu has a list for each priority: the name, two control characters, and 3, 6 or 9.
PRIORITIES = "[^!-~][^!-~][369]"
PUBLISH = ("+ping", "+multi", "+exec", "+lpush", "+llen")
BIND = "+sadd +smembers"  # on bindings alone: a set in place of a queue stops the workers
WORK = (
    *("+@connection", "+@read", "+@write", "+@pubsub", "+@transaction", "-@dangerous", "-scan"),
    *("-randomkey", "-dbsize", "-move", "-function", "+eval", "+evalsha", "+script|load"),
    *("+script|exists", "+info", "+time"),
)
READ = (
    *("+@connection", "+@read", "+multi", "+exec", "-@dangerous", "-scan", "-randomkey", "-dbsize"),
    *("+info", "+time", "+evalsha", "+script|load"),  # a script may do no more than its user
)
TAKE = (
    *("+@connection", "-@dangerous", "+multi", "+exec", "+watch", "+unwatch", "+brpop", "+rpop"),
    *("+lpush", "+rpush", "+llen", "+sadd", "+srem", "+smembers", "+hset", "+hget", "+hdel"),
    *("+zadd", "+zrem", "+zscore", "+time", "+zrange", "+zrevrangebyscore", "+set", "+get", "+del"),
    *("+expire", "+eval", "+evalsha", "+hsetnx", "+lindex", "+exists", "+zremrangebyrank"),
    *("+script|load", "+info", "+hlen", "+hkeys", "+zcard"),
)
# A page that acts sends letters and events again, and repairs the slots of batches.
REPAIR = "(+@read +@write -@dangerous +eval +evalsha ~batch:{*)"
CURSORS = "(+set ~els:sweep:*)"  # of the sweep, which such a page runs
# The page asks whether Redis takes writes, by slots of a batch that cannot be.
PROBE = "(+set +eval +exists +sadd +spop +hset +zadd +zrem +expire +del ~batch:{els.*)"
MONITOR = "(+llen +del ~celeryev.*)"  # the queue of a monitor's own, empty on Redis


class Permissions(NamedTuple):
    """A user of RabbitMQ: patterns of names that it may declare, write to, and read from."""

    configure: str
    write: str
    read: str


def user(settings: Settings, program: str) -> str:
    """Name the user of a program."""
    return f"{settings.queue}-{program}"


def event_queues(settings: Settings) -> list[str]:
    """List the queues of the events, by the settings and their routes."""
    return sorted({settings.events_queue, *types_by_queue(settings)})


# --- Redis and Valkey ----------------------------------------------------------------------------


def redis_users(settings: Settings) -> dict[str, list[str]]:
    """Return the ACL rules of each program's user. None has a password yet, so none can log in."""
    events = event_queues(settings)
    own = [*_lists(settings.queues), *(f"~{queue}.malformed" for queue in settings.queues)]
    stores = [
        "~batch:{*",
        "~els:*",
        "~{els:metrics}*",
        "~celery-task-meta-*",
        "~celery-taskset-meta-*",
    ]
    monitors, fanout = ["&/*.celeryev*"], f"&/{_database(settings)}."
    control = ["~*.pidbox*", "~*.reply.*", "~celeryev.*", "&/*.pidbox*"]
    control += [f"{fanout}celery.pidbox", f"{fanout}celeryev/worker.*"]
    control = control if settings.remote_control else []
    channels = [*monitors, "&celery-task-meta-*"]
    select = ["+select"] if _database(settings) != "0" else []
    broker = ["~_kombu.*", "~unacked*"]
    rules = {
        "sender": [*PUBLISH, *select, *_lists([settings.queue]), _bind([settings.queue])],
        "worker": [*WORK, *own, *_lists(events), *broker, *stores, *channels, *control],
        "beat": [
            *(*PUBLISH, *select, "+rpush", "+set", "+get", "+del", "+eval", "+evalsha"),
            *("+script|load", "+time", "+info", "+zadd", "+zrem", "+zremrangebyscore"),
            *_lists([settings.control_queue]),
            *("~els:tick:*", "~els:beat*"),
            _bind([settings.control_queue]),
        ],
        "ops": [*READ, *own, *_lists(events), *broker, *stores[:3], PROBE],
        "flower": [
            *("+@connection", "-@dangerous", "+llen", "+multi", "+exec"),
            *("+psubscribe", "+punsubscribe", "+subscribe", "+unsubscribe"),
            *_lists([*settings.queues, *events]),
            *monitors,
            f"{fanout}celeryev/*",  # who subscribes to a pattern needs a rule with just that
            _bind(["celeryev"], "+srem +scard"),
            MONITOR,
        ],
        "receiver": [
            *TAKE,
            *_lists(events),
            *_bindings(events),
            *(f"~{queue}.{keys}" for queue in events for keys in ("unacked*", "malformed")),
        ],
    }
    if settings.ops_actions:
        sent = [settings.queue, *events]
        send = f"({' '.join([*PUBLISH, *_lists(sent)])})"
        rules["ops"] = [*READ, *select, *own, *_lists(events), *broker, *stores[:3]]
        rules["ops"] += [send, _bind(sent), REPAIR, CURSORS]
    begin = ("on", "resetkeys", "resetchannels", "clearselectors", "-@all")  # a password stays
    return {user(settings, name): [*begin, *rules[name]] for name in PROGRAMS}


def _database(settings: Settings) -> str:
    """Return the number of the broker's database, which is part of the names of its channels."""
    kind, _, number = kind_and_path(settings.broker_or_redis_url).partition("/")
    return number if kind == "redis" else "0"


def _lists(queues: Iterable[str]) -> list[str]:
    return [pattern for each in queues for pattern in (f"~{each}", f"~{each}{PRIORITIES}")]


def _bind(exchanges: Iterable[str], more: str = "") -> str:
    """Let a user declare what these exchanges lead to, and do nothing else there."""
    return f"({' '.join([BIND, *more.split(), *_bindings(exchanges)])})"


def _bindings(exchanges: Iterable[str]) -> list[str]:
    prefixes = cast(Any, Channel)  # absent from its types
    names = (prefixes.keyprefix_queue, prefixes.keyprefix_binding_permanent)
    return [f"~{name % (exchange,)}" for exchange in exchanges for name in names]


def acl_line(name: str, rules: Iterable[str]) -> str:
    """Write a user as a line of Redis' ACL file, which is also the end of `ACL SETUSER`."""
    return " ".join([name, *rules])


def redis_lines(settings: Settings) -> Iterator[str]:
    """Write the users as lines of an ACL file."""
    for name, rules in redis_users(settings).items():
        yield f"user {acl_line(name, rules)}"


# --- RabbitMQ ------------------------------------------------------------------------------------


def rabbitmq_users(settings: Settings) -> dict[str, Permissions]:
    """Return the permissions of each program's user in the virtual host of the service.

    Only worker, beat and a page that acts may write to the default exchange, since it leads to
    every queue: Celery sends by it to what stands behind a direct exchange. Who may declare a
    queue may also delete it, so a sender declares nothing.
    """
    queues, events = settings.queues, event_queues(settings)
    monitors = "celeryev.*"
    chat = [".*celery[.]pidbox"] if settings.remote_control else []
    names = (*queues, dead_name(settings.queue), *events)
    check = re.escape(settings.queue) + "[.]check-.*"  # whether dropped messages are kept
    work = [*map(re.escape, names), check, DELAYS, monitors, *chat]
    control = [re.escape(settings.control_queue)]
    taken = [re.escape(name) for name in events]
    rules = {
        "sender": Permissions(NOTHING, _any([re.escape(settings.queue), DELAYS]), NOTHING),
        "worker": _all(work)._replace(write=_any([*work, DEFAULT])),
        "beat": _all(control)._replace(write=_any([*control, DEFAULT])),
        "ops": Permissions(NOTHING, NOTHING, NOTHING),
        "flower": _all([monitors]),
        "receiver": _all(taken),
    }
    if settings.ops_actions:
        sent = [re.escape(name) for name in (settings.queue, *events)]
        rules["ops"] = Permissions(NOTHING, _any([*sent, DEFAULT]), NOTHING)
    return {user(settings, name): rules[name] for name in PROGRAMS}


def rabbitmq_lines(settings: Settings) -> Iterator[str]:
    """Write the users as commands for the virtual host of the broker's URL, or for `/`.

    `add_user` reads the password from its input.
    """
    kind, _, path = kind_and_path(settings.broker_url or "").partition("/")
    where = path if kind == "amqp" else "/"
    for name, given in rabbitmq_users(settings).items():
        yield f"rabbitmqctl add_user {name}"
        words = ["-p", where, name, *given]
        yield f"rabbitmqctl set_permissions {' '.join(map(shlex.quote, words))}"


def _all(names: Iterable[str]) -> Permissions:
    pattern = _any(names)
    return Permissions(pattern, pattern, pattern)


def _any(names: Iterable[str]) -> str:
    return f"^({'|'.join(names)})$"


def as_json(settings: Settings, broker: str) -> Mapping[str, object]:
    """Return the users of one broker, for programs."""
    if broker == "redis":
        return redis_users(settings)
    return {name: given._asdict() for name, given in rabbitmq_users(settings).items()}
