"""A sender may put anything into the queue. It ends no worker, takes no memory, and is kept."""

import base64
import gzip
import hashlib
import json
import os
import zlib
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from tests import factories as make
from tests.hostile import (
    BOMBS,
    HEADERS,
    HOSTILE,
    INFO,
    LINK,
    MIB,
    PROPERTIES,
    TASK,
    WRONG,
    Hostile,
    assert_says_what_is_wrong,
    compressed,
    ends_of,
    nested,
    with_wrong,
)
from tests.live.conftest import Workers, until
from tests.ops.conftest import els

pytestmark = pytest.mark.redis_only("tests/rabbitmq/test_hostile.py sends the same there")
MOST_MEMORY = 600 * MIB  # of a process at its peak; a good body of the largest size takes 450


@pytest.fixture(scope="module")
def worker(database_url, tmp_path_factory):
    workers = Workers(tmp_path_factory.mktemp("hostile"))
    workers.start(command="worker --pool prefork --concurrency 1")
    yield workers.ready(1)
    workers.close()


@pytest.fixture
def push(worker, valkey):
    """Put a message into the queue as it is; return its id."""

    def pushed(hostile: Hostile, replace=("", ""), **properties):
        headers, body, task_id = hostile.build()
        message = {
            "body": base64.b64encode(body).decode(),
            "content-type": hostile.content_type,
            "content-encoding": hostile.content_encoding,
            "headers": headers,
            "properties": {
                "correlation_id": str(task_id)[:99],
                "reply_to": "somebody",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": worker.queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
                **properties,
            },
        }
        valkey.lpush(worker.queue, json.dumps(message).replace(*replace))

    return pushed


@pytest.fixture
def new_letter(conn):
    """Wait for the next dead letter."""
    [last] = conn.execute("SELECT coalesce(max(id), 0) AS id FROM dead_letters").fetchall()

    def find():
        query = (
            "SELECT *, body::text AS text, length(body::text) AS length FROM dead_letters"
            " WHERE id > %s ORDER BY id"
        )
        return conn.execute(query, [last["id"]]).fetchone()

    return find


def works(worker):
    """Have a good message executed, by the process that was there before."""
    value = worker.send("els.register_batch", make.registration(make.new_batch(), 1)).get(30)
    return value["outcome"] == "registered"


def children(worker):
    return {p.pid for p in psutil.Process(worker.processes[0].pid).children(recursive=True)}


def peaks(worker):
    """Return the most memory that each process of the worker ever took."""
    parent = psutil.Process(worker.processes[0].pid)
    processes = [parent, *parent.children(recursive=True)]
    status = [Path(f"/proc/{each.pid}/status").read_text() for each in processes]
    return [int(s.split("VmHWM:")[1].split()[0]) * 1024 for s in status]


@pytest.mark.parametrize("method", BOMBS)
def test_a_compressed_message_takes_no_memory(worker, push, new_letter, method):
    body = compressed(BOMBS[method]())

    push(Hostile("VALIDATION_ERROR", {"compression": method}, body))

    letter = until(new_letter, 10, "it is kept")
    assert (letter["code"], letter["task"]) == ("VALIDATION_ERROR", "els.assign_content")
    assert base64.b64decode(letter["body"]["base64"]) == body
    assert works(worker)
    assert max(peaks(worker)) < 300 * MIB


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress])
def test_a_compressed_message_of_a_proper_size_is_executed(worker, push, conn, compress):
    """Kombu's gzip is zlib's format; other senders write that of gzip."""
    event = make.registration(make.new_batch(), 2)
    body = compress(json.dumps([[], {"event": event}, None]).encode())

    push(Hostile(None, {"compression": "gzip"}, body, task="els.register_batch"))

    query = "SELECT 1 FROM batch_essay_trackers WHERE batch_id = %s"
    until(lambda: conn.execute(query, [event["batch_id"]]).fetchone(), what="it is registered")


def test_a_body_that_nobody_could_read_is_not_replayed(worker, push, new_letter):
    push(Hostile("MALFORMED_MESSAGE", {"compression": "gzip"}, b"not compressed"))
    number = until(new_letter, 10, "it is kept")["id"]

    urls = {name: os.environ[name] for name in ("ELS_DATABASE_URL", "ELS_REDIS_URL")}
    told = els("dead-letters", "replay", number, "--yes", ELS_QUEUE=worker.queue, **urls)

    assert told.returncode == 1
    assert "cannot be replayed" in told.stderr


def forged_seal(batch):
    """Claim that the two slots of a batch are sealed."""
    seal = {"low": "", "high": None, "sealed": True, "provisioned": 2, "failed": 0, "digest": ""}
    return [[{batch: seal}, {batch: True}]]


