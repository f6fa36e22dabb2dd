"""The demo: a reference orchestrator and file service send real work to a stack of their own.

They make it hard: out of order, with repeats, one content before its batch, a rejected file and an
excess content. Then the demo checks every invariant in Postgres, in Redis and in the events that a
downstream service received.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from core import db
from core.db.connection import Conn
from core.errors import StackError
from core.events import manifest_sha256
from core.servers.redis_client import connect
from core.settings import Settings
from core.slots import Slots
from migrations import upgrade
from ops import client
from ops.client import Event, Sender, common
from ops.demo.report import DemoReport, Message
from ops.demo.upload import ESSAYS, File, checked, read_folder
from ops.queries.batches import Wanted, statuses
from ops.queries.invariants import Invariant, check_batches, check_slots
from ops.reference.schemas import event_faults
from ops.stack.supervisor import Stack, procfile

REGULAR_ESSAYS = 5
REPEATS = 6
POLL_S = 0.1
CONSUMER = (
    'DOWNSTREAM_BROKER_URL="$ELS_BROKER_URL" DOWNSTREAM_DB="$ELS_HOME/downstream.sqlite"'
    " exec celery -A examples.consumer worker --pool solo -n downstream@%h --loglevel WARNING -Q "
)
FINAL = {"ready_for_pipeline_execution", "content_ingestion_failed"}


@dataclass
class Batch:
    batch_id: str
    files: Sequence[File]
    class_id: str | None = None
    essay_ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.essay_ids = [f"essay-{n:03d}" for n in range(1, len(self.files) + 1)]


def play(
    settings: Settings, files: Sequence[File] | None, timeout_s: float, say: Callable[[str], None]
) -> DemoReport:
    """Run a stack on the home of these settings, run the demo on it, and stop it.

    `files` None uploads the essays that ship with the service, and a regular batch too.
    """
    commands = {**procfile(), "downstream": _consumer(settings) + settings.events_queue}
    with (
        open(os.devnull, "w") as devnull,  # the processes also log into the home
        Stack(settings, echo=say, migrate=upgrade, processes=commands, output=devnull) as stack,
        db.connect(stack.endpoints.database_url, size=1) as pool,
        pool.connection() as conn,
        Sender(stack.endpoints.broker_url, settings.queue) as sender,
    ):
        received = Path(stack.environ["ELS_HOME"]) / "downstream.sqlite"
        slots = Slots(connect(stack.endpoints.redis_url))
        return Demo(conn, sender, received, time.monotonic() + timeout_s).run(files, slots)


def _consumer(settings: Settings) -> str:
    """Return the command of the example, on our transport where Celery cannot read our URL."""
    url = settings.broker_or_redis_url
    ours = url.startswith(("amqps://", "sentinel://"))
    return CONSUMER.replace("examples.consumer", "ops.demo.event_consumer") if ours else CONSUMER


class Demo:
    """One run of the demo, which must end by its deadline."""

    def __init__(self, conn: Conn, sender: Sender, received: Path, deadline: float) -> None:
        self.conn = conn
        self.sender = sender
        self.received = received
        self.deadline = deadline
        self.random = Random(25)  # the same order in every run
        self.messages: list[Message] = []

    def run(self, files: Sequence[File] | None, slots: Slots) -> DemoReport:
        """Send everything, wait until all of it is carried out, and check."""
        shipped = read_folder(ESSAYS)
        guest = Batch(f"guest-{uuid4().hex[:8]}", files or shipped)
        batches = [guest]
        if files is None:
            upload = [*shipped[: REGULAR_ESSAYS - 1], checked("blank scan.txt", b"")]
            batches.append(Batch(f"regular-{uuid4().hex[:8]}", upload, class_id="class-9B"))
        self._send_uploads(batches)
        if files is None:
            self._until("the guest batch is ready", partial(self._is_final, guest))
            late = File("one too many.txt", 900, "0" * 32)
            self._send("excess content", "els.assign_content", _content(guest, late, 99))
            self._confirm(batches[1])
        return self._check(batches, slots)

    def _send_uploads(self, batches: Sequence[Batch]) -> None:
        """Upload every batch, with a progress bar until every slot is accounted for."""
        total = sum(len(batch.files) for batch in batches)
        with Progress(
            TextColumn("  slots accounted for"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        ) as progress:
            bar = progress.add_task("", total=total)

            def accounted() -> int:
                rows = [self._status(batch) for batch in batches]
                done = sum((row["assigned"] or 0) + (row["failed"] or 0) for row in rows if row)
                progress.update(bar, completed=done)
                return done

            for batch in batches:
                self._upload(batch)
            self._until("every slot is accounted for", lambda: accounted() == total)

    def _upload(self, batch: Batch) -> None:
        """Announce one content early, then the batch, then the rest in any order with repeats."""
        announced = [
            (_what(file), *_announcement(batch, file, n))
            for n, file in enumerate(batch.files, start=1)
        ]
        early = next((a for a in announced if a[1] == "els.assign_content"), announced[0])
        self._send(f"{early[0]}, early", early[1], early[2])
        self._until(
            f"the early content of {batch.batch_id} is pending",
            lambda: client.outcome_of(self.conn, self.messages[-1].sent) is not None,
        )
        registration = client.registration(batch.batch_id, batch.essay_ids, batch.class_id)
        self._send(f"{batch.batch_id.split('-')[0]} batch", "els.register_batch", registration)
        rest = [a for a in announced if a is not early]
        self.random.shuffle(rest)
        for what, task, event in rest:
            self._send(what, task, event)
        for what, task, event in self.random.sample(announced, min(REPEATS, len(announced))):
            self._send(f"{what}, again", task, event)
        self._send("registration, again", "els.register_batch", registration)

    def _confirm(self, batch: Batch) -> None:
        """Confirm the students of a regular batch once its contents are complete."""
        self._until(
            f"batch {batch.batch_id} waits for its students",
            lambda: self._status(batch).get("status") == "awaiting_student_validation",
        )
        associations = [
            {
                "essay_id": essay_id,
                "student_id": f"student-{n}",
                "confidence_score": 0.95,
                "validation_method": "human",
                "validated_by": "teacher-1",
                "validated_at": common(batch.batch_id)["timestamp"],
            }
            for n, essay_id in enumerate(batch.essay_ids, start=1)
        ]
        event = common(
            batch.batch_id,
            class_id=batch.class_id,
            associations=associations,
            timeout_triggered=False,
        )
        self._send("students confirmed", "els.confirm_students", event)

    def _check(self, batches: Sequence[Batch], slots: Slots) -> DemoReport:
        """Wait for every outcome, final state and delivery; then check every invariant."""
        ids = [batch.batch_id for batch in batches]
        sent = [message.sent for message in self.messages]
        self._until(
            "every message has an outcome",
            lambda: all(client.outcome_of(self.conn, message) for message in sent),
        )
        for batch in batches:
            self._until(f"batch {batch.batch_id} is ready", partial(self._is_final, batch))
        written = self._written(ids)
        self._until(
            "every event is delivered",
            lambda: {event["id"] for event in self._received(ids)} == written,
        )
        events = self._received(ids)
        checked = check_batches(self.conn, ids)
        checked.append(check_slots(self.conn, slots, ids))
        checked += _check_received(events, written)
        outcomes = client.outcomes(self.conn, sent, 0)
        essay_ids = [self._slot(message.event) for message in sent]
        return DemoReport(self.messages, outcomes, essay_ids, events, checked)

    def _slot(self, event: Event) -> str | None:
        """Look up the slot that a content or a rejected file got."""
        row = self.conn.execute(
            "SELECT essay_id FROM essay_states WHERE batch_id = %s AND (text_storage_id = %s"
            " OR (validation_error_code IS NOT NULL AND file_upload_id = %s))",
            [event["batch_id"], event.get("text_storage_id"), event.get("file_upload_id")],
        ).fetchone()
        return row["essay_id"] if row else None

    def _send(self, what: str, task: str, event: Event) -> None:
        self.messages.append(Message(what, self.sender.send(task, event)))

    def _status(self, batch: Batch) -> dict[str, Any]:  # Any: a database row
        rows = statuses(self.conn, Wanted(batch.batch_id), 1)
        return rows[0] if rows else {}

    def _is_final(self, batch: Batch) -> bool:
        return self._status(batch).get("status") in FINAL

    def _written(self, ids: list[str]) -> set[str]:
        rows = self.conn.execute("SELECT id FROM event_outbox WHERE batch_id = ANY(%s)", [ids])
        return {str(row["id"]) for row in rows}

    def _received(self, ids: list[str]) -> list[Event]:
        """Read the events that the downstream service received, in order."""
        if not self.received.exists():
            return []
        with closing(sqlite3.connect(self.received, timeout=10)) as db:
            marks = ", ".join("?" * len(ids))
            query = f"SELECT body FROM received_events WHERE batch_id IN ({marks})"  # noqa: S608
            try:
                rows = db.execute(query + " ORDER BY batch_id, sequence", ids).fetchall()
            except sqlite3.OperationalError:  # the consumer has not made its tables yet
                return []
        return [json.loads(body) for (body,) in rows]

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition. Raises StackError that names it."""
        while not condition():
            if time.monotonic() > self.deadline:
                raise StackError(
                    f"the demo timed out before {what}; the logs are in the folder `log` of the"
                    " home, and --timeout-s gives it longer"
                )
            time.sleep(POLL_S)


