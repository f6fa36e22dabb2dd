"""Workers on the transport, an upstream on Kombu's stock one, and what they leave in Redis."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from uuid import uuid4

import redis
from celery import Celery, current_app
from kombu import Connection
from redis.backoff import NoBackoff
from redis.retry import Retry

import durable_redis
from ops.stack.leash import leashed
from tests.live.conftest import until

VISIBILITY_S = 2
MARGIN_S = 5  # a dead worker's messages are back within the visibility timeout and this
QUEUE = "broker"
PREFIX = "prefix."
OURS, STOCK = "durable_redis:Transport", "kombu.transport.redis:Transport"
KEEP = f"{__name__}:keep_malformed"
URL = os.environ["ELS_REDIS_URL"].removesuffix("/0") + "/5"


def app_on(transport_name):
    app = Celery(transport_name, broker=os.environ.get("BROKER", URL), set_as_current=False)
    app.conf.update(
        broker_transport=transport_name,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_S,
            "crashpoint": f"{__name__}:crash",
            "on_malformed": KEEP,
            **({} if transport_name == OURS else {"unacked_restore_interval": 1}),
            **({} if transport_name == OURS else {"unacked_restore_throttle": 1}),
        },
        broker_connection_retry_on_startup=True,
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
    )
    app.task(name="run")(run)
    app.task(name="stay")(stay)
    return app


def run(number):
    """Write down that a message has run."""
    retry = Retry(NoBackoff(), 10)  # a test that cuts connections may cut this one
    with redis.Redis.from_url(URL, retry=retry) as client:
        request = current_app.current_task.request
        lost = durable_redis.lost_workers(request)
        line = {"number": number, "at": time.time(), "info": request.delivery_info, "lost": lost}
        client.rpush("ran", json.dumps(line))


def crash(point):
    """Die here if the test says so."""
    if os.environ.get("CRASH_AT") == point:
        os.kill(os.getpid(), signal.SIGKILL)


def stay(number, seconds):
    """Take a while, and write down that a message has run."""
    time.sleep(seconds)
    run(number)


def keep_malformed(queue, payload, reason):
    """Write down a malformed message and the reason, as a consumer's dead letter would."""
    with redis.Redis.from_url(URL) as client:
        if client.exists("no dead letters"):
            raise OSError("the database is away")
        client.hset("kept", payload, f"{queue}: {reason}")


ours, stock = app_on(OURS), app_on(STOCK)


class Place:
    """An empty database of Valkey, and workers on it."""

    def __init__(self, logs):
        self.client = redis.Redis.from_url(URL)
        self.client.flushdb()
        self.logs = logs
        self.processes = []
        self.upstream = Celery("upstream", broker=URL, set_as_current=False)
        self.upstream.conf.broker_transport = STOCK

    def start(self, app="ours", pool="solo", concurrency=1, prefetch=1, url=URL, **settings):
        command = f"celery -A {__name__}:{app} worker -P {pool} -c {concurrency} -Q {QUEUE}"
        command += f" --prefetch-multiplier {prefetch} -n {uuid4().hex}@broker"
        with (self.logs / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                leashed([sys.executable, "-m", *command.split()], signal.SIGKILL),
                env={**os.environ, "BROKER": url, **settings},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    @contextmanager
    def start_paused(self):
        """Start a worker that runs message 0, and stands still meanwhile."""
        worker = self.start()
        self.send(0)
        self.all_have_run(1)
        worker.send_signal(signal.SIGSTOP)
        os.waitpid(worker.pid, os.WUNTRACED)
        yield
        worker.send_signal(signal.SIGCONT)

    def send(self, *numbers, **options):
        for number in numbers:
            self.upstream.send_task("run", [number], **{"queue": QUEUE, **options})

    def ran(self):
        return [json.loads(line) for line in self.client.lrange("ran", 0, -1)]

    def numbers(self):
        return [line["number"] for line in self.ran()]

    def all_have_run(self, count, timeout_s=30):
        until(lambda: len(self.numbers()) >= count, timeout_s, f"{count} messages have run")
        until(self.is_quiet, what="nothing is unacknowledged")

    def is_quiet(self):
        lists = [QUEUE, *(f"{QUEUE}\x06\x16{step}" for step in (3, 6, 9)), "unacked"]
        return not self.client.exists(*lists, "unacked_index")

    def stop(self):
        for process in self.processes:
            with suppress(ProcessLookupError):  # with its children, which outlive a killed parent
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        self.upstream.close()
        self.client.close()


@contextmanager
def channel_on(transport_name=OURS, **options):
    """Open a channel that leaves unacked entries behind, like a worker that is killed."""
    options = {"visibility_timeout": VISIBILITY_S, **options}
    with Connection(URL, transport=transport_name, transport_options=options) as connection:
        channel = connection.channel()
        channel.do_restore = False
        yield channel


def take(channel, queue=QUEUE):
    """Take a message on a stock channel or ours; return it."""
    taken = []
    channel.basic_qos(prefetch_count=len(channel.qos._delivered) + 1)
    channel.basic_consume(queue, False, taken.append, "tag")
    channel.connection.client.drain_events(timeout=5)
    channel.basic_cancel("tag")
    return taken[0]
