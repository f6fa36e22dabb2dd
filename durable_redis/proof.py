"""Kill workers at random moments and count the messages that are lost.

    python -m durable_redis.proof --messages 10000 --kills 40 --transport durable --prefetch 1

Kombu's stock transport sends the messages, a few hundred ahead of the workers. Again and again,
after a random number of runs, this program kills a worker with all its processes and starts
another. A task writes its number and the time to database 1 of the Redis or Valkey, which this
program starts (`--server`), or gets (`--url`) and then empties.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Thread
from typing import cast
from urllib.parse import urlsplit

import redis
from celery import Celery, current_app
from redis.backoff import ConstantBackoff
from redis.retry import Retry

QUEUE = "durable-redis-proof"
DONE = "done"  # list of "number time"
VISIBILITY_S = 5
BACKLOG = 300  # so that every kill hits a worker that is busy
PATIENCE_S = VISIBILITY_S + 10  # without progress; then what is missing counts as lost
TRANSPORTS = {"durable": "durable_redis:Transport", "stock": "kombu.transport.redis:Transport"}


def _app(transport: str) -> Celery:
    app = Celery(f"proof_{transport}")
    app.conf.update(
        broker_transport=TRANSPORTS[transport],
        broker_transport_options={
            "visibility_timeout": VISIBILITY_S,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 5,
        },
        broker_connection_retry_on_startup=True,
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_ignore_result=True,
        worker_send_task_events=False,
    )
    app.task(name="note")(_note)
    return app


def _note(number: int) -> None:
    _marks(current_app.conf.broker_url).rpush(DONE, f"{number} {time.time()}")


@cache
def _marks(broker_url: str) -> redis.Redis:
    return redis.Redis.from_url(urlsplit(broker_url)._replace(path="/1").geturl())


durable, stock = _app("durable"), _app("stock")  # `celery -A durable_redis.proof:durable`


class Workers:
    """Worker processes, each with a process group of its own."""

    def __init__(self, count: int, command: list[str], log: Path) -> None:
        self._command = command
        self._log = log.open("ab")
        self._running = [self._start() for _ in range(count)]

    def kill_oldest(self) -> None:
        """Kill the worker that runs longest, with its children, and start another."""
        oldest = self._running.pop(0)
        if oldest.poll() is not None:
            raise SystemExit(f"a worker ended by itself; its log is {self._log.name}")
        self._end(oldest)
        self._running.append(self._start())

    def stop(self) -> None:
        """Kill all."""
        for process in self._running:
            self._end(process)
        self._log.close()

    def _start(self) -> subprocess.Popen[bytes]:
        name = ["-n", f"{random.getrandbits(48):x}@proof"]
        return subprocess.Popen(  # noqa: S603 - our own command
            [*self._command, *name],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True)
class Report:
    """What became of the messages of one run."""

    transport: str
    prefetch: int
    messages: int
    kills: int
    lost: int
    runs_more_than_once: int
    left_unacked: int
    slowest_s: float  # from sending to the first run
    last_s: float  # from the last kill to the last first run

    def __str__(self) -> str:
        return (
            f"{self.transport:7}  prefetch {self.prefetch}  messages {self.messages}  "
            f"kills {self.kills}  lost {self.lost}  run again {self.runs_more_than_once}  "
            f"left in unacked {self.left_unacked}  slowest {self.slowest_s:.1f} s  "
            f"last after the last kill {self.last_s:.1f} s"
        )


def measure(url: str, transport: str, options: argparse.Namespace, log: Path) -> Report:
    """Run one transport on an empty Valkey."""
    broker, marks = redis.Redis.from_url(url), _marks(url)
    broker.flushdb()
    marks.flushdb()
    command = f"-A durable_redis.proof:{transport} -b {url} worker -P {options.pool} -c 2"
    command += f" -Q {QUEUE}"
    command += f" --prefetch-multiplier {options.prefetch} --without-gossip --without-mingle"
    command += " --without-heartbeat -l WARNING"
    workers = Workers(options.workers, [sys.executable, "-m", "celery", *command.split()], log)
    stock.conf.update(broker_url=url)
    sent: dict[int, float] = {}
    sender = Thread(target=_send, args=(broker, sent, options.messages), daemon=True)
    sender.start()
    killed_at = time.time()
    try:
        for round_ in range(options.kills):
            _wait_for(marks, int((round_ + random.random()) * options.messages / options.kills))
            workers.kill_oldest()
            killed_at = time.time()
        sender.join()
        first, runs = _settle(marks, options.messages)
        left = broker.zcard("unacked_index")
    finally:
        workers.stop()
    return Report(
        transport,
        options.prefetch,
        options.messages,
        options.kills,
        lost=options.messages - len(first),
        runs_more_than_once=sum(count > 1 for count in runs.values()),
        left_unacked=left,
        slowest_s=max(first[n] - sent[n] for n in first),
        last_s=max(first.values()) - killed_at,
    )


def _send(broker: redis.Redis, sent: dict[int, float], count: int) -> None:
    """Send the messages, never far ahead of the workers."""
    with stock.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            while number % 20 == 0 and broker.llen(QUEUE) > BACKLOG:
                time.sleep(0.01)
            sent[number] = time.time()
            stock.send_task("note", [number], producer=producer)


def _wait_for(marks: redis.Redis, target: int) -> None:
    """Wait for so many runs, or until lost messages hold them up."""
    deadline = time.monotonic() + PATIENCE_S
    while marks.llen(DONE) < target and time.monotonic() < deadline:
        time.sleep(random.uniform(0.0005, 0.005))


def _settle(marks: redis.Redis, messages: int) -> tuple[dict[int, float], Counter[int]]:
    """Wait until every message has run, or nothing moves; and then for runs that come again."""
    progress, seen = time.monotonic(), 0
    while time.monotonic() - progress < PATIENCE_S:
        if (done := marks.llen(DONE)) != seen:
            progress, seen = time.monotonic(), done
        if len(first := _read(marks)[0]) == messages:
            time.sleep(VISIBILITY_S + 2)
            break
        time.sleep(0.2)
    first, runs = _read(marks)
    return first, runs


def _read(marks: redis.Redis) -> tuple[dict[int, float], Counter[int]]:
    first: dict[int, float] = {}
    runs: Counter[int] = Counter()
    for entry in marks.lrange(DONE, 0, -1):
        number, at = cast(bytes, entry).split()
        first.setdefault(int(number), float(at))
        runs[int(number)] += 1
    return first, runs


@contextmanager
def _server(program: str | None, home: Path) -> Iterator[str]:
    """Run a server on a free port; give its URL."""
    if program is None:
        raise SystemExit("there is no valkey-server or redis-server: give --server or --url")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [*f"{program} --port {port} --bind 127.0.0.1 --dir {home} --save".split(), ""]
    url = f"redis://127.0.0.1:{port}/0"
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log)  # noqa: S603 - our own command
    try:
        retry = Retry(ConstantBackoff(0.1), 100)
        redis.Redis.from_url(url, retry=retry, retry_on_error=[redis.ConnectionError]).ping()
        yield url
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Read the options, and print a line for each run."""
    parser = argparse.ArgumentParser(description="Kill workers and count lost messages.")
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--transport", choices=[*TRANSPORTS, "both"], default="both")
    parser.add_argument("--prefetch", type=int, default=1)
    parser.add_argument("--pool", choices=["solo", "prefork"], default="solo")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--url", help="a Redis of which the proof may empty databases 0 and 1")
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    parser.add_argument("--server", default=found, help="a server to start, where no URL is given")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="durable-redis-proof-"))
    chosen = list(TRANSPORTS) if options.transport == "both" else [options.transport]
    with nullcontext(options.url) if options.url else _server(options.server, home) as url:
        for transport in chosen:
            report = measure(url, transport, options, home / f"{transport}.log")
            print(report, flush=True)


if __name__ == "__main__":
    main()
