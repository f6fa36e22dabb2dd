"""Connections that are dropped, dead in silence or blocked lose nothing, and kill nobody."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from kombu.exceptions import OperationalError

from ops.stack.proxy import BOTH, REPLIES, REQUESTS, Proxy
from tasks.worker.amqp import CONFIRM_S, HEARTBEAT_S, OPTIONS, note_loss
from tests import factories as make
from tests.live.conftest import until
from tests.rabbitmq.node import sender

LOST = "Connection to broker lost"
NOTICED_S = 3 * HEARTBEAT_S + 4  # that a connection is dead, and for the worker to make another


def test_six_dropped_connections_poison_nothing(policed, node, conn, letters, assert_invariants):
    """Of 300 messages, up to 200 are pushed to the worker each time."""
    batch = make.new_batch()
    policed.start()
    policed.ready(1)
    policed.send("els.register_batch", make.registration(batch, 300))

    for number in range(300):
        policed.send_for_sure("els.assign_content", make.content(batch, f"text-{number}"))
        if number % 50 == 20:
            node.drop_connections()
    assert_invariants([batch], 120)

    assert letters() == []


@pytest.fixture
def proxy(node):
    from random import Random

    between = Proxy(int(node.url.rstrip("/").rpartition(":")[2]), Random(1))
    between.start()
    yield between
    between.stop()


@pytest.mark.parametrize("kind", ["prefork", "solo"])
@pytest.mark.parametrize(
    "directions",
    [BOTH, {REQUESTS}, {REPLIES}],
    ids=["both ways", "what the worker says", "what RabbitMQ says"],
)
def test_a_connection_that_is_dead_in_silence_is_replaced(
    workers, proxy, outcome_of, directions, kind
):
    broker = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
    workers.start(ELS_BROKER_URL=broker, command=f"worker --pool {kind} --concurrency 1")
    workers.ready(1)
    event = make.registration(make.new_batch())

    proxy.swallow(directions)
    time.sleep(1)
    proxy.pass_again()
    workers.send("els.register_batch", event)

    assert until(lambda: outcome_of(event), NOTICED_S, "another connection is made")


def test_a_slow_network_keeps_its_connections(workers, proxy, node):
    """What either side says is late by up to 8 s."""
    broker = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
    workers.start(ELS_BROKER_URL=broker)
    workers.ready(1)
    ended = missed_heartbeats(node)

    proxy.delay_s = 8
    time.sleep(6 * HEARTBEAT_S)

    assert missed_heartbeats(node) == ended
    assert LOST not in workers.log()


def test_a_worker_that_stands_still_for_a_while_keeps_its_connections(workers, node):
    """As one on a machine that has no time for it."""
    worker = workers.start()
    workers.ready(1)
    ended = missed_heartbeats(node)

    for _ in range(2):
        os.killpg(worker.pid, signal.SIGSTOP)
        time.sleep(HEARTBEAT_S * 1.5)
        os.killpg(worker.pid, signal.SIGCONT)
        time.sleep(HEARTBEAT_S / 2)

    assert missed_heartbeats(node) == ended
    assert LOST not in workers.log()


def test_a_process_that_waits_for_a_confirm_learns_that_its_worker_has_lost_the_broker(node, proxy):
    app = sender(f"amqp://guest:guest@127.0.0.1:{proxy.port}//")
    app.conf.update(
        broker_transport="tasks.worker.amqp:Transport", broker_transport_options=OPTIONS
    )
    app.send_task("els.events.x", queue="els-lost")
    proxy.swallow()
    threading.Timer(1, proxy.pass_again).start()
    threading.Timer(2, note_loss).start()
    begun = time.monotonic()

    app.send_task("els.events.x", queue="els-lost")

    assert time.monotonic() - begun < CONFIRM_S / 2
    app.close()


def test_the_processes_of_a_pool_notice_a_dead_connection_with_their_worker(
    workers, proxy, assert_invariants
):
    """They send no heartbeats, and would learn it one after the other, by messages of theirs."""
    broker = f"amqp://guest:guest@127.0.0.1:{proxy.port}//"
    workers.start(ELS_BROKER_URL=broker, command="worker --pool prefork --concurrency 3")
    workers.ready(1)
    assert_invariants([ready_batch(workers) for _ in range(20)])

    proxy.swallow()
    time.sleep(1)
    proxy.pass_again()
    batch = ready_batch(workers)

    assert_invariants([batch], 30)


def ready_batch(workers):
    batch = make.new_batch()
    workers.send("els.register_batch", make.registration(batch, 1))
    workers.send("els.assign_content", make.content(batch))
    return batch


def test_a_frozen_broker_is_waited_for_with_a_deadline(node):
    app = sender(node.url)
    app.conf.update(
        broker_transport="tasks.worker.amqp:Transport", broker_transport_options=OPTIONS
    )
    app.send_task("els.events.x", queue="els-frozen")
    os.kill(node.pid, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        with pytest.raises(OperationalError):
            app.send_task("els.events.x", queue="els-frozen")
    finally:
        os.kill(node.pid, signal.SIGCONT)

    assert time.monotonic() - begun < 3 * CONFIRM_S
    app.send_task("els.events.x", queue="els-frozen")
    app.close()


@contextmanager
def held(pool, event):
    """Hold the lock that a registration waits for."""
    with pool.connection() as other, other.transaction():
        other.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('register/' || %s, 0))",
            [event["batch_id"]],
        )
        yield


@pytest.fixture
def impatient(node):
    """RabbitMQ ends a channel that holds a message for 3 s; by default it is half an hour."""
    limits = "application:set_env(rabbit, {}, {})."
    node.ctl("eval", limits.format("consumer_timeout", 3000))
    node.ctl("eval", limits.format("channel_tick_interval", 1000))
    yield node
    node.ctl("eval", limits.format("consumer_timeout", 1_800_000))
    node.ctl("eval", limits.format("channel_tick_interval", 60_000))


def test_a_message_that_a_worker_holds_for_too_long_is_neither_lost_nor_poison(
    impatient, policed, pool, outcome_of, letters
):
    event = make.registration(make.new_batch())
    doomed = policed.start()
    policed.ready(1)

    with held(pool, event):
        policed.send("els.register_batch", event)
        until(lambda: "PRECONDITION_FAILED" in policed.log(), 40, "RabbitMQ ends the channel")

    assert until(lambda: outcome_of(event), what="it is registered")["outcome"] == "registered"
    until(lambda: policed.depth() == 0, what="all is acknowledged")
    assert letters() == []
    assert doomed.poll() is None


@contextmanager
def new_sessions_read_only(pool):
    """Refuse the writes of every session that begins now."""
    with pool.connection() as other:
        database = other.info.dbname
        other.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        try:
            yield
        finally:
            other.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")


def test_a_solo_worker_that_sends_no_heartbeats_loses_nothing(
    policed, node, pool, outcome_of, letters
):
    """Its event loop stands still while a task waits; RabbitMQ ends the connection after 18 s."""
    event = make.registration(make.new_batch())
    policed.start(command="worker --pool solo")
    policed.ready(1)

    with new_sessions_read_only(pool):
        policed.send("els.register_batch", event)
        ended = missed_heartbeats(node)
        until(lambda: missed_heartbeats(node) > ended, 50, "RabbitMQ ends the connection")
    after = make.registration(make.new_batch())
    policed.send("els.register_batch", after)

    assert until(lambda: outcome_of(event), 60, "it is registered")["outcome"] == "registered"
    assert until(lambda: outcome_of(after), 60, "the next is")["outcome"] == "registered"
    until(lambda: policed.depth() == 0, what="all is acknowledged")
    assert letters() == []


def missed_heartbeats(node):
    logs = [path.read_text(errors="replace") for path in (node.folder / "log").glob("*.log")]
    return sum(log.count("missed heartbeats from client") for log in logs)


@pytest.fixture
def alarm(node):
    """RabbitMQ takes no more messages: its memory is full."""
    node.ctl("set_vm_memory_high_watermark", "0")
    yield
    node.ctl("set_vm_memory_high_watermark", "0.4")


def test_a_blocked_broker_is_an_absent_one(node, alarm):
    app = sender(node.url)
    app.conf.update(
        broker_transport="tasks.worker.amqp:Transport", broker_transport_options=OPTIONS
    )
    begun = time.monotonic()

    with pytest.raises(OperationalError, match="did not confirm"):
        app.send_task("els.events.x", queue="els-blocked")

    assert CONFIRM_S <= time.monotonic() - begun < 2 * CONFIRM_S
    app.close()


def test_events_wait_for_the_end_of_an_alarm(policed, node, conn, letters, assert_invariants):
    batch = make.new_batch()
    policed.start()
    policed.start("--schedule", str(policed.logs / "beat"), "--pidfile=", command="beat")
    policed.ready(1)
    policed.send("els.register_batch", make.registration(batch, 20))
    for number in range(20):
        policed.send_for_sure("els.assign_content", make.content(batch, f"text-{number}"))
    node.ctl("set_vm_memory_high_watermark", "0")
    time.sleep(5)
    node.ctl("set_vm_memory_high_watermark", "0.4")

    assert_invariants([batch], 90)

    assert letters() == []
