"""A real RabbitMQ node in a temporary folder, and senders as docs/tasks.md makes them."""

import subprocess
from pathlib import Path

from celery import Celery
from kombu import Connection

SCRIPT = Path(__file__).parents[2] / "scripts" / "rabbitmq"
SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
MISSING = "there is no rabbitmq-server (scripts/rabbitmq install)"
STOCK = "kombu.transport.pyamqp:Transport"  # a sender's: ours is installed in this process too


class Node:
    """A RabbitMQ node, driven by the project's script."""

    def __init__(self, folder: Path):
        self.folder = folder

    def do(self, command: str, *args: str) -> str:
        argv = ["sh", SCRIPT, command, self.folder, *args]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()

    def start(self):
        self.url = self.do("start")

    def ctl(self, *args: str) -> str:
        return self.do("ctl", *args)

    @property
    def pid(self) -> int:
        return int((self.folder / "pid.beam").read_text())

    def connection(self, transport: str = STOCK) -> Connection:
        return Connection(
            self.url, transport=transport, transport_options={"confirm_publish": True}
        )

    def drop_connections(self):
        self.ctl("close_all_connections", "--vhost", "/", "a test")


def sender(url: str, queue_type="quorum", exchange_type="topic", **options) -> Celery:
    """An upstream service with the settings of docs/tasks.md."""
    app = Celery("upstream", broker=url, broker_transport=STOCK, **options)
    app.conf.task_create_missing_queue_type = queue_type
    app.conf.task_create_missing_queue_exchange_type = exchange_type
    app.conf.broker_transport_options = {"confirm_publish": True}
    return app
