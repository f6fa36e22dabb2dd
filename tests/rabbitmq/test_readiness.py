"""`/readyz` and `els explain` say what is wrong with RabbitMQ."""

import json
import os

import pytest

from ops.explain.rabbitmq import look_around
from tests.live.conftest import until
from tests.ops.served import Served


@pytest.fixture
def readyz(workers, node, database_url):
    """Ask for it; return the status, what is said of the broker, and the findings."""
    names = {"queue": workers.queue, "events_queue": f"{workers.queue}.events"}
    with Served(database_url, os.environ["ELS_REDIS_URL"], broker_url=node.url, **names) as page:

        def ask():
            answer = page.get("/readyz")
            body = json.loads(answer.text)
            wrong = [
                each["wrong"] for each in body.get("findings", ()) if each["server"] == "broker"
            ]
            return answer.status, body["broker"], wrong

        yield ask


def test_a_missing_policy_is_named_until_it_is_set(workers, node, readyz):
    workers.start()
    workers.ready(1)

    until(lambda: any("has no policy" in each for each in readyz()[2]), what="it is named")
    assert readyz()[1] == "ok"
    node.do("policy", workers.queue)
    node.drop_connections()

    until(lambda: readyz()[2] == [], what="nothing is wrong")


def test_a_deleted_exchange_is_named_until_a_worker_is_there(policed, node, readyz):
    policed.start()
    policed.ready(1)
    policed.stop()
    with node.connection() as connection:
        connection.channel().exchange_delete(policed.queue)

    status, broker, _ = readyz()
    clues = [str(clue) for clue in look_around(node.url, policed.queue).clues]
    policed.start()

    assert status == 503
    assert f"the exchange {policed.queue} is missing" in broker
    assert any(f"the exchange {policed.queue}" in clue for clue in clues), clues
    until(lambda: readyz()[1] == "ok", what="it is declared")


def test_an_alarm_is_named_until_it_ends(workers, node, readyz):
    node.ctl("set_disk_free_limit", "1000000GB")
    try:
        until(lambda: readyz()[0] == 503, what="it is named")
        broker = readyz()[1]
    finally:
        node.ctl("set_disk_free_limit", "50MB")

    assert "an alarm for memory or disk is set: rabbitmq-diagnostics alarms" in broker
    until(lambda: readyz()[:2] == (200, "ok"), what="nothing is wrong")


@pytest.mark.parametrize("kind", ["policy", "operator_policy"])
def test_a_limit_of_the_queue_of_the_dropped_is_named(policed, node, readyz, kind):
    policed.start()
    policed.ready(1)
    until(lambda: "broker_hands_over" in policed.log(), what="the worker has checked the policies")
    strong = ("--priority", "20") if kind == "policy" else ()
    limit = (policed.queue, f"^{policed.queue}", json.dumps({"message-ttl": 300}), *strong)

    node.ctl(f"set_{kind}", *limit, "--apply-to", "queues")
    node.drop_connections()

    dead = f"wait in {policed.queue}.dead"
    until(lambda: any(dead in each for each in readyz()[2]), what="it is named")
    node.ctl(f"clear_{kind}", policed.queue)


@pytest.mark.parametrize("kind", ["queue", "exchange"])
@pytest.mark.parametrize("end", ["", ".internal"])
def test_a_policy_that_overrules_ours_at_one_queue_or_exchange_is_named(
    policed, node, readyz, kind, end
):
    """Its messages are lost: the queue's oldest at its limit, and those that find no queue."""
    name = policed.queue + end
    policy = {"max-length": 5} if kind == "queue" else {"alternate-exchange": "nowhere"}
    pattern = f"^{name.replace('.', '[.]')}$"
    node.ctl(
        *("set_policy", f"{name}-{kind}", pattern, json.dumps(policy)),
        *("--apply-to", f"{kind}s", "--priority", "20"),
    )
    policed.start()
    policed.ready(1)

    named = f"hands over nothing of what it drops at the {kind} {name}, "
    until(lambda: any(named in each for each in readyz()[2]), what="it is named")
    assert len(readyz()[2]) == 1
    node.ctl("clear_policy", f"{name}-{kind}")
    node.drop_connections()

    until(lambda: readyz()[2] == [], what="nothing is wrong")


def test_what_checks_the_policies_leaves_no_trace(policed, letters, conn):
    policed.start()
    policed.start(command="worker --pool solo")
    policed.ready(2)

    until(lambda: "broker_hands_over" in policed.log(), what="a worker has checked the policies")
    until(lambda: not any(policed.depth(end) for end in ("", ".internal", ".control", ".dead")))

    assert letters() == []
    assert "keeps_back" not in policed.log()


@pytest.mark.parametrize(
    ("declaration", "ready"),
    [
        ({"auto_delete": True}, True),
        ({"auto_delete": False, "arguments": {"x-queue-type": "stream"}}, False),
    ],
    ids=["it goes with its last consumer", "a stream"],
)
def test_a_declaration_that_costs_messages_is_named(workers, node, readyz, declaration, ready):
    """Workers take nothing from a stream."""
    with node.connection() as connection:
        connection.channel().queue_declare(workers.queue, durable=True, **declaration)
    workers.start()
    workers.ready(1)

    named = f"somebody has declared the queue {workers.queue} otherwise"
    until(lambda: any(named in each for each in readyz()[2]), what="it is named")
    status, broker, _ = readyz()
    assert (status == 200, broker == "ok") == (ready, ready)
