"""Servers, workers and beat of one case, and `els explain` as a person runs it there."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from psycopg.rows import dict_row

from core import db
from core.servers.redis_client import connect_once
from core.signs.heartbeat import FRESH, SWEPT
from migrations import upgrade
from ops.client import outcome_of
from ops.heartbeat import read_heartbeat
from ops.signs import read_beats, read_pauses
from ops.stack.embedded import Postgres, Valkey
from ops.stack.ports import free_port
from tests import factories as make
from tests.explain.cause import Told
from tests.live.conftest import Workers, until

ROOT = Path(__file__).parents[2]
PATIENCE_S = 40  # for `els` to end, whatever it waits for
START_S: list[float] = []  # what this test process has measured
WAIT_S = 60  # for what a case waits for: other cases use the machine as well


class Place:
    """A database, a Valkey and a queue of one's own. Nothing runs until it is started."""

    def __init__(self, folder: Path, database_url: str, valkey: Valkey, **settings: str):
        self.folder, self.database_url, self.valkey_server = folder, database_url, valkey
        self.settings = {
            "ELS_DATABASE_URL": database_url,
            "ELS_REDIS_URL": valkey.url,
            "ELS_BROKER_URL": valkey.url,
            "ELS_HOME": str(folder / "home"),
            "ELS_SWEEP_EVERY": "1",
            **settings,
        }
        self.workers = Workers(folder, **self.settings)
        self.queue = self.workers.queue
        self.undo = ExitStack()
        self.undo.callback(self.workers.close)
        self.valkey = connect_once(valkey.url)
        self.undo.callback(self.valkey.close)
        self._conn: psycopg.Connection | None = None

    @property
    def conn(self) -> psycopg.Connection:
        """A connection of a person who looks and changes rows by hand."""
        if self._conn is None or self._conn.closed:
            self._conn = psycopg.connect(self.database_url, autocommit=True, row_factory=dict_row)
            self.undo.callback(self._conn.close)
        return self._conn

    def close(self):
        self.undo.close()

    # --- what runs -----------------------------------------------------------------------------

    def worker(self, *more: str, command="worker --pool solo", **settings: str):
        """Start a worker, and wait for its heartbeat."""
        process = self.start_worker(*more, command=command, **settings)
        name = f"{self.queue}-{len(self.workers.processes) - 1}@test"
        until(lambda: name in self.signs().workers, WAIT_S, f"{name} lives")
        return process

    def start_worker(self, *more: str, command="worker --pool solo", **settings: str):
        return self.workers.start(*more, command=command, **settings)

    def beat(self):
        """Start beat, and wait for the sweep, which a worker runs."""
        process = self.start_beat()
        until(lambda: self.valkey.exists(SWEPT), WAIT_S, "the sweep has run")
        return process

    def start_beat(self, **settings: str):
        """Start beat, and wait until it leads."""
        process = self.workers.start("--pidfile=", command="beat", **settings)
        queue = settings.get("ELS_QUEUE", self.queue)
        until(lambda: read_beats(self.valkey, queue).leader, WAIT_S, "beat leads")
        return process

    def run(self):
        """Start a worker and beat."""
        worker = self.worker()
        return worker, self.beat()

    @contextmanager
    def another_program(self):
        """Run another program's Celery worker, which takes from the same queue of the broker."""
        name = f"celery@legacy-{self.queue}"
        command = [
            "-m",
            "celery",
            "-A",
            "tests.explain.legacy",
            "worker",
            "--pool",
            "solo",
            "-l",
            "INFO",
        ]
        with (self.folder / "legacy.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command, "-Q", self.queue, "-n", name],
                env={**os.environ, "LEGACY_BROKER": self.settings["ELS_BROKER_URL"]},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            said = self.folder / "legacy.log"
            until(lambda: b" ready." in said.read_bytes(), WAIT_S, "the other program runs")
            yield name
        finally:
            self.end(process)

    def signs(self):
        return read_heartbeat(self.valkey, 0)

    def pauses(self):
        return read_pauses(self.valkey)

    def end(self, process, number=signal.SIGKILL):
        """End a process and those that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.wait(20)

    def until_silent(self):
        """Wait until no worker counts as alive: 15 s after the last sign."""
        until(self._silent, WAIT_S, "no worker counts as alive")

    def _silent(self) -> bool:
        seen, now = self.signs(), datetime.now(UTC)
        youngest = min((now - sign.at for sign in seen.signs.values()), default=FRESH * 2)
        return not seen.workers and youngest > FRESH

    @contextmanager
    def frozen(self, *processes):
        """Stop processes as a debugger does; they go on afterwards."""
        for process in processes:
            os.killpg(os.getpgid(process.pid), signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.killpg(os.getpgid(process.pid), signal.SIGCONT)

    # --- what is sent --------------------------------------------------------------------------

    def send(self, task: str, event: dict, **options):
        """Send a message; return it with its event."""
        return self.workers.send(task, event, **options), event

    def tell(self, task: str, event: dict):
        """Send a message and wait for its outcome."""
        from ops.client import Sent

        result, event = self.send(task, event)
        sent = Sent(task, result.id, event)
        return until(lambda: outcome_of(self.conn, sent), WAIT_S, f"{task} is carried out")

    def register(self, essays: int = 2, batch: str | None = None, **fields) -> str:
        """Register a batch by a worker."""
        batch = batch or make.new_batch()
        self.tell("els.register_batch", make.registration(batch, essays, **fields))
        return batch

    def insert_batch(self, essays: int = 2, **fields) -> str:
        """Register a batch where no worker runs, by the same steps in this process."""
        from core.lifecycle import Lifecycle
        from core.slots import Slots

        batch = make.new_batch()
        with db.connect(self.database_url) as pool:
            lifecycle = Lifecycle(pool, Slots(self.valkey))
            make.take(lifecycle, "els.register_batch", make.registration(batch, essays, **fields))
        return batch

    def content(self, batch: str, text: str = "text-1", **fields):
        return self.tell("els.assign_content", make.content(batch, text, **fields))

    def send_content(self, batch: str, text: str = "text-1", **fields):
        return self.send("els.assign_content", make.content(batch, text, **fields))

    # --- what is said --------------------------------------------------------------------------

    def els(self, *arguments: str, **environ: str) -> subprocess.Popen:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
        ours = {"ELS_QUEUE": self.queue, "ELS_EVENTS_QUEUE": f"{self.queue}.events"}
        return subprocess.Popen(
            [sys.executable, "-m", "ops", *arguments],
            env={**clean, "COLUMNS": "200", **ours, **self.settings, **environ},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def explain(self, batch: str, start_s: float = 0.0, **environ: str) -> Told:
        """Ask `els explain` twice at once: for people and for programs."""
        began = time.monotonic()
        asked = [self.els("explain", batch, *more, **environ) for more in ([], ["--json"])]
        answers = [self._answer(process) for process in asked]
        seconds = time.monotonic() - began - start_s
        text, as_json = (out for out, _ in answers)
        errors = "".join(error for _, error in answers)
        try:
            told = json.loads(as_json)
        except json.JSONDecodeError:
            told = {}
        if "causes" not in told or "Traceback" in errors:
            text += errors
        return Told(told, re.sub(r"\s+", " ", text), seconds)

    def execute(self, statements: list[str], **environ: str):
        """Execute statements as psql does, in a session of their own."""
        url = environ.get("ELS_DATABASE_URL", self.settings["ELS_DATABASE_URL"])
        with psycopg.connect(self.owned(url), autocommit=True) as conn:
            for statement in statements:
                conn.execute(statement)

    def owned(self, url: str) -> str:
        """Return a URL with the owner of its database for its user: he may do what a step says."""
        return urlsplit(url)._replace(netloc=urlsplit(self.database_url).netloc).geturl()

    @property
    def start_s(self) -> float:
        """How long two `els` take to start side by side, which is no part of their answer."""
        return START_S[-1] if START_S else self.measure_start()

    def measure_start(self) -> float:
        """Measure that again: other cases use the machine as well."""
        began = time.monotonic()
        for process in [self.els("explain", "--help") for _ in range(2)]:
            process.communicate()
        START_S.append(time.monotonic() - began)
        return START_S[-1]

    @staticmethod
    def _answer(process: subprocess.Popen) -> tuple[str, str]:
        try:
            return process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()


@contextmanager
def servers(folder: Path, template: str | None, **settings: str):
    """Give a place of its own: Valkey always, Postgres where there is no `template`.

    `template` is the URL of a migrated database that nobody uses: the place gets a copy of it.
    """
    with ExitStack() as undo:
        valkey = Valkey(folder / "valkey", free_port(), "password")
        undo.callback(valkey.stop)
        valkey.start()
        if template is None:
            postgres = Postgres(folder / "postgres", free_port(), "password")
            undo.callback(postgres.stop)
            postgres.start()
            upgrade(postgres.url)
            url = postgres.url
        else:
            postgres, url = None, undo.enter_context(copied(template))
        place = Place(folder, url, valkey, **settings)
        place.postgres_server = postgres
        undo.callback(place.close)
        yield place


@contextmanager
def copied(template: str):
    """Copy a database; the copy is gone afterwards."""
    name, source = f"place_{uuid4().hex[:12]}", urlsplit(template).path[1:]
    other = urlsplit(template)._replace(path="/postgres").geturl()
    with psycopg.connect(other, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {source}")
    try:
        yield urlsplit(template)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(other, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
