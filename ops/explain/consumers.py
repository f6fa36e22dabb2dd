"""Who else takes messages of our queues: Celery workers that answer, and consumers by number."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import redis

from ops.explain.clues import Clue
from ops.explain.service_causes import serving_workers
from ops.heartbeat import Heartbeat
from ops.queues import app_on, brief_connection
from ops.redis_queues import lists_of
from ops.wording import number

REPLIES_S = 0.7  # for all workers of the broker
ASKING_S = 3  # for an explanation
SHOWN = 5  # of the names of clients
# Commands by which a program takes messages from a list; our workers use a script.
POPS = {"brpop", "blpop", "rpop", "lpop", "brpoplpush", "rpoplpush", "blmove", "lmove", "blmpop"}
TRACKING = "t"  # flag of a client which Redis tells that a list has changed


def celery_workers(broker_url: str, queues: Sequence[str]) -> dict[str, list[str]]:
    """List the workers that take from one of these queues, as far as they listen to remote control.

    Ours do so only with ELS_REMOTE_CONTROL. Raises one of UNANSWERED.
    """
    broker = brief_connection(broker_url)
    try:
        broker.connect()  # which tries no more than twice
        inspect = app_on(broker_url).control.inspect(timeout=REPLIES_S, connection=broker)
        replies = cast("Mapping[str, object] | None", inspect.active_queues()) or {}
    finally:
        broker.collect()  # a blocked connection does not answer when it is closed
    found = {name: _among(reply, queues) for name, reply in replies.items()}
    return {name: taken for name, taken in found.items() if taken}


def waiting_clients(client: redis.Redis) -> int | None:
    """Count the clients of a Redis broker that have waited for messages as our workers do.

    Whoever explains waits for answers in that way too. None: our role may not ask. Raises
    redis.RedisError.
    """
    here = str(client.connection_pool.connection_kwargs.get("db") or 0)
    try:
        clients = client.client_list()
    except redis.ResponseError:
        return None
    return sum(
        each["db"] == here and TRACKING in each["flags"] and int(each["age"]) >= ASKING_S
        for each in clients
    )


def popping_clues(client: redis.Redis) -> Iterator[Clue]:
    """Tell of clients of a Redis broker that take from lists, as no worker of this service does.

    Redis does not show from which. Raises redis.RedisError.
    """
    here = str(client.connection_pool.connection_kwargs.get("db") or 0)
    try:
        clients = client.client_list()
    except redis.ResponseError:
        return
    named = [each for each in clients if each["db"] == here and each["cmd"] in POPS]
    if named:
        who = ", ".join(sorted({each["name"] or _host(each["addr"]) for each in named})[:SHOWN])
        takes = number(len(named), "other client takes", "other clients take")
        yield Clue(
            f"{takes} from lists of the broker ({who}): one that is no receiver of events may take"
            " messages of this service (redis-cli -u BROKER_URL CLIENT LIST)"
        )


def refused_clues(client: redis.Redis, queue: str) -> Iterator[Clue]:
    """Tell whom the broker has refused to write to the queue, where our role may read its log.

    Raises redis.RedisError.
    """
    try:
        log = cast("Iterable[Mapping[str, object]]", client.acl_log())
    except redis.ResponseError:
        return
    keys = lists_of(queue)
    refused = [each for each in log if each["reason"] != "key" or each["object"] in keys]
    named = [f"{each['username']} ({each['reason']} {each['object']})" for each in refused]
    if named:
        yield Clue(
            f"the broker has refused {', '.join(dict.fromkeys(named[:SHOWN]))} (ACL LOG): a sender"
            " without the rights that it needs has lost what it did not keep",
            "els access redis  # prints the rights that each program needs",
        )


def _host(address: str) -> str:
    return address.rpartition(":")[0] or address


def _among(reply: object, queues: Sequence[str]) -> list[str]:
    queues_of = reply if isinstance(reply, list) else []
    named = {each.get("name") for each in queues_of if isinstance(each, dict)}
    return [queue for queue in queues if queue in named]


def consumer_clues(heartbeat: Heartbeat) -> Iterator[Clue]:
    """Tell of more consumers of the queue than workers that are known."""
    if not (heartbeat.asked.broker or "").startswith("amqp"):
        return  # Redis does not know what its clients wait for
    workers, consumers = serving_workers(heartbeat), heartbeat.consumers or 0
    if workers and consumers > len({*workers, *heartbeat.others}):
        takes = number(consumers, "consumer takes", "consumers take")
        gives = number(len(workers), "worker of this service gives", "workers of this service give")
        yield Clue(
            f"{takes} from the queue {heartbeat.asked.queue}, and {gives} a sign of life: another"
            " program may take its messages",
            "rabbitmqctl list_consumers  # on a host of ELS_BROKER_URL",
        )
