"""Programs of Node beside the workers, and the brokers that they have in common."""

import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from ops.stack.embedded import Valkey, free_port, leashed
from tests.live.conftest import until
from tests.rabbitmq.node import Node

ROOT = Path(__file__).parents[3]
KIT = ROOT / "clients" / "node"
EXAMPLES = ROOT / "examples" / "node"
OLDEST = 20  # of Node


def missing() -> str | None:
    """Say what the tests lack; None if nothing."""
    if shutil.which("node") is None:
        return "there is no Node"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    if int(re.findall(r"\d+", version.stdout)[0]) < OLDEST:
        return f"Node is {version.stdout.strip()}, and the kit needs {OLDEST}"
    if not (KIT / "dist/src/index.js").exists():
        return "clients/node is not built (scripts/clients-node)"
    return None


class RedisBroker(Valkey):
    """A Valkey that is the broker alone; it keeps what it has while it is stopped."""

    def __init__(self, folder: Path):
        super().__init__(folder / "valkey", free_port(), "broker-password")


class RabbitBroker(Node):
    """A RabbitMQ node."""

    def stop(self):
        self.do("stop")


def link_kit(folder: Path) -> None:
    """Let programs in this folder import the kit and what its examples need, as if installed."""
    modules = folder / "node_modules"
    (modules / "@els").mkdir(parents=True)
    (modules / "@els/client").symlink_to(KIT)
    (modules / "pg").symlink_to(KIT / "node_modules/pg")


class Program:
    """A process of Node, with what it writes in a file."""

    def __init__(self, script: Path, **environ: str):
        self.out = script.parent / f"{script.stem}-{free_port()}.out"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                leashed(["node", str(script)], signal.SIGKILL),
                env={**os.environ, **environ},
                cwd=script.parent,
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