def test_readiness_cannot_be_forged(worker, push, conn, valkey):
    batch = make.new_batch()
    worker.send("els.register_batch", make.registration(batch, 2)).get(30)
    more = {"options": {"link": [LINK], "queue": "elsewhere"}}
    announce = {"task": "els.announce_ready", "args": [], "kwargs": {"batches": [batch]}}
    steps = {
        "els.announce_ready": [forged_seal(batch), {"batches": [batch]}, {"callbacks": [LINK]}],
        "els.seal_slots": [
            [],
            {"batches": {batch: ["a", "b"]}},
            {"chord": announce | more},
        ],
        "els.seal_books": [[], {"batches": [batch]}, {"chord": LINK, "chain": [LINK]}],
        "els.seal_failed": [[1, 2, 3, [batch]], {}, {"callbacks": [LINK]}],
    }

    for task, body in steps.items():
        group = {"group": str(uuid4()), "group_index": 0}
        push(Hostile(None, group, json.dumps(body).encode(), task=task))

    assert works(worker)
    until(lambda: not valkey.exists(worker.queue, "unacked"), what="all are executed")
    query = "SELECT type FROM event_outbox WHERE batch_id = %s"
    assert conn.execute(query, [batch]).fetchall() == []
    assert not valkey.exists("elsewhere", "intruder")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_is_kept_or_harmless(worker, push, conn, valkey, new_letter, name):
    hostile = HOSTILE[name]
    alive = worker.processes[0].poll() is None
    before = children(worker)

    push(hostile)

    if hostile.code:
        letter = until(new_letter, 10, "it is kept")
        assert letter["code"] == hostile.code
        assert letter["length"] < 60 * MIB
        assert len(letter["task"]) <= 255
        assert letter["task_id"].isprintable()
        assert len(letter["task_id"]) <= 255
    assert works(worker)
    assert alive
    until(lambda: valkey.llen(worker.queue) == 0, what="nothing is left")
    if not hostile.code:
        assert new_letter() is None
        assert valkey.llen(LINK["options"]["queue"]) == 0
    assert children(worker) == before, "a process of the pool died"
    assert max(peaks(worker)) < MOST_MEMORY


def assert_each_ends(worker, conn, valkey, messages):
    """Wait until each message has an outcome or a letter, and the same processes work on."""
    batches = [each.batch for each in messages]
    until(lambda: len(ends_of(conn, batches)) == len(batches), 20, "each message ends")
    assert works(worker)
    assert worker.processes[0].poll() is None
    until(lambda: not valkey.exists(worker.queue, "unacked"), what="none comes back")
    return ends_of(conn, batches)


@pytest.mark.parametrize("header", HEADERS)
def test_no_value_of_a_header_ends_a_worker(worker, push, conn, valkey, header):
    messages, before = with_wrong(header), children(worker)

    for each in messages:
        push(each)

    ends = assert_each_ends(worker, conn, valkey, messages)
    for letter in ends.values():
        if "code" in letter:
            assert_says_what_is_wrong(letter, header)
    assert children(worker) == before, "a process of the pool died"


@pytest.mark.parametrize("name", PROPERTIES + INFO)
def test_no_value_of_a_property_ends_a_worker(worker, push, conn, valkey, name):
    messages, before = [Hostile(None) for _ in WRONG], children(worker)

    for each, value in zip(messages, WRONG.values(), strict=True):
        push(each, **({"delivery_info": {name: value}} if name in INFO else {name: value}))

    ends = assert_each_ends(worker, conn, valkey, messages)
    for letter in ends.values():
        if "code" in letter:
            assert letter["message"].startswith(f"property {name}: must be "), letter["message"]
            assert (letter["task"], letter["body"]["batch_id"]) == (TASK, letter["batch_id"])
    assert children(worker) == before, "a process of the pool died"


OWN = ["els.seal_slots", "els.announce_ready", "els.sweep", "celery.backend_cleanup"]


@pytest.mark.parametrize("task", OWN)
def test_no_header_of_a_task_of_our_own_ends_a_worker(worker, push, valkey, task):
    before = children(worker)

    for header in HEADERS:
        for value in WRONG.values():
            push(Hostile(None, {"task": task, header: value}, b"[[], {}, null]"))

    assert works(worker)
    until(lambda: not valkey.exists(worker.queue, "unacked"), 30, "none comes back")
    assert worker.processes[0].poll() is None
    assert children(worker) == before, "a process of the pool died"


@pytest.mark.parametrize("depth", [1_200, 30_000])
def test_a_header_nested_very_deeply_is_kept(worker, push, new_letter, depth):
    push(Hostile(None, {"eta": "DEEP"}), replace=('"DEEP"', "[" * depth + "]" * depth))

    letter = until(new_letter, 10, "it is kept")
    assert (letter["code"], len(letter["message"]) > 20) == ("MALFORMED_MESSAGE", True)
    assert works(worker)


def test_an_id_that_is_too_long_is_known_by_its_hash(push, new_letter):
    push(Hostile("MALFORMED_MESSAGE", {"id": "x" * 256}))

    letter = until(new_letter, 10, "it is kept")
    assert letter["task_id"] == hashlib.sha256(b"x" * 256).hexdigest()
    assert letter["task"] == TASK


def test_a_malformed_message_keeps_its_id(push, new_letter):
    hostile = Hostile("MALFORMED_MESSAGE", {"id": f"my-{uuid4()}", "retries": "5"})

    push(hostile)

    letter = until(new_letter, 10, "it is kept")
    assert (letter["task"], letter["task_id"]) == (TASK, hostile.headers["id"])
    assert letter["message"] == "header retries: must be a whole number"


ASKED = {
    "an unknown task": Hostile("UNKNOWN_TASK", task="els.asign_content"),
    "a task of the workers": Hostile("UNKNOWN_TASK", task="els.seal_slots"),
    "a task of beat": Hostile("UNKNOWN_TASK", task="els.sweep"),
    "a task of Celery": Hostile("UNKNOWN_TASK", task="celery.map"),
    "a header": Hostile("MALFORMED_MESSAGE", {"eta": ""}),
    "no JSON": Hostile("MALFORMED_MESSAGE", body=b"{"),
    "a body too deep": Hostile("VALIDATION_ERROR", body=nested(800)),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_message_that_never_became_a_task_has_a_result(worker, push, name):
    hostile, task_id = ASKED[name], str(uuid4())
    hostile.headers |= {"id": task_id, "ignore_result": False}

    push(hostile)

    value = worker.upstream.AsyncResult(task_id).get(30)
    assert (value["outcome"], value["code"]) == ("dead_letter", hostile.code)
    assert value.keys() == {"outcome", "batch_id", "code", "dead_letter", "message"}
