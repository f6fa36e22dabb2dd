"""Messages that lie in another place of the broker than the one that workers take from."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import redis
from celery import Celery

from core.signs.heartbeat import SINCE
from ops.signs import STALLED_AFTER
from tests import factories as make
from tests.explain.cause import cause
from tests.explain.place import WAIT_S
from tests.live.conftest import until

WAITING, UNKNOWN = "waiting_for_contents", "unknown_batch"
NEVER = ["no dead letter", "never arrived", "mistyped"]


def missing(place, **options):
    """Register a batch, and send its second content in another way."""
    batch = place.register()
    place.content(batch, "text-1")
    event = make.content(batch, "text-2")
    options = {"queue": place.queue, **options}
    place.workers.upstream.send_task("els.assign_content", kwargs={"event": event}, **options)
    return batch


def forgotten(place, *keys, database=0):
    """Delete what nobody takes: other cases look there as well."""
    with redis.Redis.from_url(place.valkey_server.url, db=database) as client:
        client.delete(*keys)


@cause(
    WAITING,
    says=["1 message for the batch lies in the list celery", "take from the queue els-"],
    never=NEVER,
    step="RPOPLPUSH celery els-",
)
def its_content_lies_in_the_default_queue(running):
    yield missing(running, queue="celery")
    forgotten(running, "celery")


@cause(UNKNOWN, says=["1 message for the batch lies in the list celery"], never=NEVER)
def its_registration_lies_in_the_default_queue(running):
    batch = make.new_batch()
    event = make.registration(batch, 2)
    running.workers.upstream.send_task(
        "els.register_batch", kwargs={"event": event}, queue="celery"
    )
    yield batch
    forgotten(running, "celery")


@cause(
    WAITING,
    says=["1 message for the batch lies in the list celery"],
    never=[*NEVER, "RPOPLPUSH"],
    step="LRANGE celery 0 9",
)
def its_content_lies_among_messages_of_others(running):
    batch = missing(running, queue="celery")
    for number in range(60):
        running.workers.upstream.send_task("mails.send", [number], queue="celery")
    running.valkey.rpush("celery", b"\x80\x04\xff no text")
    yield batch
    forgotten(running, "celery")


@cause(WAITING, says=["1 message for the batch lies in the list prod:els-"], never=NEVER)
def its_sender_puts_a_prefix_before_its_keys(running):
    yield missing(running, queue=f"prod:{running.queue}")
    forgotten(running, f"prod:{running.queue}")


@cause(WAITING, says=["1 message for the batch lies in the list els-"], never=NEVER)
def its_sender_names_its_priorities_in_another_way(running):
    yield missing(running, queue=f"{running.queue}:5")
    forgotten(running, f"{running.queue}:5")


@cause(
    WAITING,
    says=["1 message for the batch lies in the list els-", "of database 5"],
    never=[*NEVER, "RPOPLPUSH"],
    step="-n 5 LRANGE els-",
)
def its_content_lies_in_another_database(running):
    url = running.valkey_server.url.rpartition("/")[0] + "/5"
    sender = Celery("elsewhere", broker=url)
    batch = running.register()
    event = make.content(batch)
    sender.send_task("els.assign_content", kwargs={"event": event}, queue=running.queue)
    sender.close()
    yield batch
    forgotten(running, running.queue, database=5)


@cause(WAITING, says=["1 message for the batch lies in the list els-"], never=NEVER)
def its_content_lies_in_the_queue_of_the_receivers(running):
    yield missing(running, queue=f"{running.queue}.events")
    forgotten(running, f"{running.queue}.events")


@cause(
    WAITING,
    says=["for further tasks at 20", "(chain), which it never sends"],
    never=NEVER,
)
def its_content_was_the_next_link_of_a_chain(place):
    place.run()
    batch = make.new_batch()
    app = place.workers.upstream
    first = app.signature("els.register_batch", kwargs={"event": make.registration(batch, 1)})
    then = app.signature("els.assign_content", kwargs={"event": make.content(batch)})
    (first.set(queue=place.queue) | then.set(queue=place.queue, immutable=True)).apply_async()
    query = "SELECT batch_id FROM batch_essay_trackers WHERE batch_id = %s"
    until(lambda: place.conn.execute(query, [batch]).fetchone(), WAIT_S, "it is registered")
    until(lambda: any(s.ignored for s in place.signs().signs.values()), WAIT_S, "it says so")
    yield batch


@cause(
    WAITING,
    says=["1 message names the batch in the queue els-", "among the 51 oldest"],
    among=3,
    never=NEVER,
)
def its_content_waits_behind_those_of_others(place):
    batch = place.insert_batch()
    for number in range(50):
        place.send("els.assign_content", make.content("batch-of-others", f"text-{number}"))
    place.send_content(batch)
    yield batch


@cause(WAITING, says=["the broker has lost its keys", "must be sent again"], never=NEVER)
def somebody_has_flushed_the_broker(place):
    place.run()
    batch = place.register()
    first = place.valkey.get(SINCE)
    place.valkey.flushall()
    until(lambda: place.valkey.get(SINCE) not in (None, first), WAIT_S, "a worker gives a sign")
    free = f"batch:{{{batch}}}:available_slots"
    until(lambda: place.valkey.scard(free), WAIT_S, "the sweep has rebuilt the slots")
    yield batch


@cause(WAITING, says=["the broker has dropped", "maxmemory-policy is allkeys-lru"], never=NEVER)
def the_broker_has_no_memory_and_drops_keys(place):
    place.run()
    batch = place.register()
    limit = place.valkey.info("memory")["used_memory"] + 3_000_000
    place.valkey.config_set("maxmemory-policy", "allkeys-lru")
    place.valkey.config_set("maxmemory", limit)
    for number in range(6):
        place.valkey.set(f"other:{number}", "x" * 1_000_000)
    until(lambda: place.valkey.info("stats")["evicted_keys"], WAIT_S, "it drops keys")
    place.valkey.config_set("maxmemory", 0)
    yield batch


@cause(
    WAITING,
    says=["a worker holds 1 message that names the batch until", "`countdown` in seconds"],
    never=[*NEVER, "does not move"],
)
def its_content_waits_for_a_moment_in_hours(place):
    place.run()
    batch = missing(place, eta=datetime.now(UTC) + timedelta(hours=16))
    until(lambda: place.valkey.hlen("unacked"), WAIT_S, "the worker holds it")
    after = datetime.now(UTC) + STALLED_AFTER + timedelta(seconds=3)
    until(lambda: all(sign.at > after for sign in place.signs().signs.values()), WAIT_S, "idle")
    yield batch


@cause(WAITING, says=["2 messages that name the batch, the first until"], never=NEVER)
def its_contents_wait_for_a_countdown_in_milliseconds(place):
    place.run()
    batch = place.register(2)
    for text in ("text-1", "text-2"):
        event = make.content(batch, text)
        place.workers.send("els.assign_content", event, countdown=60_000)
    until(lambda: place.valkey.hlen("unacked") == 2, WAIT_S, "the worker holds them")
    yield batch


@cause(
    WAITING,
    says=["2 messages for the batch lie in the list els-", ":7, and workers take from"],
    never=NEVER,
    step="RPOPLPUSH els-",
)
def its_sender_has_priorities_of_its_own(running):
    sender = Celery("upstream", broker=running.settings["ELS_BROKER_URL"])
    sender.conf.broker_transport_options = {"priority_steps": list(range(10)), "sep": ":"}
    batch = running.register()
    for text in ("text-1", "text-2"):
        event = make.content(batch, text)
        sender.send_task(
            "els.assign_content", kwargs={"event": event}, queue=running.queue, priority=7
        )
    yield batch
    forgotten(running, f"{running.queue}:7")


@cause(WAITING, says=["1 other client takes from lists of the broker (payroll)", "CLIENT LIST"])
def another_program_pops_its_messages(place):
    place.run()
    batch = place.register()
    url = place.valkey_server.url
    with (
        redis.Redis.from_url(url, client_name="payroll", socket_timeout=WAIT_S) as client,
        ThreadPoolExecutor(1) as other,
    ):
        popping = other.submit(client.brpop, place.queue, WAIT_S)

        def ids():
            return [each["id"] for each in place.valkey.client_list() if each["cmd"] == "brpop"]

        until(ids, WAIT_S, "it waits for messages")
        yield batch
        place.valkey.client_unblock(ids()[0])
        popping.result(WAIT_S)


def kept(place, write):
    """Register a batch; let the sender of its content keep that elsewhere in the broker."""
    batch = place.register()
    event = {"task": "els.assign_content", "event": make.content(batch, "text-1")}
    with redis.Redis.from_url(place.valkey_server.url) as client:
        write(client, json.dumps(event))
    return batch


@cause(
    WAITING,
    says=["1 message for the batch lies in the stream outbox", "workers take from the queue els-"],
    never=NEVER,
    step="XREVRANGE outbox",
)
def its_content_was_added_to_a_stream(running):
    yield kept(running, lambda client, event: client.xadd("outbox", {"message": event}))
    forgotten(running, "outbox")


@cause(
    WAITING,
    says=["1 message for the batch lies in the sorted set later"],
    never=NEVER,
    step="ZRANGE later",
)
def its_content_waits_in_a_sorted_set(running):
    yield kept(running, lambda client, event: client.zadd("later", {event: 1}))
    forgotten(running, "later")


@cause(WAITING, says=["lies in the key files:7"], never=NEVER, step="GET files:7")
def its_content_lies_in_a_key_of_its_own(running):
    yield kept(running, lambda client, event: client.set("files:7", event))
    forgotten(running, "files:7")


@cause(WAITING, says=["lies in the hash files:8"], never=NEVER, step="HSCAN files:8")
def its_content_lies_in_a_hash(running):
    yield kept(running, lambda client, event: client.hset("files:8", "1", event))
    forgotten(running, "files:8")


@cause(WAITING, says=["lies in the set files:9"], never=NEVER, step="SSCAN files:9")
def its_content_lies_in_a_set(running):
    yield kept(running, lambda client, event: client.sadd("files:9", event))
    forgotten(running, "files:9")


@cause(
    WAITING,
    says=["the broker has refused files (key els-", "(ACL LOG)"],
    step="els access redis",
)
def its_sender_may_not_write_to_the_queue(place):
    place.run()
    batch = place.register()
    place.valkey.execute_command("ACL", "SETUSER", "files", "on", ">word", "~other", "+@all")
    url = place.valkey_server.url.replace("redis://:password@", "redis://files:word@")
    with redis.Redis.from_url(url) as sender, suppress(redis.exceptions.NoPermissionError):
        sender.lpush(place.queue, "{}")
    yield batch
