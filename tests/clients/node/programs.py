"""The examples of Node as processes."""

import re
import shutil
import subprocess
from pathlib import Path

from tests.clients.programs import Neighbours, Program

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


def link_kit(folder: Path) -> None:
    """Let programs in this folder import the kit and what its examples need, as if installed."""
    modules = folder / "node_modules"
    (modules / "@els").mkdir(parents=True)
    (modules / "@els/client").symlink_to(KIT)
    (modules / "pg").symlink_to(KIT / "node_modules/pg")


class NodeNeighbours(Neighbours):
    """The examples of Node."""

    def __init__(self, folder: Path, queue: str, database_url: str):
        super().__init__(folder, queue, database_url)
        link_kit(folder)
        for example in EXAMPLES.glob("*.mjs"):
            shutil.copy(example, folder)

    def sender(self, broker_url: str) -> Program:
        spool = str(self.folder / "spool")
        return self.run("sender", broker_url, QUEUE=self.queue, SPOOL=spool)

    def receiver(self, broker_url: str) -> Program:
        return self.run(
            "receiver",
            broker_url,
            QUEUE=f"{self.queue}.events",
            DATABASE_URL=self.database_url,
            VISIBILITY_TIMEOUT_S="2",
        )

    def run(self, name: str, broker_url: str, **environ: str) -> Program:
        return self.start(name, "node", f"{name}.mjs", BROKER_URL=broker_url, **environ)
