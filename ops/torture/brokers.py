"""The broker of a session: a Valkey beside that of the slots, or a RabbitMQ node."""

import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol

import redis
from amqp.exceptions import AMQPError
from kombu import Connection
from kombu.exceptions import KombuError
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.errors import StackError
from ops.stack.embedded import Valkey
from ops.stack.ports import LOOPBACK, free_port
from ops.stack.server import Server
from ops.torture import refusals

QUEUE = "els"
RABBITMQ_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
CTL_S = 120  # what one call of the script gets
ANSWER_S = 5
HELD = 200  # messages that RabbitMQ pushes to each process of a worker, `tasks.app.PUSHED`
AWAY = (AMQPError, KombuError, OSError)
Context = AbstractContextManager[None]


class Broker(Protocol):
    """What a session asks of its broker."""

    refusals: ClassVar[Mapping[str, Any]]  # by name; Any: each broker does them in its own way
    log: Path
    process: subprocess.Popen[bytes] | None

    @property
    def url(self) -> str:
        """Where clients connect, password included."""

    def start(self) -> None:
        """Start it, and return when clients are served."""

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it again after a death, and wait for nothing."""

    def stop(self) -> None:
        """End it."""

    def serves(self) -> bool:
        """Tell whether clients are served."""

    def settle(self) -> None:
        """Have it write down the queues that were declared."""

    def waiting(self) -> int:
        """Count the messages that wait; 0 while it does not answer."""

    def drop_connections(self) -> None:
        """Close the connections of everybody. Raises StackError after a minute of failures."""

    def refusing(self, what: str) -> Context:
        """Be up and refuse, in one of the ways of `refusals`. Raises StackError likewise."""


class Redis:
    """A Redis that can be made to refuse."""

    refusals: ClassVar[Mapping[str, Callable[[redis.Redis], Context]]] = {
        "a replica": refusals.replica,
        "out of memory": refusals.out_of_memory,
        "without replicas": refusals.without_replicas,
        "snapshots fail": refusals.snapshots_failing,
    }

    def __init__(self, url: str) -> None:
        # Who reconfigures repeats nothing unasked, and waits for a frozen one.
        self.client = redis.Redis.from_url(
            url, decode_responses=True, socket_timeout=30, retry=Retry(NoBackoff(), 0)
        )

    def insist(self, step: Callable[[redis.Redis], object]) -> None:
        """Take a step until it succeeds. Raises StackError after a minute."""
        refusals.insist(lambda: step(self.client), (redis.RedisError,))

    @contextmanager
    def refusing(self, what: str) -> Iterator[None]:
        """Be up and refuse, in one of the ways of `refusals`."""
        self.insist(redis.Redis.ping)
        with self.refusals[what](self.client):
            yield


class ValkeyBroker(Valkey):
    """A Valkey as the broker."""

    refusals: ClassVar[Mapping[str, Any]] = Redis.refusals  # Any: see Broker

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "valkey", free_port(), "torture")
        self._redis = Redis(self.url)

    def stop(self, timeout: float = 30, hurry: Callable[[], bool] = lambda: False) -> None:
        """End it."""
        self._redis.client.close()
        super().stop(timeout, hurry)

    def serves(self) -> bool:
        """Tell whether clients are served."""
        return self._refusal() is None

    def settle(self) -> None:
        """Do nothing: a list needs no declaration."""

    def waiting(self) -> int:
        """Count the messages that wait; 0 while it does not answer."""
        with suppress(redis.RedisError):
            return int(str(self._redis.client.llen(QUEUE)))
        return 0

    def drop_connections(self) -> None:
        """Close the connections of everybody."""
        self._redis.insist(lambda client: client.client_kill_filter(_type="normal", skipme=True))

    def refusing(self, what: str) -> Context:
        """Be up and refuse, in one of the ways of `refusals`."""
        return self._redis.refusing(what)


class RabbitMQ(Server):
    """A RabbitMQ node with the dead-letter policy, run by `scripts/rabbitmq`."""

    name = "rabbitmq"
    signals = (signal.SIGTERM, signal.SIGKILL)
    refusals: ClassVar[Mapping[str, Any]] = {  # a command, and the value of before
        "memory alarm": (("set_vm_memory_high_watermark", "0"), "0.4"),
        "disk alarm": (("set_disk_free_limit", "1000000GB"), "50MB"),
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "rabbitmq", free_port(), "guest")
        self.log = self.data / "log" / "rabbitmq.log"

    @property
    def url(self) -> str:
        """Where clients connect, password included."""
        return f"amqp://guest:{self.password}@{LOOPBACK}:{self.port}//"

    def start(self, timeout: float = 60) -> None:
        """Start the node, and set the policy. Raises StackError where there is no RabbitMQ."""
        if not RABBITMQ_SERVER.exists():
            raise StackError(
                "RabbitMQ is not installed here; on Debian `apt install rabbitmq-server` (or "
                "`sh scripts/rabbitmq install`) installs it"
            )
        super().start(timeout)
        self._do("policy", QUEUE)

    def stop(self, timeout: float = 30, hurry: Callable[[], bool] = lambda: False) -> None:
        """End the node, and the name server that it started."""
        super().stop(timeout, hurry)
        if self.process:
            self._do("stop")

    def serves(self) -> bool:
        """Tell whether clients are served."""
        return self._refusal() is None

    def settle(self) -> None:
        """Have the node write down its queues.

        RabbitMQ 3.10 forgets who is in a quorum queue that is seconds old when the node is killed;
        no leader is elected then, and whoever publishes waits until the queue is deleted.
        """
        self._do("ctl", "stop_app")
        self._do("ctl", "start_app")

    def waiting(self) -> int:
        """Count the messages that wait, those pushed to workers among them; 0 while it is away."""
        with suppress(*AWAY), Connection(self.url, connect_timeout=ANSWER_S) as connection:
            channel: Any = connection.channel()  # Any: py-amqp's
            found = channel.queue_declare(QUEUE, passive=True)
            held = HELD * found.consumer_count if found.message_count else 0
            return int(found.message_count + held)
        return 0

    def drop_connections(self) -> None:
        """Close the connections of everybody."""
        self._insist("close_all_connections", "--vhost", "/", "torture")

    @contextmanager
    def refusing(self, what: str) -> Iterator[None]:
        """Be up and refuse, in one of the ways of `refusals`."""
        (command, value), before = self.refusals[what]
        self._insist(command, value)
        try:
            yield
        finally:
            self._insist(command, before)

    def _insist(self, *command: str) -> None:
        refusals.insist(lambda: self._do("ctl", *command), (StackError,))

    def _do(self, command: str, *args: str) -> None:
        """Call the script. Raises StackError with what it said."""
        argv = ["sh", str(_script()), command, str(self.data), *args]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=CTL_S, check=False)  # noqa: S603 - a fixed program
        except subprocess.TimeoutExpired as error:
            raise StackError(f"rabbitmq: {command} {args} took more than {CTL_S} s") from error
        if done.returncode:
            raise StackError(f"rabbitmq: {' '.join([command, *args])}: {done.stderr.strip()}")

    @property
    def _pid_file(self) -> Path:
        return self.data / "pid.beam"

    def _prepare(self) -> None:
        self.log.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        ports = {"PORT": self.port, "DIST_PORT": free_port(), "ERL_EPMD_PORT": free_port()}
        if not (self.data / "ports").exists():
            lines = [f"{name}={port}\n" for name, port in ports.items()]
            (self.data / "ports").write_text("".join(lines))

    def _command(self) -> list[str]:
        return ["sh", str(_script()), "run", str(self.data)]

    def _refusal(self) -> str | None:
        try:
            with Connection(self.url, connect_timeout=ANSWER_S) as connection:
                connection.connect()
        except AWAY as error:
            return str(error)
        return None


def _script() -> Path:
    """Find the script: beside this package in a checkout, in it once installed."""
    package = Path(__file__).parents[1]
    installed = package / "rabbitmq"
    return installed if installed.exists() else package.parent / "scripts" / "rabbitmq"
