"""Programs of other services beside the workers, and the brokers that they have in common."""

import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psycopg
from psycopg.rows import dict_row

from ops.stack.embedded import Valkey
from ops.stack.leash import leashed
from ops.stack.ports import free_port
from tests.live.conftest import until
from tests.rabbitmq.node import Node


class RedisBroker(Valkey):
    """A Valkey that is the broker alone; it keeps what it has while it is stopped."""

    def __init__(self, folder: Path):
        super().__init__(folder / "valkey", free_port(), "broker-password")


class RabbitBroker(Node):
    """A RabbitMQ node."""

    def stop(self):
        self.do("stop")


class Program:
    """A process of another service, with what it writes in a file."""

    def __init__(self, name: str, argv: list[str], folder: Path, **environ: str):
        self.out = folder / f"{name}-{free_port()}.out"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                leashed(argv, signal.SIGKILL),
                env={**os.environ, **environ},
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> list[str]:
        return self.out.read_text().splitlines()

    def feed(self, messages):
        """Give a sender messages: pairs of task and event."""
        lines = [json.dumps({"task": task, "event": event}) for task, event in messages]
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self.process.stdin.flush()

    def says(self, count: int, pattern=r"[0-9a-f-]{36}", timeout_s=30):
        """Wait for so many lines of a form; return them."""

        def found():
            lines = [line for line in self.said if re.fullmatch(pattern, line)]
            ended = self.process.poll() is not None
            assert len(lines) >= count or not ended, "\n".join(self.said[-20:])
            return lines if len(lines) >= count else None

        return until(found, timeout_s, f"{count} lines are {pattern}")

    def finish(self, timeout_s=60):
        """End its input, and wait until it has done the rest."""
        self.process.stdin.close()
        assert self.process.wait(timeout_s) == 0, "\n".join(self.said[-20:])

    def kill(self):
        self.process.kill()
        self.end()

    def stop(self):
        self.process.terminate()
        self.end()

    def end(self):
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(5)


class Neighbours:
    """A sender and a receiver as processes, and what the receiver has stored.

    It stores each event that has an effect in the table `effects` of its database.
    """

    def __init__(self, folder: Path, queue: str, database_url: str):
        self.folder, self.queue, self.database_url = folder, queue, database_url
        self.programs: list[Program] = []

    def sender(self, broker_url: str) -> Program:
        raise NotImplementedError

    def receiver(self, broker_url: str) -> Program:
        raise NotImplementedError

    def start(self, name: str, *argv: str, **environ: str) -> Program:
        self.programs.append(Program(name, [*argv], self.folder, **environ))
        return self.programs[-1]

    def effects(self, batch_id: str, event_type: str | None = None) -> list[dict]:
        """List the events of a batch that had an effect, each as often as it had one."""
        with psycopg.connect(self.database_url, row_factory=dict_row) as db:
            if db.execute("SELECT to_regclass('effects') AS there").fetchone()["there"] is None:
                return []
            rows = db.execute(
                "SELECT event FROM effects WHERE event ->> 'subject' = %s"
                " AND %s IN (type, '') ORDER BY event ->> 'id'",
                [batch_id, event_type or ""],
            )
            return [row["event"] for row in rows]

    def ready(self, batch_id: str) -> list[dict]:
        return self.effects(batch_id, "BatchEssaysReady")

    def slots(self, batch_id: str) -> list[str]:
        """List the contents that the receiver knows to have a slot, as often as it stored them."""
        assigned = self.effects(batch_id, "EssaySlotAssigned")
        return sorted(event["data"]["text_storage_id"] for event in assigned)

    def close(self):
        for program in self.programs:
            if program.process.poll() is None:
                program.kill()
