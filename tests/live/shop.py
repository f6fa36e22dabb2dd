"""The examples of a sender and a receiver as processes, on the broker of some workers."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

from ops.stack.leash import leashed
from tests import factories as make

ROOT = Path(__file__).parents[2]
STOCK = "receiver"  # the module of the receiver


class Shop:
    """A folder with the example sender and receiver, on the broker of some workers."""

    def __init__(self, folder, workers):
        self.folder, self.workers = folder, workers
        self.queue = f"{workers.queue}.nlp"
        self.broker_url = workers.broker_url
        self.processes = []

    @property
    def environ(self):
        return {
            **os.environ,
            "CELERY_BROKER_URL": self.broker_url,
            "ELS_QUEUE": self.workers.queue,
            "PYTHONPATH": f"{ROOT / 'examples'}:{ROOT}",
        }

    def routes(self, *types, task="els.event"):
        """The setting that leads these types to the receiver."""
        route = [{"task": task, "queue": self.queue}]
        return {"ELS_EVENT_ROUTES": json.dumps(dict.fromkeys(types, route))}

    def receive(self, app=STOCK):
        """Start the receiver."""
        command = ["-m", "celery", "-A", app, "worker", "-Q", self.queue, "--pool", "solo"]
        name = ["-n", f"{self.queue}@test", "--loglevel", "INFO"]
        return self._start([*command, *name], "receiver")

    def send(self, *messages):
        """Start the sender with these pairs of a task and an event."""
        lines = [json.dumps({"task": task, "event": event}) for task, event in messages]
        given = self.folder / f"lines-{len(self.processes)}"
        given.write_text("".join(f"{line}\n" for line in lines))
        with given.open() as stdin:
            return self._start([str(ROOT / "examples/sender.py")], "sender", stdin)

    def _start(self, arguments, name, stdin=None):
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            process = subprocess.Popen(
                leashed([sys.executable, *arguments], signal.SIGKILL),
                cwd=self.folder,
                env=self.environ,
                stdin=stdin,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def query(self, statement, file="receiver.sqlite"):
        with closing(sqlite3.connect(self.folder / file, timeout=10)) as db:
            try:
                return db.execute(statement).fetchall()
            except sqlite3.OperationalError:  # no table yet
                return []

    def inbox(self):
        return [json.loads(event) for (event,) in self.query("SELECT event FROM inbox")]

    def pipelines(self):
        return Counter(batch for (batch,) in self.query("SELECT batch_id FROM pipelines"))

    def spooled(self):
        return len(self.query("SELECT line FROM spool", "spool.sqlite"))

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait(10)
        if self.workers.on_rabbitmq:
            with self.workers.broker() as connection:
                connection.default_channel.queue_delete(self.queue)


def ready_batch():
    """Return a batch and the messages that make it ready."""
    batch = make.new_batch()
    return batch, [
        ("els.register_batch", make.registration(batch, 1)),
        ("els.assign_content", make.content(batch)),
    ]