def _check_received(events: Sequence[Event], written: set[str]) -> list[Invariant]:
    """Check what arrived downstream."""
    ready = [event for event in events if event["type"] == "BatchEssaysReady"]
    subjects = [event["subject"] for event in ready]
    missing = written - {event["id"] for event in events}
    wrong = [
        event["subject"]
        for event in ready
        if manifest_sha256(event["data"]["ready_essays"]) != event["data"]["manifest_sha256"]
    ]
    return [
        Invariant("Every event arrived downstream", sorted(missing)),
        Invariant("Readiness arrived once a batch", [s for s in subjects if subjects.count(s) > 1]),
        Invariant("The essays that arrived are those of the manifest", wrong),
        Invariant("Each event is as its schema says", [e["id"] for e in events if event_faults(e)]),
    ]


def _what(file: File) -> str:
    return f"{file.name}, rejected" if file.error_code else file.name


def _announcement(batch: Batch, file: File, number: int) -> tuple[str, Event]:
    if code := file.error_code:
        event = client.rejection(batch.batch_id, number, file.name, file.size, code)
        return "els.reject_content", event
    return "els.assign_content", _content(batch, file, number)


def _content(batch: Batch, file: File, number: int) -> Event:
    return common(batch.batch_id, **client.content(number, file.name, file.size, file.md5))
